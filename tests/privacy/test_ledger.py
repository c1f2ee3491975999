"""A client's account on disk: it never under-counts, and nobody edits it unnoticed."""

import json
import os
import random
import resource
import signal
import sys
import threading
import time

import pytest

from perennial.core.errors import BudgetError, PrivacyError
from perennial.core.private import LEDGER
from perennial.core.values import Spend
from perennial.privacy import ledger as module
from perennial.privacy.accounting import epsilon, epsilon_of
from perennial.privacy.audit_log import AuditLog, entries_of, verify
from perennial.privacy.ledger import HEAD, client_of, open_ledger, spends_of, statements_of
from perennial.privacy.none import NoLedger

PLACE = {"run": "r", "kind": "train", "domain": 0, "round": 0}
ONE = Spend(1.0, 8.0, 1, "bank")


def ledger(folder, client="c0", *, unit="example", target=8.0, delta=1e-5):
    return open_ledger(folder, client, unit=unit, epsilon=target, delta=delta)


def charged(folder, times=3):
    for _ in range(times):
        ledger(folder).charge(PLACE, [ONE])
    return charged_bytes(folder)


def test_a_charge_is_on_disk_and_told(tmp_path):
    account = ledger(tmp_path)
    assert account.statement().epsilon == 0.0
    assert not list(tmp_path.iterdir())  # asking makes nothing
    first = account.charge(PLACE, [ONE, Spend(0.5, 8.0, 3, "clinic")])
    assert first.releases == 1
    assert first.updates_left == -1
    assert first.epsilon == epsilon_of([ONE, Spend(0.5, 8.0, 3, "clinic")], 1e-5)
    assert ledger(tmp_path).statement() == first  # another process reads the same
    line = entries_of(tmp_path / LEDGER)[0]
    assert line["place"] == PLACE
    assert (line["client"], line["unit"], line["target"]) == ("c0", "example", 8.0)
    assert line["spends"][1] == {
        "cohort": "clinic",
        "sample_rate": 0.5,
        "noise_multiplier": 8.0,
        "steps": 3,
        "mechanism": "gaussian",
    }
    assert spends_of(tmp_path, "example") == [ONE, Spend(0.5, 8.0, 3, "clinic")]
    assert client_of(tmp_path) == "c0"


def test_a_replayed_cohort_goes_on_paying_and_the_maximum_is_told(tmp_path):
    account, own = ledger(tmp_path), Spend(0.2, 1.5, 20, "first")
    account.charge(PLACE, [own])
    said = account.charge({**PLACE, "domain": 1}, [Spend(0.2, 1.5, 5, "second"), own])
    assert said.epsilon == epsilon([own, own], 1e-5) > epsilon([own], 1e-5)
    again = account.charge({**PLACE, "domain": 2}, [Spend(0.2, 1.5, 1, "third")])
    assert again.epsilon == said.epsilon  # another cohort's use is no use of this one
    assert again.releases == 3


def test_no_spends_write_nothing(tmp_path):
    assert ledger(tmp_path).charge(PLACE, []).releases == 0
    assert not list(tmp_path.iterdir())


def test_the_gate_refuses_what_crosses_and_writes_nothing(tmp_path):
    account, big = ledger(tmp_path, target=1.0), Spend(1.0, 5.0, 1, "bank")
    said = account.charge(PLACE, [big])
    before = charged_bytes(tmp_path)
    with pytest.raises(BudgetError) as error:
        account.charge({**PLACE, "round": 7}, [big])
    would = epsilon([big, big], 1e-5)
    text = str(error.value)
    for part in ("c0", "epsilon 1 ", f"{said.epsilon:.4g}", f"{would:.4g}", "round 7", "plan"):
        assert part in text
    assert charged_bytes(tmp_path) == before
    assert account.statement() == said
    # What fits still goes through, and a target is reached exactly.
    last = epsilon([big, Spend(1.0, 60.0, 1, "bank")], 1e-5)
    assert last <= 1.0
    assert account.charge(PLACE, [Spend(1.0, 60.0, 1, "bank")]).releases == 2


def charged_bytes(folder):
    return (folder / LEDGER).read_bytes(), (folder / HEAD).read_bytes()


SALTED = {**PLACE, "salt": "0123456789abcdef"}


