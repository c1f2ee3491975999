"""Whole runs under encryption: the same bits by every road, through dropouts, crashes, garbage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import TINY, broken_run, changed, run

from perennial.core.errors import RunError
from perennial.data.sample import build as build_sample
from perennial.simulations import compat, grid, keyholder
from perennial.simulations.simulate import simulate

pytestmark = pytest.mark.integration

SEALED = changed(
    TINY,
    shards__num_clients=4,
    round__max_weight=200.0,
    secure_sum__name="bfv",
    secure_sum__clip=0.5,
    secure_sum__capacity=16,
)


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def openings(folder):
    entries = [json.loads(x) for x in (folder / "keyholder" / "audit.jsonl").read_text().split()]
    return [entry for entry in entries if entry["event"] == "opened"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "run"
    return folder, run(folder, SEALED)


def test_a_sealed_run_says_what_it_hid_and_every_round_is_opened_once(unbroken):
    folder, report = unbroken
    assert report["finished"]
    opened = [event for event in events_of(folder) if event["event"] == "sum_opened"]
    assert len(opened) == 9
    assert all(event["counted"] == 4 for event in opened)
    assert [(e["domain"], e["round"]) for e in openings(folder)] == [
        (domain, round_) for domain in range(3) for round_ in range(3)
    ]
    replies = [event for event in events_of(folder) if event["event"] == "reply"]
    assert all(event["loss"] is None and event["records"] is None for event in replies)
    saturated = sum(e["saturated"] for e in opened) / sum(e["values"] for e in opened)
    assert saturated < 0.01


def test_sealed_training_ends_where_plain_training_does(unbroken, tmp_path):
    for bits, worst in ((8, 0.06), (16, 0.02)):
        report = run(tmp_path / str(bits), changed(SEALED, secure_sum__bits=bits))
        plain = run(tmp_path / f"plain-{bits}", changed(TINY, shards__num_clients=4))
        wanted = plain["accuracy_matrix"][-1]
        assert np.abs(np.subtract(report["accuracy_matrix"][-1], wanted)).max() <= worst
        losses = [[row["loss"] for row in r["rounds"]] for r in (report, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=worst)


@pytest.mark.parametrize(
    "change",
    [
        {"simulation__strict_wire": True},
        {"simulation__backend": "processes", "simulation__workers": 2},
        {"secure_sum__masks": False},
        {"secure_sum__keys": "public"},
        {"keyholder__name": "service"},
    ],
    ids=str,
)
def test_every_road_ends_with_the_same_bits(change, unbroken, tmp_path):
    report = run(tmp_path / "run", changed(SEALED, **change))
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]


def test_masks_alone_end_with_the_same_bits_without_any_key(unbroken, tmp_path):
    text = changed(SEALED, secure_sum__name="masks", secure_sum__bits=8)
    report = run(tmp_path / "run", text)
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    assert not (tmp_path / "run" / "keyholder").exists()


def test_floats_come_close(unbroken, tmp_path):
    text = changed(TINY, shards__num_clients=4, secure_sum__name="ckks", secure_sum__clip=0.5)
    report = run(tmp_path / "run", changed(text, round__max_weight=200.0))
    plain = run(tmp_path / "plain", changed(TINY, shards__num_clients=4))
    found, wanted = report["accuracy_matrix"][-1], plain["accuracy_matrix"][-1]
    assert found == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_a_third_of_the_clients_drops_out_and_the_sums_stay_exact(name, tmp_path):
    text = changed(
        SEALED,
        secure_sum__name=name,
        secure_sum__bits=16,
        shards__num_clients=10,
        round__min_replies=4,
        round__retries=10,
        simulation__faults__drop_rate=0.3 if name == "bfv" else 0.05,
    )
    report = run(tmp_path / "run", text)
    faults = {"shards__num_clients": 10, "simulation__faults__drop_rate": 0.3}
    plain = run(tmp_path / "plain", changed(TINY, **faults))
    assert report["finished"]
    events = [e for e in events_of(tmp_path / "run") if e["event"] == "sum_opened"]
    assert len(events) == 9
    if name == "bfv":
        assert sum(event["dropped"] for event in events) > 10
        # The same clients dropped out of the plain run: the sums are those of the same cohorts.
        found, wanted = report["accuracy_matrix"][-1], plain["accuracy_matrix"][-1]
        assert found == pytest.approx(wanted, abs=0.03)
        assert [r["loss"] for r in report["rounds"]] == pytest.approx(
            [r["loss"] for r in plain["rounds"]], rel=0.02
        )
    else:
        assert all(event["dropped"] == 0 for event in events)
        assert any(e["event"] == "round_failed" for e in events_of(tmp_path / "run"))


def test_below_the_quorum_nothing_is_opened_and_the_round_is_tried_again(tmp_path):
    text = changed(
        SEALED, round__min_replies=4, round__retries=40, simulation__faults__drop_rate=0.25
    )
    report = run(tmp_path / "run", text)
    assert report["finished"]
    failed = [e for e in events_of(tmp_path / "run") if e["event"] == "round_failed"]
    assert failed
    assert len(openings(tmp_path / "run")) == 9
    everyone = changed(SEALED, simulation__faults__drop_rate=1.0, round__retries=1)
    with pytest.raises(RunError, match="min_replies = 3"):
        simulate(everyone, tmp_path / "nobody")
    assert not openings(tmp_path / "nobody")


def test_garbage_is_left_out(tmp_path):
    text = changed(
        SEALED,
        shards__num_clients=8,
        simulation__faults__garbage_rate=0.2,
        simulation__faults__nan_rate=0.1,
    )
    report = run(tmp_path / "run", text)
    assert report["finished"]
    assert set(report["rejected"]) == {"malformed body"}


@pytest.mark.parametrize("name", [pytest.param("in_process", marks=pytest.mark.slow), "service"])
def test_a_sealed_run_killed_and_resumed_ends_with_the_same_bits(name, unbroken, tmp_path):
    text = changed(SEALED, keyholder__name=name)
    folder, report = broken_run(tmp_path, kills=3, text=text, seed=len(name))
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    places = [(e["domain"], e["round"]) for e in openings(folder)]
    assert len(places) == len(set(places)) == 9


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(3))
def test_a_sealed_run_killed_twenty_times_ends_with_the_same_bits(unbroken, tmp_path, seed):
    text = changed(SEALED, keyholder__name="service")
    folder, report = broken_run(tmp_path, kills=20, text=text, seed=seed + 1)
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    places = [(e["domain"], e["round"]) for e in openings(folder)]
    assert len(places) == len(set(places)) == 9


def test_a_server_killed_between_opening_and_checkpoint_asks_for_the_same_sum(
    unbroken, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def dies(*_):
        raise Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("perennial.server.exchange.opened_sum", dies)
        with pytest.raises(Killed):
            simulate(SEALED, folder)
    assert len(openings(folder)) == 1
    assert run(folder, SEALED)["adapter_hash"] == unbroken[1]["adapter_hash"]
    entries = [json.loads(x) for x in (folder / "keyholder" / "audit.jsonl").read_text().split()]
    assert [entry["event"] for entry in entries].count("repeated") == 1
    assert len(openings(folder)) == 9


def test_the_key_holder_is_killed_in_the_middle_and_the_run_completes(unbroken, tmp_path):
    text = changed(SEALED, keyholder__name="service")
    folder, killed = tmp_path / "run", []

    def kill():
        end = time.monotonic() + 120
        while len(killed) < 3 and time.monotonic() < end:
            for pid in keyholders(folder):
                if pid not in killed and len(openings_or_none(folder)) > 2 * len(killed):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    report = run(folder, text)
    thread.join()
    assert len(killed) == 3
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    places = [(e["domain"], e["round"]) for e in openings(folder)]
    assert len(places) == len(set(places)) == 9


def openings_or_none(folder):
    path = folder / "keyholder" / "audit.jsonl"
    return openings(folder) if path.exists() and path.read_bytes().endswith(b"\n") else []


def keyholders(folder):
    """Processes that hold the keys of the run in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"keyholder" in words and any(str(folder).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


def test_no_key_holder_is_left_behind(tmp_path):
    run(tmp_path / "run", changed(SEALED, keyholder__name="service", round__rounds=1))
    assert not keyholders(tmp_path / "run")


def test_no_byte_that_leaves_a_client_holds_an_update_a_key_or_a_label(tmp_path, monkeypatch):
    sent, deltas = [], []
    befall = grid.faults.befall

    def recorded(fault, request, reply, seed, index):
        sent.append((index, reply.metadata.message_type, compat.to_bytes(reply)))
        return befall(fault, request, reply, seed, index)

    def remember(self, ticket, salt, kept, **more):
        if kept.delta.size:
            deltas.append(np.array(kept.delta))
        return kept_of(self, ticket, salt, kept, **more)

    from perennial.client.store import ClientStore

    kept_of = ClientStore.remember
    monkeypatch.setattr(grid.faults, "befall", recorded)
    monkeypatch.setattr(ClientStore, "remember", remember)
    text = changed(SEALED, simulation__strict_wire=True, simulation__faults__drop_rate=0.2)
    text = changed(text, shards__num_clients=6, round__rounds=2, run__seed=3)
    assert run(tmp_path / "run", text)["finished"]

    kinds = {kind for _, kind, _ in sent}
    assert {"train", "query.join", "query.reveal", "train.finish"} <= kinds
    wire = b"\0".join(body for _, _, body in sent)
    assert len(deltas) > 20
    assert len(wire) > 1e5
    for delta in deltas:
        content = delta.astype("<f4").tobytes()
        # Any four neighbouring values, wherever they would stand; zeros prove nothing.
        windows = {content[i : i + 16] for i in range(0, len(content) - 16, 4)}
        assert not any(window in wire for window in windows if window.count(0) < 4)
    folder = tmp_path / "run"
    secret = json.loads((folder / "keyholder" / "keys" / "0001" / "client.key").read_text())
    texts = [value for value in flat(secret) if isinstance(value, str) and len(value) > 1000]
    assert texts  # the key itself is in the file
    import base64

    for value in texts:
        raw = base64.b64decode(value)
        for content in (value.encode(), raw):
            assert not any(content[i : i + 24] in wire for i in range(0, len(content) - 24, 24))
    for path in (folder / "clients").rglob("*.key"):
        for line in path.read_bytes().split(b"\n"):
            private = line.strip()
            assert len(private) < 32 or b"-----" in private or private not in wire
    splits = build_sample().read()
    for record in (splits.train.targets, splits.train.texts, splits.train.ids):
        assert not any(word.encode() in wire for word in set(record) if len(word) > 3)


def flat(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    else:
        yield value


def test_a_sum_with_garbage_in_it_gives_the_round_up_and_the_run_goes_on(tmp_path, monkeypatch):
    from perennial.privacy.sealed import SealedSum

    real, done = SealedSum.seal, []

    def seal(self, delta, figures, pact, note, party, rng):
        if pact.domain == 1 and pact.round == 1 and not done:
            done.append(party.node)
            body = real(self, delta, figures, pact, note, party, rng)
            content = np.frombuffer(body[52:], np.uint8).copy()
            # A malicious client: a well-formed ciphertext of nothing that was ever packed.
            content[: len(content) // 2] = np.random.default_rng(0).integers(
                0, 128, len(content) // 2
            )
            import hashlib

            forged = content.tobytes()
            check = hashlib.blake2b(forged, digest_size=16).digest()
            return body[:36] + check + forged
        return real(self, delta, figures, pact, note, party, rng)

    monkeypatch.setattr(SealedSum, "seal", seal)
    report = run(tmp_path / "run", SEALED)
    assert report["finished"]
    assert done
    failed = [e for e in events_of(tmp_path / "run") if e["event"] == "round_failed"]
    assert len(failed) == 1
    assert "given up" in failed[0]["reason"]
    assert "garbage" in failed[0]["reason"]
    assert len(openings(tmp_path / "run")) == 9


def test_a_sum_that_waits_under_an_old_key_is_dropped_and_the_round_asked_again(
    unbroken, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("perennial.server.exchange.opened_sum", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(SEALED, folder)
    assert (folder / "pending.bin").stat().st_mode & 0o077 == 0
    shutil.rmtree(folder / "keyholder")
    assert run(folder, SEALED)["adapter_hash"] == unbroken[1]["adapter_hash"]
    reasons = [e["reason"] for e in events_of(folder) if e["event"] == "round_failed"]
    assert len(reasons) == 1
    assert "no longer in force" in reasons[0]


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_refusal_of_the_key_holder_costs_an_attempt_and_leaves_no_sum_behind(tmp_path):
    strict = changed(SEALED, round__retries=1)
    real = keyholder.key_party

    @contextmanager
    def stricter(config, folder):
        with real(config, folder) as party:
            yield replace(party, options={**party.options, "min_clients": 5})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("perennial.simulations.simulate.key_party", stricter)
        with pytest.raises(RunError, match=r"2 attempts.*over at least 5"):
            simulate(strict, tmp_path / "run")
    assert not (tmp_path / "run" / "pending.bin").exists()
    assert run(tmp_path / "run", strict)["finished"]


def test_a_reveal_that_is_no_answer_fails_the_attempt_before_anything_is_opened(
    tmp_path, monkeypatch
):
    from perennial.privacy.sealed import SealedSum

    real, bad = SealedSum.reveal, []

    def reveal(self, pact, note, party):
        if len(bad) < 2:
            bad.append(party.node)
            return b"x"
        return real(self, pact, note, party)

    monkeypatch.setattr(SealedSum, "reveal", reveal)
    text = changed(
        SEALED, shards__num_clients=8, simulation__faults__drop_rate=0.2, round__retries=5
    )
    assert run(tmp_path / "run", text)["finished"]
    reasons = [e["reason"] for e in events_of(tmp_path / "run") if e["event"] == "round_failed"]
    assert bad
    assert any("must reveal their masks" in reason for reason in reasons)
    assert not any("given up" in reason for reason in reasons)
    assert len(openings(tmp_path / "run")) == 9


def test_no_passphrase_and_no_secret_stands_in_what_a_run_leaves_to_read(unbroken):
    folder, _ = unbroken
    words = (folder / "keyholder" / "passphrase").read_text().strip()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "passphrase":
            assert words.encode() not in path.read_bytes(), path
    private = {"answer.bin", "identity.key", "holder.key", "client.key", "passphrase"}
    found = [path for path in folder.rglob("*") if path.name in private]
    assert {path.name for path in found} == private
    assert all(path.stat().st_mode & 0o077 == 0 for path in found)


def test_the_server_s_half_loads_nothing_that_decrypts():
    code = """
import sys
import perennial.server.run, perennial.server.app
from perennial.core import check
text = '''
[data]
name = "sample"
[round]
weight = "uniform"
[secure_sum]
name = "bfv"
clip = 1.0
[keyholder]
name = "service"
address = "127.0.0.1:1"
'''
config = check.read(text)
sums, holder = check.build(config, "secure_sum"), check.build(config, "keyholder")
from perennial.core.sums import Pact
import numpy as np
pact = Pact("r", 0, 0, 0, "m", "0" * 32, 100, 1.0, "k")
blocks = sums.codec.blocks(100)
content = bytes(sums.wrapping.size_bytes(blocks))
from perennial.privacy import sealed
body = sealed._MAGIC + sums._digest(pact) + sealed._checksum(content) + content
total = sums.add(None, body, 0.0, pact)
total = sums.add(total, body, 0.0, pact)
assert len(sums.close(total, pact)) > 1000
bad = [n for n in sys.modules if n.startswith(("tenseal", "perennial.privacy.lattice"))]
assert not bad, bad
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
