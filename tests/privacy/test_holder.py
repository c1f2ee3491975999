import dataclasses
import json
import threading

import numpy as np
import pytest

from perennial.core.errors import ConfigError, RefusedError, RunError
from perennial.core.sums import Pact, Scheme
from perennial.privacy import holder as holders
from perennial.privacy import in_process, keys, lattice
from perennial.privacy.audit_log import AuditLog, verify
from perennial.privacy.holder import Holder
from perennial.privacy.ring import Form, add, prime_below, unpack_bits

WORDS = "correct horse battery"
Q, T = prime_below(58, 4096), prime_below(48, 4096)
BFV = Scheme("bfv", 4096, (Q,), 0, T, 0.0, "symmetric")
CKKS = Scheme("ckks", 4096, (prime_below(60, 4096),), 0, 0, 2.0**30, "symmetric")
NODES = [11, -7, 2**63 + 5]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for scheme in (BFV, CKKS):
        made[scheme.name] = tmp_path_factory.mktemp("keys") / scheme.name
        keys.create(made[scheme.name], scheme, WORDS)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def held(folders, path):
    log = AuditLog(path)
    yield Holder(*keys.open_holder_key(folders["bfv"], WORDS), 3, log)
    log.close()


def again(folders, path, name="bfv"):
    return Holder(*keys.open_holder_key(folders[name], WORDS), 3, AuditLog(path))


def pact_of(holder, **changes):
    pact = Pact("run", 0, 2, 0, "manifest", "ab" * 16, 8192, 1.0, holder.fingerprint())
    return dataclasses.replace(pact, **changes)


def body_of(folder, *rows):
    """The sum of clients' slots, each [P, width], as the server hands it over."""
    card, key = keys.read_client_key(keys.client_path(folder))
    sealer, form, total = lattice.Sealer(card.scheme, key), Form(card.scheme, seeded=True), None
    for row in rows:
        sent = form.write(*sealer.encrypt(row))
        total = add(total, *form.read(sent, len(row)), card.scheme.primes)
    return Form(card.scheme, seeded=False).write(total.c0, total.c1)


def slots(seed, count=2, top=T // 4):
    return np.random.default_rng(seed).integers(0, top, (count, 4096), np.uint64)


def events(path):
    return [entry["event"] for entry in log_of(path)]


def log_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sum_of_three_is_opened_exactly(held, folders):
    rows = [slots(seed) for seed in range(3)]
    answer = held.open(pact_of(held), NODES, body_of(folders["bfv"], *rows))
    assert len(answer) == 8192 * 48 // 8
    assert (unpack_bits(answer, 8192, 48) == sum(rows).reshape(-1)).all()


def test_a_ckks_sum_is_float64(folders, path):
    holder = again(folders, path, "ckks")
    rows = [np.random.default_rng(seed).uniform(-1, 1, (2, 2048)) for seed in range(3)]
    answer = holder.open(pact_of(holder), NODES, body_of(folders["ckks"], *rows))
    found = np.frombuffer(answer, "<f8").reshape(2, 2048)
    assert np.abs(found - sum(rows)).max() < 1e-3


def test_the_log_has_the_opening_and_no_values(held, folders, path):
    held.open(pact_of(held), NODES, body_of(folders["bfv"], slots(0)))
    started, opened = log_of(path)
    assert (started["event"], started["key"]) == ("started", held.fingerprint())
    assert opened["event"] == "opened"
    assert opened["nodes"] == sorted(NODES)
    assert (opened["run"], opened["domain"], opened["round"]) == ("run", 0, 2)
    assert path.stat().st_size < 2000


def refusals(folder):
    body = body_of(folder, slots(0))
    one = len(body) // 2
    return {
        "another key": ({"key": "0" * 32}, NODES, body, "must be under the key in force"),
        "two clients": ({}, NODES[:2], body, "at least 3 clients; this one is over 2"),
        "nobody": ({}, [], body, "at least 3 clients"),
        "one thrice": ({}, [5, 5, 5], body, "distinct"),
        "no numbers": ({}, [1, 2, "3"], body, "distinct whole numbers"),
        "true": ({}, [1, 2, True], body, "distinct"),
        "cut": ({}, NODES, body[:-1], "must be a multiple of"),
        "nothing": ({}, NODES, b"", "it is empty"),
        "too small": ({"size": 64 * 4096 + 1}, NODES, body[:one], "cannot hold 262145 values"),
        "no residues": ({}, NODES, b"\xff" * one, "below the prime"),
    }


@pytest.mark.parametrize(
    "name",
    """another key/two clients/nobody/one thrice/no numbers/true/cut/nothing/too small/no residues
    """.strip().split("/"),
)
def test_what_is_refused_is_told_and_logged(name, held, folders, path):
    changes, nodes, body, why = refusals(folders["bfv"])[name]
    with pytest.raises(RefusedError, match=why) as refusal:
        held.open(pact_of(held, **changes), nodes, body)
    assert "\n" not in str(refusal.value)
    entry = log_of(path)[-1]
    assert (entry["event"], entry["why"]) == ("refused", str(refusal.value))
    sound = held.open(pact_of(held), NODES, body_of(folders["bfv"], slots(1)))
    assert sound, "a refusal does not use the round up"


def test_the_largest_vector_that_could_fit_is_let_through(held, folders):
    body = body_of(folders["bfv"], slots(0, 1))
    assert held.open(pact_of(held, size=64 * 4096), NODES, body)


def test_the_same_request_gets_the_same_answer_also_after_a_restart(folders, path, held):
    body = body_of(folders["bfv"], slots(0))
    first = held.open(pact_of(held), NODES, body)
    assert held.open(pact_of(held), set(NODES), bytes(body)) == first
    assert events(path) == ["started", "opened", "repeated"]
    held._log.close()
    later = again(folders, path)
    assert later.open(pact_of(later), NODES[::-1], body) == first
    assert events(path)[3:] == ["started", "repeated"]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "change",
    [{"session": "cd" * 16}, {"attempt": 1}, {"manifest": "x"}, {"size": 1}, "nodes", "body"],
    ids=str,
)
def test_another_sum_of_an_opened_round_is_refused(change, restart, folders, path, held):
    body, nodes, fields = body_of(folders["bfv"], slots(0)), NODES, {}
    held.open(pact_of(held), nodes, body)
    if change == "nodes":
        nodes = [*NODES, 12]
    elif change == "body":
        body = body_of(folders["bfv"], slots(0), slots(1))
    else:
        fields = change
    if restart:
        held._log.close()
        held = again(folders, path)
    words = "round 2 of domain 0 of run 'run' was opened with another"
    with pytest.raises(RefusedError, match=words):
        held.open(pact_of(held, **fields), nodes, body)
    assert events(path)[-1] == "refused"


