"""Kills of a private run: no ledger ever holds less than what left its client, and the run ends.

A parent that has everything loaded forks the run and kills it with signal 9. What could leave a
client is written down in the child, by its seal, before it leaves.
"""

import functools
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from running import TINY, changed

from perennial.cli.settling import settle
from perennial.client import promise, site, store
from perennial.core.errors import PrivacyError
from perennial.core.private import LEDGER
from perennial.privacy import ledger, plain, sealed
from perennial.privacy.accounting import epsilon_of
from perennial.privacy.audit_log import entries_of
from perennial.server import checkpoint
from perennial.simulations.simulate import simulate

pytestmark = pytest.mark.integration

CLIENTS, DOMAINS, ROUNDS = 3, 2, 2
WHOLE = CLIENTS * DOMAINS * ROUNDS
OPEN = changed(
    TINY,
    domains__order=["bank", "clinic"],
    shards__split="iid",
    train__epochs=1,
    train__batch_size=16,
    round__rounds=ROUNDS,
    round__weight="uniform",
    privacy__name="dp_sgd",
    privacy__epsilon=8.0,
    privacy__delta=1e-3,
    privacy__sample_rate=0.5,
)
# Room for many charges that buy nothing; and for not one.
PRIVATE = changed(OPEN, privacy__epsilon=100.0, privacy__noise_multiplier=4.0)
EXACT = settle(OPEN)[0]
SEALED = {"secure_sum__name": "bfv", "secure_sum__clip": 0.5, "secure_sum__capacity": 16}
SUMS = {
    "plain": PRIVATE,
    "bfv": changed(PRIVATE, **SEALED),
    "exact": changed(EXACT, **SEALED),
}
EITHER = pytest.mark.parametrize("text", ["plain", "bfv"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def text(request, tmp_path_factory):
    """A config whose plug-ins, model and records this process holds: a fork starts at once."""
    torch.set_num_threads(1)
    site.forget_site()
    simulate(SUMS[request.param], tmp_path_factory.mktemp("warm") / "run")
    return SUMS[request.param]


# The child.


def _watched(folder):
    """Write down what is sealed before it leaves, in a file that a kill does not take back."""
    notes = os.open(folder / "left", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def watch(kind):
        real = kind.seal

        @functools.wraps(real)
        def seal(self, delta, figures, pact, note, party, chance):
            digest = hashlib.sha256(delta.tobytes()).hexdigest()
            left = [party.folder.name, pact.domain, pact.round, digest]
            os.write(notes, (json.dumps(left) + "\n").encode())
            return real(self, delta, figures, pact, note, party, chance)

        kind.seal = seal

    for kind in (plain._PlainSum, sealed.SealedSum):
        watch(kind)


def forked(text, folder, plant=lambda: None):
    """A child that runs `text` in `folder` after `plant()`; its process id."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        _watched(folder)
        plant()
        simulate(text, folder / "run")
        code = 0
    except BaseException:  # the child's border: pytest's own must not go on here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(child):
    """Whether the child died of signal 9; it must have ended well otherwise."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return False


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dies(target, name, call, when):
    """Plant: the process dies `when` (before or after) the `call`-th call of target.name."""

    def plant():
        real, calls = getattr(target, name), []

        @functools.wraps(real)
        def wrapped(*arguments, **options):
            calls.append(1)
            if when == "before" and len(calls) == call:
                die()
            found = real(*arguments, **options)
            if when == "after" and len(calls) == call:
                die()
            return found

        setattr(target, name, wrapped)

    return plant


# What must hold, whatever was killed.


@dataclass
class Count:
    """Over all clients of a run."""

    charges: int = 0
    left: int = 0


def sound(folder):
    """No client's ledger is behind what could have left it; the counts."""
    path, count = folder / "left", Count()
    notes = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    left = {tuple(note) for note in notes}
    for mine in sorted((folder / "run" / "clients").glob("*")):
        answers = Counter((d, r) for who, d, r, _ in left if who == mine.name)
        count.left += sum(answers.values())
        lines = entries_of(mine / LEDGER) if (mine / LEDGER).exists() else []
        if not lines:
            assert not answers
            continue
        places = {
            event: Counter(
                (e["place"]["domain"], e["place"]["round"]) for e in lines if e["event"] == event
            )
            for event in (ledger.CHARGE, ledger.RELEASED)
        }
        for place, number in answers.items():
            paid, kept = (places[event][place] for event in places)
            assert number <= paid, f"{mine.name} let out more than it charged at {place}"
            assert number <= kept <= paid, f"{mine.name} let out what it did not say at {place}"
        (said,) = ledger.statements_of(mine)
        charges = places[ledger.CHARGE].total()
        assert said.releases == charges
        spends = ledger.spends_of(mine, "example")
        assert said.epsilon == epsilon_of(spends, 1e-3)
        count.charges += charges
    return count


def finished(folder):
    """A run that ended: its counts, and what the server accepted is charged."""
    count = sound(folder)
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["finished"]
    assert len(report["rounds"]) == DOMAINS * ROUNDS
    assert not report["rejected"]
    events = [json.loads(x) for x in (folder / "run" / "events.jsonl").read_text().splitlines()]
    accepted = {(e["node"], e["domain"], e["round"]) for e in events if e["event"] == "reply"}
    assert len(accepted) == WHOLE
    assert count.charges >= count.left >= WHOLE
    for mine in (folder / "run" / "clients").glob("*"):
        planned = ledger.spends_of(mine, "example")[:1] * ROUNDS
        (said,) = ledger.statements_of(mine)
        assert said.epsilon >= epsilon_of(planned, 1e-3) > 0
    return count


def kill_often(text, folder, kills, rng, longest):
    """Kill runs at random until `kills` have died; (kills, counts of all runs, runs)."""
    done, runs, total = 0, 0, Count()
    while done < kills:
        runs += 1
        place, here = folder / f"{runs}", 0
        while True:
            child = forked(text, place)
            if done < kills and here < 25:
                time.sleep(rng.uniform(0.0, longest))
                os.kill(child, signal.SIGKILL)
            if not killed(child):
                break
            done, here = done + 1, here + 1
            sound(place)
        count = finished(place)
        total = Count(total.charges + count.charges, total.left + count.left)
    return done, total, runs


@pytest.fixture(scope="module")
def length(text, tmp_path_factory):
    """How many seconds a whole run takes when nobody kills it."""
    folder, started = tmp_path_factory.mktemp("whole") / "0", time.monotonic()
    assert not killed(forked(text, folder))
    assert finished(folder) == Count(WHOLE, WHOLE)
    return time.monotonic() - started


@EITHER
def test_a_private_run_that_is_killed_never_under_counts(text, length, tmp_path):
    done, count, _ = kill_often(text, tmp_path, 3, random.Random(5), 0.6 * length)
    assert done == 3
    assert count.left <= count.charges <= count.left + done


@pytest.mark.slow
@pytest.mark.timeout(1200)
@EITHER
def test_a_hundred_kills_at_random_never_under_count(text, length, tmp_path, record_property):
    started, rng = time.monotonic(), random.Random(6)
    done, count, runs = kill_often(text, tmp_path, 50, rng, 0.6 * length)
    assert done == 50
    assert runs * WHOLE <= count.left <= count.charges <= count.left + done
    for name, value in {
        "kills": done,
        "runs": runs,
        "charges": count.charges,
        "releases": count.left,
        "seconds": round(time.monotonic() - started),
    }.items():
        record_property(name, value)


# Target, name, at which call, before or after it, and how many charges buy nothing. Each answer
# writes two lines, its charge and its release, and is kept before it is sealed and once more after.
POINTS = {
    "after the charge, before training": (site, "train", 5, "before", 0),
    "after training, before its release is said": (promise.Promise, "released", 5, "before", 0),
    "between the first line and its head": (ledger, "write_atomically", 1, "before", 0),
    "between a charge and its head": (ledger, "write_atomically", 5, "before", 0),
    "after the charge is on disk": (ledger, "write_atomically", 5, "after", 0),
    "between a release and its head": (ledger, "write_atomically", 6, "before", 1),
    "after its release is said": (promise.Promise, "released", 5, "after", 1),
    "before the answer is kept": (store.ClientStore, "remember", 5, "before", 1),
    "while the answer is written": (store.os, "replace", 0, "before", 1),
    "after the answer is kept, before it is sent": (store.ClientStore, "remember", 5, "after", 0),
    "before the checkpoint": (checkpoint, "save", 2, "before", 0),
}
FREE = [point for point, (*_, lost) in POINTS.items() if not lost]


def killed_at(point, text, folder):
    """A run of `text` that was killed at `point`: what is charged until then."""
    target, name, call, when, _ = POINTS[point]
    plant = dies(target, name, call, when) if call else _dies_while_it_writes
    assert killed(forked(text, folder, plant)), "the point was never reached"
    return sound(folder)


@pytest.mark.parametrize("text", ["bfv"], indirect=True, scope="module")
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_the_worst_point_costs_one_charge_or_none(text, point, tmp_path):
    assert killed_at(point, text, tmp_path / "0").charges <= WHOLE
    assert not killed(forked(text, tmp_path / "0"))
    assert finished(tmp_path / "0").charges == WHOLE + POINTS[point][-1]


@pytest.mark.parametrize("text", ["exact"], indirect=True, scope="module")
@pytest.mark.parametrize("point", FREE)
def test_a_run_whose_noise_is_planned_to_the_last_charge_ends_all_the_same(text, point, tmp_path):
    killed_at(point, text, tmp_path / "0")
    assert not killed(forked(text, tmp_path / "0"))
    assert finished(tmp_path / "0").charges == WHOLE
    for mine in (tmp_path / "0" / "run" / "clients").glob("*"):
        (said,) = ledger.statements_of(mine)
        again = ledger.spends_of(mine, "example")[:1]
        assert said.epsilon <= said.target * (1 + 1e-9)
        # One charge more of the same would have been refused: what was lost cost nothing.
        assert epsilon_of([*again, *ledger.spends_of(mine, "example")], 1e-3) > said.target


@pytest.mark.parametrize("text", ["plain"], indirect=True, scope="module")
def test_a_ledger_that_skips_what_it_charged_before_is_found(text, tmp_path):
    """What the others assert can fail: two noises left under one charge."""

    def forgetful():
        real = promise.Promise.charge_training

        def charge(self, mine, ticket, *rest):
            place, path = (ticket.domain, ticket.round), mine.folder / LEDGER
            lines = entries_of(path) if path.exists() else []
            if place not in {(e["place"]["domain"], e["place"]["round"]) for e in lines}:
                real(self, mine, ticket, *rest)

        said = promise.Promise.released

        def released(self, *rest):
            with suppress(PrivacyError):  # the ledger finds it too, and would stop the answer
                said(self, *rest)

        promise.Promise.charge_training, promise.Promise.released = charge, released
        store.ClientStore.recall = lambda *_: None  # else the same update is sent again, for free

    def plant():
        forgetful()
        # Each answer is kept before it is sealed, and once more after.
        dies(store.ClientStore, "remember", 6, "before")()

    assert killed(forked(text, tmp_path / "0", plant))
    sound(tmp_path / "0")
    assert not killed(forked(text, tmp_path / "0", forgetful))
    with pytest.raises(AssertionError, match="let out more than it charged"):
        sound(tmp_path / "0")


def _dies_while_it_writes():
    """The fifth answer is in its temporary file, synced, and not yet in place."""
    real, calls = os.replace, []

    def replace(source, target):
        if str(target).endswith("answer.bin"):
            calls.append(1)
            if len(calls) == 5:
                die()
        real(source, target)

    os.replace = replace