def test_a_charge_whose_answer_was_never_kept_is_used_again(tmp_path):
    exact = epsilon([ONE], 1e-5)
    first = ledger(tmp_path, target=exact).charge(SALTED, [ONE])
    before = charged_bytes(tmp_path)
    for _ in range(3):  # as many crashes
        assert ledger(tmp_path, target=exact).charge(dict(SALTED), [ONE]) == first
    assert charged_bytes(tmp_path) == before
    ledger(tmp_path, target=exact).released(SALTED)
    said = ledger(tmp_path, target=exact).statement()
    assert (said.epsilon, said.releases) == (exact, 1)
    with pytest.raises(BudgetError):  # from now on it is another charge
        ledger(tmp_path, target=exact).charge(SALTED, [ONE])


def test_a_release_is_a_line_of_the_chain_and_no_charge(tmp_path):
    ledger(tmp_path).charge(SALTED, [ONE])
    ledger(tmp_path).released(SALTED)
    line = entries_of(tmp_path / LEDGER)[-1]
    assert (line["event"], line["unit"], line["client"]) == ("released", "example", "c0")
    assert line["place"] == SALTED
    assert verify(tmp_path / LEDGER) == json.loads((tmp_path / HEAD).read_text())["lines"] == 2
    assert spends_of(tmp_path, "example") == [ONE]
    (said,) = statements_of(tmp_path)
    assert said == ledger(tmp_path).statement()
    assert (said.releases, said.epsilon) == (1, epsilon([ONE], 1e-5))
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 2
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 2  # and that one is used again
    assert ledger(tmp_path).statement().epsilon == epsilon([ONE, ONE], 1e-5)


@pytest.mark.parametrize(
    ("place", "spends", "options"),
    [
        ({**SALTED, "salt": "fedcba9876543210"}, [ONE], {}),
        ({**SALTED, "round": 1}, [ONE], {}),
        ({**SALTED, "round": False}, [ONE], {}),
        ({**SALTED, "run": "other"}, [ONE], {}),
        (SALTED, [Spend(1.0, 8.0, 2, "bank")], {}),
        (SALTED, [Spend(1.0, 7.0, 1, "bank")], {}),
        (SALTED, [Spend(1.0, 8.0, 1, "clinic")], {}),
        (SALTED, [ONE, ONE], {}),
        (SALTED, [ONE], {"target": 7.0}),
        (SALTED, [ONE], {"delta": 1e-6}),
        (SALTED, [ONE], {"unit": "user"}),
    ],
)
def test_whatever_is_not_the_last_charge_is_charged(tmp_path, place, spends, options):
    ledger(tmp_path).charge(SALTED, [ONE])
    ledger(tmp_path, **options).charge(place, spends)
    assert verify(tmp_path / LEDGER) == 2


def test_only_the_last_charge_of_its_unit_is_used_again(tmp_path):
    other = {**SALTED, "round": 1}
    ledger(tmp_path).charge(SALTED, [ONE])
    ledger(tmp_path, unit="user").charge(SALTED, [ONE])
    ledger(tmp_path, unit="user").released(SALTED)  # says nothing of the other unit
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 1
    ledger(tmp_path).charge(other, [ONE])
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 3
    ledger(tmp_path).released(other)
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 3
    assert ledger(tmp_path, unit="user").statement().releases == 1


@pytest.mark.parametrize("place", [PLACE, {**PLACE, "salt": ""}, {**SALTED, "kind": "statistics"}])
def test_what_does_not_say_all_that_it_depends_on_always_pays(tmp_path, place):
    for number in range(1, 4):
        assert ledger(tmp_path).charge(place, [ONE]).releases == number


def test_a_release_of_what_was_never_charged_writes_nothing(tmp_path):
    ledger(tmp_path).released(SALTED)
    assert not list(tmp_path.iterdir())
    ledger(tmp_path).charge(PLACE, [ONE])
    before = charged_bytes(tmp_path)
    ledger(tmp_path).released(SALTED)
    ledger(tmp_path, unit="user").released(PLACE)
    assert charged_bytes(tmp_path) == before


def test_one_charge_pays_for_one_answer_of_two_processes(tmp_path):
    one, two = ledger(tmp_path), ledger(tmp_path)
    one.charge(SALTED, [ONE])
    two.charge(SALTED, [ONE])
    one.released(SALTED)
    before = charged_bytes(tmp_path)
    with pytest.raises(PrivacyError, match="paid for one that left"):
        two.released(SALTED)
    assert charged_bytes(tmp_path) == before
    two.charge(SALTED, [ONE])
    two.released(SALTED)
    assert two.statement().releases == 2


def test_what_is_over_a_tightened_target_is_not_used_again(tmp_path):
    ledger(tmp_path).charge(SALTED, [ONE])
    with pytest.raises(BudgetError):
        ledger(tmp_path, target=0.5 * epsilon([ONE], 1e-5)).charge(SALTED, [ONE])


