import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from perennial.core.errors import ConfigError, DataError, RunError
from perennial.core.sums import Pact, Scheme
from perennial.privacy import keys, serve, service
from perennial.privacy.audit_log import verify
from perennial.privacy.ring import Form, prime_below, unpack_bits
from perennial.privacy.tls import make_certificates

WORDS = "correct horse battery"
Q, T = prime_below(58, 4096), prime_below(48, 4096)
BFV = Scheme("bfv", 4096, (Q,), 0, T, 0.0, "symmetric")
NODES = [1, 2, 3]
MIB = 1 << 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A key folder, certificates of one authority, and one of another."""
    home = tmp_path_factory.mktemp("home")
    keys.create(home / "keys", BFV, WORDS)
    make_certificates(home / "tls", ["holder", "server", "guest"])
    make_certificates(home / "other", ["server"])
    return home


def config(home, folder, **values):
    """A config file of a key holder in `folder`; a value None drops the line."""
    lines = {
        "keys": str(home / "keys"),
        "address": "127.0.0.1:0",
        "ready": "ready",
        **values,
    }
    tls = lines.pop("tls", {})
    text = "".join(f"{key} = {json.dumps(v)}\n" for key, v in lines.items() if v is not None)
    if tls is not None:
        files = {"ca": "ca.pem", "certificate": "holder.pem", "key": "holder.key"}
        rows = {**{key: str(home / "tls" / name) for key, name in files.items()}, **tls}
        text += "[tls]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in rows.items())
    path = folder / "holder.toml"
    path.write_text(text)
    return path


@contextmanager
def running(home, folder, **values):
    with serve.serving(serve.read(config(home, folder, **values)), WORDS) as (address, _):
        yield address


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def client(home, address, who="server", ca="tls", **options):
    options = {"deadline_s": 10.0, "wait_s": 0.0, **options}
    if who is None:
        return service.build(address=address, **options)
    files = {
        "ca": str(home / ca / "ca.pem"),
        "certificate": str(home / ca / f"{who}.pem"),
        "key": str(home / ca / f"{who}.key"),
    }
    return service.build(address=address, **files, **options)


def pact_of(key, **changes):
    pact = Pact("run", 0, 2, 0, "manifest", "ab" * 16, 8192, 1.0, key)
    return dataclasses.replace(pact, **changes)


def body_of(home, row):
    from perennial.privacy.lattice import Sealer

    _, key = keys.read_client_key(keys.client_path(home / "keys"))
    form = Form(BFV, seeded=True)
    sent = form.write(*Sealer(BFV, key).encrypt(row))
    return Form(BFV, seeded=False).write(*form.read(sent, len(row)))


def slots(seed=0, count=2):
    return np.random.default_rng(seed).integers(0, T, (count, 4096), np.uint64)


def raw(home, address, who="server", ca="tls", options=()):
    """A channel without our client; its own pool of connections."""
    parts = [(home / ca / n).read_bytes() for n in ("ca.pem", f"{who}.key", f"{who}.pem")]
    local = (("grpc.use_local_subchannel_pool", 1), *options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts), local)


def status_of(channel, request, method="Open", timeout=10):
    call = channel.unary_unary(f"/perennial.KeyHolder/{method}")
    try:
        call(request, timeout=timeout)
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


def events(path):
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_a_sum_is_opened_over_mutual_tls(home, tmp_path):
    row = slots()
    with running(home, tmp_path) as address:
        assert (tmp_path / "ready").read_text() == f"{address}\n"
        holder = client(home, address)
        assert holder.fingerprint() == keys.card(home / "keys").fingerprint
        answer = holder.open(pact_of(holder.fingerprint()), set(NODES), body_of(home, row))
        assert (unpack_bits(answer, 8192, 48) == row.reshape(-1)).all()
    assert not (tmp_path / "ready").exists()
    assert events(tmp_path / "audit.jsonl") == ["started", "opened"]


def test_refusals_come_in_the_holders_words(home, tmp_path):
    with running(home, tmp_path) as address:
        holder = client(home, address, wait_s=60.0)
        body, key = body_of(home, slots()), holder.fingerprint()
        with pytest.raises(RunError, match=r"FAILED_PRECONDITION: .* at least 3 clients"):
            holder.open(pact_of(key), [1, 2], body)
        with pytest.raises(RunError, match="must be under the key in force"):
            holder.open(pact_of("0" * 32), NODES, body)
        holder.open(pact_of(key), NODES, body)
        with pytest.raises(RunError, match="was opened with another sum"):
            holder.open(pact_of(key, attempt=1), NODES, body)
    assert events(tmp_path / "audit.jsonl") == ["started"] + ["refused"] * 2 + ["opened", "refused"]


@pytest.mark.parametrize(
    ("who", "ca"), [(None, "tls"), ("server", "other")], ids=["no certificate", "another authority"]
)
def test_strangers_are_refused(who, ca, home, tmp_path):
    with running(home, tmp_path) as address:
        with pytest.raises(RunError, match="UNAVAILABLE"):
            client(home, address, who, ca).fingerprint()
        assert client(home, address).fingerprint()
    assert events(tmp_path / "audit.jsonl") == ["started"]


def test_a_client_that_trusts_the_holder_but_shows_nothing_is_refused(home, tmp_path):
    with running(home, tmp_path) as address:
        trust = grpc.ssl_channel_credentials((home / "tls" / "ca.pem").read_bytes())
        with grpc.secure_channel(address, trust) as channel:
            assert status_of(channel, b"", "Fingerprint")[0] is grpc.StatusCode.UNAVAILABLE


def test_a_holder_of_another_authority_is_not_believed(home, tmp_path):
    files = {"ca": "ca.pem", "certificate": "server.pem", "key": "server.key"}
    tls = {key: str(home / "other" / name) for key, name in files.items()}
    with running(home, tmp_path, tls=tls) as address, pytest.raises(RunError, match="UNAVAILABLE"):
        client(home, address).fingerprint()


def test_only_allowed_names_are_served(home, tmp_path):
    with running(home, tmp_path, tls={"allow": ["server"]}) as address:
        assert client(home, address).fingerprint()
        guest = client(home, address, "guest", wait_s=60.0)
        with pytest.raises(RunError, match="PERMISSION_DENIED: this certificate is not allowed"):
            guest.fingerprint()
        with pytest.raises(RunError, match="PERMISSION_DENIED"):
            guest.open(pact_of("0" * 32), NODES, b"")


def test_health_is_told(home, tmp_path):
    with running(home, tmp_path) as address, raw(home, address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "perennial.KeyHolder"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_without_certificates_on_this_machine_only(home, tmp_path):
    with running(home, tmp_path, insecure=True, tls=None) as address:
        assert client(home, address, None).fingerprint()
    with pytest.raises(ConfigError, match=r"\[keyholder.certificate\] must be given"):
        service.build(address="holder.example:7000").fingerprint()


def test_what_a_client_needs_is_asked_for_at_first_use(tmp_path):
    with pytest.raises(ConfigError, match=r"\[keyholder.address\] must be host:port; got ''"):
        service.build().fingerprint()
    with pytest.raises(ConfigError, match="3 faults"):
        service.build(address="h:1", ca="a", certificate="b", key="c").fingerprint()


def test_the_client_loads_nothing_that_decrypts():
    code = (
        "import sys, perennial.privacy.service, perennial.privacy.in_process\n"
        "loaded = {'tenseal', 'perennial.privacy.lattice', 'perennial.privacy.holder', 'torch'}\n"
        "sys.exit(bool(loaded & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_messages_above_the_limit(home, tmp_path):
    with running(home, tmp_path, max_message_mib=1) as address:
        large = bytes(2 * MIB)
        with pytest.raises(RunError, match=r"must be at most 1 MiB; this one is 2\.0"):
            client(home, address, max_message_mib=1).open(pact_of("0" * 32), NODES, large)
        with pytest.raises(RunError, match="RESOURCE_EXHAUSTED"):
            client(home, address, wait_s=60.0).open(pact_of("0" * 32), NODES, large)
        assert client(home, address).fingerprint()


def test_an_answer_that_is_no_fingerprint(home, tmp_path, monkeypatch):
    monkeypatch.setattr(serve.Holder, "fingerprint", lambda self: "nonsense")
    with running(home, tmp_path) as address, pytest.raises(RunError, match="32 hex digits"):
        client(home, address).fingerprint()


def test_what_goes_wrong_inside_is_not_told(home, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("the secret is hearsay")

    monkeypatch.setattr(serve.Holder, "open", fail)
    with running(home, tmp_path) as address, pytest.raises(RunError, match="INTERNAL") as failure:
        client(home, address).open(pact_of("0" * 32), NODES, b"")
    assert "hearsay" not in str(failure.value)


def test_a_full_disk_is_waited_for(home, tmp_path, monkeypatch):
    real, tries = serve.Holder.open, []

    def at_first(self, *asked):
        tries.append(1)
        if len(tries) < 3:
            raise RunError("the audit log /secret/path cannot be written")
        return real(self, *asked)

    monkeypatch.setattr(serve.Holder, "open", at_first)
    with running(home, tmp_path) as address:
        holder = client(home, address, wait_s=30.0)
        assert holder.open(pact_of(holder.fingerprint()), NODES, body_of(home, slots()))
    assert len(tries) == 3


@pytest.mark.integration
def test_a_deadline_passes_and_the_next_try_succeeds(home, tmp_path, monkeypatch):
    real, tries = serve.Holder.open, []

    def slow(self, *asked):
        tries.append(1)
        time.sleep(1.0 if len(tries) == 1 else 0.0)
        return real(self, *asked)

    monkeypatch.setattr(serve.Holder, "open", slow)
    with running(home, tmp_path) as address:
        holder = client(home, address, deadline_s=0.5, wait_s=30.0)
        key = holder.fingerprint()
        assert holder.open(pact_of(key), NODES, body_of(home, slots()))
    assert set(events(tmp_path / "audit.jsonl")) <= {"started", "opened", "repeated"}
    assert events(tmp_path / "audit.jsonl").count("opened") == 1


def test_a_request_without_a_deadline_gets_one(home, tmp_path):
    with running(home, tmp_path) as address, raw(home, address) as channel:
        key = keys.card(home / "keys").fingerprint
        request = service.pack(pact_of(key), NODES, body_of(home, slots()))
        assert status_of(channel, request, timeout=None)[0] is grpc.StatusCode.OK


def test_a_request_does_not_wait_for_its_turn_for_ever(home, tmp_path, monkeypatch):
    real = serve.Holder.open
    monkeypatch.setattr(serve, "_TURN_S", 0.1)
    monkeypatch.setattr(serve.Holder, "open", lambda *asked: time.sleep(1.0) or real(*asked))
    with running(home, tmp_path) as address, raw(home, address) as channel:
        key, body = keys.card(home / "keys").fingerprint, body_of(home, slots())
        first = threading.Thread(
            target=client(home, address).open, args=(pact_of(key), NODES, body)
        )
        first.start()
        time.sleep(0.4)
        code, words = status_of(channel, service.pack(pact_of(key, round=3), NODES, body))
        assert (code.name, words) == ("DEADLINE_EXCEEDED", "other sums are being opened")
        first.join()


@pytest.mark.integration
def test_more_servers_than_are_let_in_at_once_all_get_their_sums(home, tmp_path, monkeypatch):
    real, done = serve.Holder.open, []
    monkeypatch.setattr(serve.Holder, "open", lambda *asked: time.sleep(0.05) or real(*asked))
    with running(home, tmp_path) as address:
        key, body = keys.card(home / "keys").fingerprint, body_of(home, slots())

        def ask(number):
            holder = client(home, address, wait_s=60.0)
            done.append(holder.open(pact_of(key, round=number), NODES, body))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(done) == 16
    assert len(set(done)) == 1
    assert events(tmp_path / "audit.jsonl").count("opened") == 16


@pytest.mark.integration
def test_an_absent_holder_is_waited_for_and_the_cause_told_once(home, caplog):
    address = free_address()
    start = time.monotonic()
    with pytest.raises(RunError, match=r"must answer within wait_s = 1.5 s; it does not. Last: UN"):
        client(home, address, wait_s=1.5).fingerprint()
    assert 0.5 < time.monotonic() - start < 5.0
    causes = [record.getMessage() for record in caplog.records]
    assert 1 <= len(causes) == len(set(causes))


def test_a_new_key_is_seen_after_a_restart(home, tmp_path):
    folder = tmp_path / "keys"
    keys.create(folder, BFV, WORDS)
    with running(home, tmp_path, keys=str(folder)) as address:
        holder = client(home, address, wait_s=20.0)
        first = holder.fingerprint()
        assert holder.fingerprint() == first
    second = keys.rotate(folder, WORDS).fingerprint
    with running(home, tmp_path, keys=str(folder), address=address):
        end = time.monotonic() + 10
        while holder.fingerprint() == first and time.monotonic() < end:
            time.sleep(0.05)
        assert holder.fingerprint() == second != first


def test_one_address_has_one_holder(home, tmp_path):
    (tmp_path / "b").mkdir()
    with (
        running(home, tmp_path) as address,
        pytest.raises(RunError, match="cannot be bound"),
        running(home, tmp_path / "b", address=address),
    ):
        pass
    with running(home, tmp_path):
        with (
            pytest.raises(RunError, match="belong to one key holder"),
            running(home, tmp_path),
        ):
            pass
        assert (tmp_path / "ready").exists(), "the one that runs keeps its file"


def test_a_ready_file_that_cannot_be_written(home, tmp_path):
    with pytest.raises(RunError, match="must be a file"), running(home, tmp_path, ready="no/where"):
        pass


def test_all_faults_of_a_config_at_once(tmp_path):
    path = tmp_path / "k.toml"
    path.write_text('kays = "x"\nmin_clients = 2\ninsecure = "no"\n[tls]\nca = "c"\nkeey = "k"\n')
    with pytest.raises(ConfigError) as found:
        serve.read(path)
    places = {fault.place: str(fault) for fault in found.value.faults}
    assert set(places) == {"kays", "keys", "min_clients", "insecure"} | {
        f"tls.{key}" for key in ("keey", "certificate", "key")
    }
    assert "did you mean 'keys'" in places["kays"]
    assert "did you mean 'key'" in places["tls.keey"]
    assert "must be greater than or equal to 3; got 2" in places["min_clients"]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ({"address": "0.0.0.0:1", "insecure": True, "tls": None}, ["insecure"]),
        ({"address": "holder:1", "insecure": True, "tls": None}, ["insecure"]),
        ({"address": "nowhere", "tls": None}, ["address", "tls"]),
        ({"address": "h:70000"}, ["address"]),
        ({"insecure": True}, ["insecure"]),
        ({"tls": {"key": "no", "ca": "no"}}, ["tls.certificate", "tls.ca"]),
    ],
)
def test_faults_of_values(values, places, home, tmp_path):
    with pytest.raises(ConfigError) as found:
        serve.read(config(home, tmp_path, **values))
    assert [fault.place for fault in found.value.faults] == places


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        serve.read(tmp_path / "none")
    (tmp_path / "bad").write_text("keys = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        serve.read(tmp_path / "bad")


def test_paths_are_relative_to_the_file(home, tmp_path):
    settings = serve.read(config(home, tmp_path, keys="k"))
    assert settings.keys == str(tmp_path / "k")
    assert settings.ready == str(tmp_path / "ready")
    assert settings.audit == str(tmp_path / "audit.jsonl")
    assert Path(settings.tls.ca) == home / "tls" / "ca.pem"


def test_certificates_are_for_their_owner_alone(home):
    assert {p.name for p in (home / "other").iterdir()} == {"ca.pem", "server.pem", "server.key"}
    assert {p.stat().st_mode & 0o777 for p in (home / "other").iterdir()} == {0o600}
    for name in ("../x", "ca", "", "a/b"):
        with pytest.raises(ValueError, match="must be one of a host"):
            make_certificates(home / "bad", [name])


def headed(header, body=b"", length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(content) if length is None else length
    return size.to_bytes(4, "big") + content + body


def hostile(key, count):
    """Requests that no honest peer sends, and the statuses that each may get."""
    rng = random.Random(7)
    pact = pact_of(key).pack()
    good = {"pact": pact, "nodes": NODES}
    bad = ["INVALID_ARGUMENT"]
    unit = Form(BFV, seeded=False).size_bytes(1)
    wrong = [None, True, -1, 2**64, 10**400, 1.5, "x" * 300, "\ud800", [], {}, [[1]], 2**63]
    texts = [
        b"",
        b"null",
        b"[]",
        b'"pact"',
        b"\xff\xfe{}",
        b"[" * 900_000,
        b'{"pact":' * 100_000,
        b'{"nodes":[' + b"[],[" * 100_000,
        json.dumps(good).replace('"size": 8192', '"size": NaN').encode(),
        json.dumps(good).replace('"scale": 1.0', '"scale": Infinity').encode(),
        json.dumps(good).replace('"scale": 1.0', '"scale": 1e999').encode(),
        json.dumps(good).replace('"size": 8192', '"size": ' + "9" * 100_000).encode(),
        json.dumps(good).replace('"run": "run"', '"run": "a", "run": "b"').encode(),
        json.dumps({**good, "extra": 1}).encode(),
        json.dumps({**good, "nodes": [[]] * 200_000}).encode(),
        json.dumps({**good, "nodes": "1" * 900_000}).encode(),
    ]
    for number in range(count):
        kind = number % 8
        if kind == 0:
            yield rng.randbytes(rng.choice([0, 1, 3, 4, 5, 200, 5000])), bad
        elif kind == 1:
            whole = headed(good, bytes(100))
            yield whole[: rng.randrange(len(whole) - 100)], bad
        elif kind == 2:
            yield headed(good, length=rng.choice([0, 2**32 - 1, 2**31, 2**20, 10**4])), bad
        elif kind == 3:
            yield headed(texts[number // 8 % len(texts)], bytes(10)), bad
        elif kind == 4:
            field = rng.choice(list(pact))
            value = rng.choice(wrong)
            yield (
                headed({**good, "pact": {**pact, field: value}}, bytes(unit)),
                [*bad, "FAILED_PRECONDITION", "OK"],
            )
        elif kind == 5:
            nodes = [*NODES[: rng.randrange(3)], rng.choice(wrong)]
            yield headed({**good, "nodes": nodes}, bytes(unit)), [*bad, "FAILED_PRECONDITION"]
        elif kind == 6:
            text = bytearray(json.dumps(good).encode())
            text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
            yield headed(bytes(text), b"\x00"), [*bad, "FAILED_PRECONDITION"]
        else:
            size = rng.choice([1, unit - 1, unit, unit + 1, 3 * unit])
            # Nearly all random bits are residues: whole ciphertexts of noise, which open once.
            yield headed(good, rng.randbytes(size)), ["FAILED_PRECONDITION", "OK"]


def memory(pid):
    line = next(s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in s)
    return int(line.split()[1]) * 1024


@contextmanager
def process(file, folder):
    """The real thing, killed at the end if it still runs."""
    log = (folder / "stderr").open("ab")
    started = subprocess.Popen(
        [sys.executable, "-m", "perennial", "keyholder", str(file)],
        env={**os.environ, keys.PASSPHRASE: WORDS},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not (folder / "ready").exists() and time.monotonic() < end:
            assert started.poll() is None, (folder / "stderr").read_text()
            time.sleep(0.02)
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
        log.close()


@pytest.mark.integration
def test_a_thousand_hostile_requests(home, tmp_path):
    with process(config(home, tmp_path), tmp_path) as started:
        address = (tmp_path / "ready").read_text().strip()
        with raw(home, address) as channel:
            key = keys.card(home / "keys").fingerprint
            before = 0
            for number, (request, allowed) in enumerate(hostile(key, 1100)):
                if number == 300:
                    before = memory(started.pid)
                code, words = status_of(channel, request)
                assert code.name in allowed, (number, code, words, request[:80])
                assert len(words) <= 300
                assert words.isprintable()
                assert words.isascii()
                assert "Traceback" not in words
            assert memory(started.pid) - before < 40 * MIB
        assert started.poll() is None
        holder = client(home, address)
        row = slots()
        answer = holder.open(pact_of(key, round=9), NODES, body_of(home, row))
        assert (unpack_bits(answer, 8192, 48) == row.reshape(-1)).all()
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.integration
def test_a_holder_killed_while_a_server_waits(home, tmp_path):
    address = free_address()
    file, row = config(home, tmp_path, address=address), slots()
    body, key, answers = body_of(home, row), keys.card(home / "keys").fingerprint, {}
    holder = client(home, address, wait_s=120.0)

    def ask(number):
        answers[number] = holder.open(pact_of(key, round=number), NODES, body)

    # Before the connection, while it is made, while the sum is opened, after the answer.
    delays = [0.0, 0.005, 0.02, 0.04, 0.3]
    for number, delay in enumerate(delays):
        with process(file, tmp_path) as started:
            waiting = threading.Thread(target=ask, args=(number,))
            waiting.start()
            time.sleep(delay)
            started.send_signal(signal.SIGKILL)
            started.wait()
        (tmp_path / "ready").unlink()
        with process(file, tmp_path):
            waiting.join(60)
            first = answers.pop(number)
            ask(number)
            assert answers[number] == first
        (tmp_path / "ready").unlink()
    assert (unpack_bits(answers[0], 8192, 48) == row.reshape(-1)).all()
    found = events(tmp_path / "audit.jsonl")
    assert found.count("opened") == len(delays)
    assert found.count("refused") == 0
    assert verify(tmp_path / "audit.jsonl") == len(found)


@pytest.mark.integration
def test_a_holder_that_is_away_for_a_while_is_waited_for(home, tmp_path):
    address = free_address()
    file, answers = config(home, tmp_path, address=address), []
    body, key = body_of(home, slots()), keys.card(home / "keys").fingerprint
    holder = client(home, address, wait_s=120.0)
    with process(file, tmp_path) as first:
        answers.append(holder.open(pact_of(key), NODES, body))
        first.kill()
        first.wait()
    (tmp_path / "ready").unlink()
    waiting = threading.Thread(target=lambda: answers.append(holder.fingerprint()))
    waiting.start()
    time.sleep(1.0)
    assert len(answers) == 1
    with process(file, tmp_path):
        waiting.join(60)
        assert answers[1] == key
        assert holder.open(pact_of(key), NODES, body) == answers[0]
    assert events(tmp_path / "audit.jsonl") == ["started", "opened", "started", "repeated"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_holder_says_so_and_exits_well(name, home, tmp_path):
    with process(config(home, tmp_path), tmp_path) as started:
        address = (tmp_path / "ready").read_text().strip()
        started.send_signal(getattr(signal, name))
        said, _ = started.communicate(timeout=30)
    assert started.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in said.splitlines()[:3])
    assert lines["address"] == address
    assert lines["fingerprint"] == keys.card(home / "keys").fingerprint
    assert lines["min_clients"] == "3"
    assert str(tmp_path / "audit.jsonl") in said
    assert not (tmp_path / "ready").exists()