@pytest.mark.parametrize("change", [{"round": 3}, {"domain": 1}, {"run": "other"}], ids=str)
def test_another_round_is_opened(change, held, folders):
    body = body_of(folders["bfv"], slots(0))
    held.open(pact_of(held), NODES, body)
    assert held.open(pact_of(held, **change), NODES, body)


def test_no_answer_without_its_line_on_disk(held, folders, path, monkeypatch):
    body = body_of(folders["bfv"], slots(0))
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(RunError, match="No space left") as failure:
            held.open(pact_of(held), NODES, body)
        assert not isinstance(failure.value, RefusedError)
    other = body_of(folders["bfv"], slots(1))
    assert held.open(pact_of(held), NODES, other), "nothing was opened, so the round is free"
    assert verify(path) == 2


def test_the_line_is_synced_before_the_answer_is_given(held, folders, path, monkeypatch):
    seen = []
    real = holders.AuditLog.append

    def append(log, event, **fields):
        entry = real(log, event, **fields)
        seen.append((event, path.read_text().count('"opened"')))
        return entry

    monkeypatch.setattr(holders.AuditLog, "append", append)
    held.open(pact_of(held), NODES, body_of(folders["bfv"], slots(0)))
    assert seen == [("opened", 1)]


@pytest.mark.parametrize("least", [-1, 0, 2])
def test_sums_of_fewer_than_three_can_never_be_allowed(least, folders, path):
    card, secret = keys.open_holder_key(folders["bfv"], WORDS)
    with pytest.raises(ConfigError, match="must be 3 or more"):
        Holder(card, secret, least, AuditLog(path))


def test_of_many_requests_at_once_for_one_round_one_wins(held, folders, path):
    bodies = [body_of(folders["bfv"], slots(seed)) for seed in range(6)]
    done = []

    def ask(body):
        try:
            done.append(held.open(pact_of(held), NODES, body))
        except RefusedError:
            done.append(None)

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answer is not None for answer in done) == 1
    assert sorted(events(path)) == ["opened"] + ["refused"] * 5 + ["started"]
    assert verify(path) == 7


def test_in_process_opens_late_and_the_same(folders, tmp_path, monkeypatch):
    monkeypatch.delenv(keys.PASSPHRASE, raising=False)
    (tmp_path / "words").write_text(WORDS)
    words = str(tmp_path / "words")
    kept = in_process.build(
        keys=str(folders["bfv"]), audit=str(tmp_path / "a"), passphrase_file=words
    )
    assert not (tmp_path / "a").exists()
    row = slots(0)
    answer = kept.open(pact_of(kept), NODES, body_of(folders["bfv"], row))
    assert (unpack_bits(answer, 8192, 48) == row.reshape(-1)).all()
    assert events(tmp_path / "a") == ["started", "opened"]
    with pytest.raises(ConfigError, match=r"\[keyholder.keys\] must name a key folder"):
        in_process.build().fingerprint()


def test_in_process_takes_the_passphrase_of_the_environment(folders, tmp_path, monkeypatch):
    monkeypatch.setenv(keys.PASSPHRASE, WORDS)
    kept = in_process.build(keys=str(folders["bfv"]), audit=str(tmp_path / "a"))
    assert kept.fingerprint() == keys.card(folders["bfv"]).fingerprint