def test_a_crash_between_a_charge_and_its_head_costs_nothing(tmp_path):
    ledger(tmp_path).charge(PLACE, [ONE])
    head = (tmp_path / HEAD).read_bytes()
    ledger(tmp_path).charge(SALTED, [ONE])
    after = charged_bytes(tmp_path)
    (tmp_path / HEAD).write_bytes(head)
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 2
    assert charged_bytes(tmp_path) == after


def test_a_crash_between_a_release_and_its_head_counts_the_release(tmp_path):
    ledger(tmp_path).charge(SALTED, [ONE])
    head = (tmp_path / HEAD).read_bytes()
    ledger(tmp_path).released(SALTED)
    (tmp_path / HEAD).write_bytes(head)
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 2


def test_a_release_that_cannot_be_written_stops_the_answer(tmp_path):
    ledger(tmp_path).charge(SALTED, [ONE])
    size = len((tmp_path / LEDGER).read_bytes())
    told = _limited(size + 40, lambda: ledger(tmp_path).released(SALTED))
    assert told.startswith("PrivacyError: the line 'released' must be on disk")
    assert ledger(tmp_path).charge(SALTED, [ONE]).releases == 1


@pytest.mark.parametrize("harm", ["cut", "deleted", "other"])
def test_a_harmed_ledger_releases_nothing(tmp_path, harm):
    charged(tmp_path)
    if harm == "cut":
        _cut(tmp_path)
    elif harm == "deleted":
        (tmp_path / LEDGER).unlink()
    with pytest.raises(PrivacyError):
        ledger(tmp_path, "c1" if harm == "other" else "c0").released(PLACE)


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_client_that_promised_can_not_go_on_without(tmp_path, unit):
    none = NoLedger(tmp_path, unit)
    none.released(SALTED)
    assert none.charge(SALTED, [ONE]) == none.statement()
    assert not list(tmp_path.iterdir())
    ledger(tmp_path, unit="user" if unit == "example" else "example").charge(SALTED, [ONE])
    assert none.statement().epsilon == 0.0  # the other unit's promise is kept as it was
    ledger(tmp_path, unit=unit).charge(SALTED, [ONE])
    for use in (none.statement, lambda: none.charge(SALTED, [])):
        with pytest.raises(PrivacyError, match=f"holds a promise of privacy for each {unit}"):
            use()
    _edited(tmp_path)
    with pytest.raises(PrivacyError, match="must be whole"):
        none.statement()


def test_a_target_that_is_met_exactly_is_kept(tmp_path):
    target = epsilon([ONE], 1e-5)
    assert ledger(tmp_path, target=target).charge(PLACE, [ONE]).epsilon == target


def test_units_share_a_file_and_nothing_else(tmp_path):
    ledger(tmp_path).charge(PLACE, [ONE])
    user = ledger(tmp_path, unit="user", target=2.0)
    assert user.statement().epsilon == 0.0
    said = user.charge(PLACE, [Spend(1.0, 9.0, 1, "all", "skellam")])
    assert (said.unit, said.releases) == ("user", 1)
    assert ledger(tmp_path).statement().epsilon == epsilon([ONE], 1e-5)
    assert verify(tmp_path / LEDGER) == 2
    assert [(s.unit, s.target) for s in statements_of(tmp_path)] == [
        ("example", 8.0),
        ("user", 2.0),
    ]


@pytest.mark.parametrize(
    "spend",
    [
        Spend(0.0, 1.0, 1, "a"),
        Spend(1.5, 1.0, 1, "a"),
        Spend(0.5, 0.0, 1, "a"),
        Spend(0.5, 1.0, 0, "a"),
        Spend(0.5, 1.0, 1, "a", "none"),
    ],
)
def test_spends_out_of_range_are_refused(tmp_path, spend):
    with pytest.raises(PrivacyError, match="must have"):
        ledger(tmp_path).charge(PLACE, [ONE, spend])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"unit": "household"}, "'example' or 'user'"),
        ({"target": 0.0}, "above 0"),
        ({"target": float("inf")}, "finite"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
    ],
)
def test_a_promise_out_of_range_is_refused(tmp_path, options, word):
    with pytest.raises(PrivacyError, match=word):
        ledger(tmp_path, **options)


def test_what_was_promised_may_be_tightened_and_never_loosened(tmp_path):
    ledger(tmp_path, target=4.0).charge(PLACE, [ONE])
    for looser, word in (
        ({"target": 4.1}, "epsilon 4 "),
        ({"target": 4.0, "delta": 1e-4}, "delta"),
    ):
        for use in (lambda a: a.charge(PLACE, [ONE]), lambda a: a.statement()):
            with pytest.raises(PrivacyError, match=f"c0 promised {word}.*withdrawn"):
                use(ledger(tmp_path, **looser))
    ledger(tmp_path, target=3.0, delta=1e-6).charge(PLACE, [ONE])
    with pytest.raises(PrivacyError, match="promised epsilon 3"):
        ledger(tmp_path, target=4.0, delta=1e-6).statement()
    assert statements_of(tmp_path)[0].target == 3.0
    # A promise per user is another one.
    ledger(tmp_path, unit="user", target=9.0, delta=1e-3).charge(PLACE, [ONE])


def test_epsilon_is_said_at_the_delta_of_today(tmp_path):
    ledger(tmp_path).charge(PLACE, [ONE])
    assert ledger(tmp_path, delta=1e-7).statement().epsilon == epsilon([ONE], 1e-7)


def test_updates_left_are_those_that_the_gate_lets_through(tmp_path):
    account = ledger(tmp_path, target=3.0)
    account.charge(PLACE, [Spend(0.5, 4.0, 4, "first")])
    update = [Spend(0.5, 4.0, 4, "next"), Spend(0.25, 4.0, 4, "first")]
    left = account.statement(update).updates_left
    assert 0 < left < 50
    # The dearest part of an update is taken to be paid by who paid most.
    for i in range(left):
        account.charge({**PLACE, "domain": i}, [Spend(0.5, 4.0, 4, "first")])
    assert account.statement(update).updates_left == 0
    with pytest.raises(BudgetError):
        account.charge(PLACE, [Spend(0.5, 4.0, 4, "first")])


def test_updates_left_stop_counting_somewhere(tmp_path):
    assert ledger(tmp_path).statement([Spend(1.0, 9e3, 1, "a")]).updates_left == 9999
    assert ledger(tmp_path, target=0.01).statement([Spend(1.0, 1.0, 1, "a")]).updates_left == 0


def test_a_ledger_of_another_client_is_refused_by_name(tmp_path):
    charged(tmp_path)
    for use in (lambda a: a.charge(PLACE, [ONE]), lambda a: a.statement()):
        with pytest.raises(PrivacyError, match="must be of c1; it is of c0"):
            use(ledger(tmp_path, "c1"))


def test_a_swapped_ledger_is_refused(tmp_path):
    for name in ("c0", "c1"):
        (tmp_path / name).mkdir()
        ledger(tmp_path / name, name).charge(PLACE, [ONE])
    (tmp_path / "c1" / LEDGER).replace(tmp_path / "c0" / LEDGER)
    with pytest.raises(PrivacyError, match=r"must be of c0; it is of c0, c1"):
        ledger(tmp_path / "c0").statement()


def _uses(folder):
    return (
        lambda: ledger(folder).charge(PLACE, [ONE]),
        lambda: ledger(folder).statement(),
        lambda: statements_of(folder),
    )


def _cut(folder):
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    (folder / LEDGER).write_bytes(b"".join(lines[:-1]))


def _older(folder):
    head, lines = (folder / HEAD).read_bytes(), (folder / LEDGER).read_bytes()
    ledger(folder).charge(PLACE, [ONE])
    assert head != (folder / HEAD).read_bytes()
    (folder / LEDGER).write_bytes(lines)


def _edited(folder):
    text = (folder / LEDGER).read_text().replace('"steps":1', '"steps":0')
    (folder / LEDGER).write_text(text)


def _rewritten(folder):
    """A sound chain of as many lines, made by someone who can hash."""
    (folder / LEDGER).unlink()
    log = AuditLog(folder / LEDGER)
    for _ in range(3):
        log.append(
            "charge", client="c0", unit="example", place={}, target=8.0, delta=1e-5, spends=[]
        )
    log.close()


def _foreign(folder):
    log = AuditLog(folder / LEDGER)
    log.append("opened", key="abc")
    log.close()


def _blank(folder):
    (folder / LEDGER).write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (_cut, "Lines were cut off"),
        (_older, "an older copy was put back"),
        (_edited, "must be whole"),
        (_rewritten, "or others"),
        (_foreign, "must be a charge"),
        (_blank, "it holds 0"),
        (lambda folder: (folder / LEDGER).unlink(), f"{LEDGER} was deleted"),
        (lambda folder: (folder / HEAD).unlink(), f"{HEAD} was deleted"),
        (lambda folder: (folder / HEAD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / HEAD).write_text('{"lines": 3}'), "cannot be read"),
    ],
)
def test_a_harmed_ledger_fails_closed(tmp_path, harm, word):
    charged(tmp_path)
    harm(tmp_path)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for use in _uses(tmp_path):
        with pytest.raises(PrivacyError, match=word):
            use()
    for name in (HEAD,):  # nothing was mended in silence
        assert left.get(name) == (
            (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
        )


def test_a_crash_between_line_and_head_counts_the_line(tmp_path):
    _, head = charged(tmp_path, times=2)
    ledger(tmp_path).charge(PLACE, [ONE])
    (tmp_path / HEAD).write_bytes(head)
    assert ledger(tmp_path).statement().releases == 3
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 4
    assert json.loads((tmp_path / HEAD).read_text())["lines"] == 4


def test_a_crash_before_the_first_head_counts_the_line(tmp_path):
    charged(tmp_path, times=1)
    (tmp_path / HEAD).unlink()
    assert ledger(tmp_path).statement().releases == 1
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 2


def test_a_torn_line_was_never_charged(tmp_path):
    charged(tmp_path)
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"time":"2026-01-01T00:00:00","event":"cha')
    assert ledger(tmp_path).statement().releases == 3
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 4
    assert verify(tmp_path / LEDGER) == 4


def test_two_lines_more_than_the_head_says_is_no_crash(tmp_path):
    _, head = charged(tmp_path, times=1)
    charged(tmp_path, times=2)
    (tmp_path / HEAD).write_bytes(head)
    with pytest.raises(PrivacyError, match=r"was written \(1 lines\); it holds 3"):
        ledger(tmp_path).statement()


def _limited(size, act):
    """What `act` raises in a child whose files may not grow beyond `size` bytes."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.dont_write_bytecode = True  # it would be cut, and kept
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            act()
            told = "done"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode()[:4000])
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_a_full_disk_charges_nothing(tmp_path):
    content, _ = charged(tmp_path)
    told = _limited(len(content) + 40, lambda: ledger(tmp_path).charge(PLACE, [ONE]))
    assert told.startswith("PrivacyError: the line 'charge' must be on disk")
    assert ledger(tmp_path).statement().releases == 3
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 4


def test_a_head_that_cannot_be_written_stops_training_and_the_line_counts(tmp_path):
    charged(tmp_path, times=1)

    def act():
        module.write_atomically = lambda *a, **k: (_ for _ in ()).throw(OSError(28, "no space"))
        ledger(tmp_path).charge(PLACE, [ONE])

    assert "Nothing was trained" in _limited(10**6, act)
    assert ledger(tmp_path).statement().releases == 2
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 3


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(PrivacyError, match="file that can be written"):
        ledger(tmp_path / "nowhere").charge(PLACE, [ONE])
    with pytest.raises(PrivacyError, match="holds none"):
        statements_of(tmp_path)


def test_a_ledger_that_is_held_for_long_is_refused(tmp_path, monkeypatch):
    charged(tmp_path)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    log = AuditLog(tmp_path / LEDGER)
    with pytest.raises(PrivacyError, match="must be free to be charged"):
        ledger(tmp_path).charge(PLACE, [ONE])
    assert ledger(tmp_path).statement().releases == 3  # reading waits for nobody
    log.close()
    assert ledger(tmp_path).charge(PLACE, [ONE]).releases == 4


def test_workers_take_turns(tmp_path):
    faults = []

    def work():
        try:
            for _ in range(5):
                ledger(tmp_path, target=50.0).charge(PLACE, [ONE])
                ledger(tmp_path, target=50.0).statement()
        except PrivacyError as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert ledger(tmp_path, target=50.0).statement().releases == 20
    assert verify(tmp_path / LEDGER) == 20


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_point_it_never_under_counts(tmp_path, seed):
    rng, counted = random.Random(seed), 0
    for _ in range(8):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            while True:
                ledger(tmp_path, target=100.0).charge(PLACE, [ONE])
                os.write(write, b".")  # training would begin here
        os.close(write)
        time.sleep(rng.uniform(0.002, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read, "rb") as pipe:
            counted += len(pipe.read())
        said = ledger(tmp_path, target=100.0).statement() if (tmp_path / LEDGER).exists() else None
        releases = said.releases if said else 0
        assert counted <= releases <= counted + 1
        counted = releases
        if said and releases:
            assert verify(tmp_path / LEDGER) == releases
            assert said.epsilon == epsilon([ONE] * releases, 1e-5)
    assert ledger(tmp_path, target=100.0).charge(PLACE, [ONE]).releases == counted + 1
