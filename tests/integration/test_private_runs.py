"""Whole private runs with a tiny model: ledgers, report and metrics hold, and no run repeats."""

import json
import math

import pytest
from running import TINY, changed, run

from perennial.core.errors import BudgetError
from perennial.core.private import LEDGER
from perennial.privacy import ledger
from perennial.privacy.accounting import epsilon_of
from perennial.privacy.audit_log import entries_of
from perennial.simulations.simulate import simulate

pytestmark = pytest.mark.integration

CLIENTS, DOMAINS, ROUNDS = 3, 2, 2
SHORT = changed(
    TINY,
    domains__order=["bank", "clinic"],
    shards__split="iid",
    train__batch_size=16,
    train__epochs=1,
    round__rounds=ROUNDS,
    round__weight="uniform",
)
EXAMPLE = {
    "privacy__name": "dp_sgd",
    "privacy__epsilon": 20.0,
    "privacy__delta": 1e-3,
    "privacy__noise_multiplier": 2.0,
    "privacy__sample_rate": 0.5,
}
USER = {
    "user_privacy__epsilon": 20.0,
    "user_privacy__delta": 1e-3,
    "user_privacy__clip": 1.0,
    "user_privacy__noise_multiplier": 3.0,
}
BFV = {"secure_sum__name": "bfv", "secure_sum__clip": 0.1, "secure_sum__capacity": 16}
CENTRAL = {**USER, "user_privacy__name": "central"}
DISTRIBUTED = {**USER, **BFV, "user_privacy__name": "distributed", "user_privacy__clients": 3}
KINDS = {
    "dp_sgd in the clear": (EXAMPLE, ("example",)),
    "dp_sgd under bfv and masks": ({**EXAMPLE, **BFV}, ("example",)),
    "central": (CENTRAL, ("user",)),
    "distributed": (DISTRIBUTED, ("user",)),
    "both units": ({**EXAMPLE, **DISTRIBUTED}, ("example", "user")),
}


def charges(path):
    """Number of charges in a ledger whose chain holds."""
    return sum(entry["event"] == "charge" for entry in entries_of(path))


def events_of(folder, name):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in lines if event["event"] == name]


@pytest.fixture(scope="module", params=KINDS)
def private(request, tmp_path_factory):
    """A run of each kind: its folder, its report, its units and its text."""
    tables, units = KINDS[request.param]
    folder, text = tmp_path_factory.mktemp("private") / "run", changed(SHORT, **tables)
    return folder, run(folder, text), units, text


def clients_of(folder):
    found = sorted((folder / "clients").iterdir())
    assert len(found) == CLIENTS
    return found


def test_every_client_paid_for_every_round(private):
    folder, _, units, _ = private
    for mine in clients_of(folder):
        lines = [entry for entry in entries_of(mine / LEDGER) if entry["event"] == "charge"]
        assert len(lines) == DOMAINS * ROUNDS * len(units)
        assert ledger.client_of(mine).startswith(f"{mine.name}-")
        for unit in units:
            places = [
                (line["place"]["domain"], line["place"]["round"])
                for line in lines
                if line["unit"] == unit
            ]
            assert places == [(d, r) for d in range(DOMAINS) for r in range(ROUNDS)]
        cohorts = {s.cohort for s in ledger.spends_of(mine, "example")}
        assert cohorts == ({"bank", "clinic"} if "example" in units else set())


def test_the_report_says_what_the_ledgers_say(private):
    folder, report, units, _ = private
    assert [unit["unit"] for unit in report["privacy"]["units"]] == list(units)
    for block in report["privacy"]["units"]:
        unit = block["unit"]
        said = {
            mine.name: epsilon_of(ledger.spends_of(mine, unit), 1e-3) for mine in clients_of(folder)
        }
        assert block["epsilon"] == pytest.approx(max(said.values()), rel=1e-9)
        assert 0.0 < block["epsilon"] < block["target"] == 20.0
        assert block["delta"] == 1e-3
        assert not block["exceeded"]
        assert block["left"] > 0
        assert [c["releases"] for c in block["clients"]] == [DOMAINS * ROUNDS] * CLIENTS
    page = (folder / "report.html").read_text()
    assert "epsilon" in page.lower()


def test_only_what_the_ledger_covers_came_to_the_server(private):
    folder, report, units, _ = private
    replies = events_of(folder, "reply")
    assert len(replies) == CLIENTS * DOMAINS * ROUNDS
    for reply in replies:
        assert reply["ok"]
        assert reply["loss"] is None
        assert reply["seconds"] is None
        assert reply["records"] in (None, 1.0)
        assert set(reply["epsilon"]) == set(units)
    assert all(row["loss"] is None for row in report["rounds"])
    for event in events_of(folder, "sum_opened"):
        assert event["seal_seconds"] is None


def test_two_runs_of_one_seed_have_two_noises(private, tmp_path):
    _, report, _, text = private
    again = run(tmp_path / "run", text)
    assert again["adapter_hash"] != report["adapter_hash"]
    assert [b["epsilon"] for b in again["privacy"]["units"]] == [
        b["epsilon"] for b in report["privacy"]["units"]
    ], "what is spent depends on nothing that is drawn"


def test_without_privacy_the_same_run_repeats(tmp_path):
    """So that it is the noise, and nothing else, that differs above."""
    first, again = (run(tmp_path / name, SHORT) for name in ("a", "b"))
    assert first["adapter_hash"] == again["adapter_hash"]
    assert first.get("privacy") is None
    assert not list(tmp_path.rglob(LEDGER))


def test_users_sums_have_noise_of_those_who_answered(private):
    folder, _, units, _ = private
    noised = events_of(folder, "noised")
    assert len(noised) == (DOMAINS * ROUNDS if "user" in units else 0)
    for event in noised:
        assert event["counted"] == CLIENTS
        assert event["sensitivity"] == pytest.approx(1.0, rel=1e-4)
        assert event["multiplier"] == pytest.approx(3.0, rel=1e-3)
        assert event["multiplier"] <= 3.0


def test_a_client_that_drops_out_takes_its_noise_along(tmp_path):
    text = changed(
        SHORT,
        **{**DISTRIBUTED, "user_privacy__clients": 5, "secure_sum__min_clients": 5},
        shards__num_clients=10,
        round__retries=10,
        simulation__faults__drop_rate=0.2,
    )
    report = run(tmp_path / "run", text)
    assert report["finished"]
    noised = events_of(tmp_path / "run", "noised")
    assert any(event["counted"] < 10 for event in noised)
    for event in noised:
        assert event["counted"] >= 5
        wanted = 3.0 * math.sqrt(event["counted"] / 5)
        assert event["multiplier"] == pytest.approx(wanted, rel=1e-3)
    # Who was asked and did not answer in time has paid all the same.
    answered = sum(event["counted"] for event in noised)
    charged = sum(charges(path) for path in (tmp_path / "run" / "clients").glob(f"*/{LEDGER}"))
    assert charged >= answered


def test_a_budget_that_ends_ends_the_run_and_nothing_more_is_trained(tmp_path):
    tight = changed(SHORT, **{**EXAMPLE, "privacy__epsilon": 1.3}, round__retries=0)
    with pytest.raises(BudgetError, match="perennial plan"):
        simulate(tight, tmp_path / "run")
    for mine in clients_of(tmp_path / "run"):
        (said,) = ledger.statements_of(mine)
        assert said.releases == 1
        assert said.epsilon <= 1.3
    with pytest.raises(BudgetError, match="perennial plan"):
        simulate(tight, tmp_path / "run")
    assert {charges(mine / LEDGER) for mine in clients_of(tmp_path / "run")} == {1}


def test_a_second_run_goes_on_with_the_accounts_of_the_first(tmp_path):
    text = changed(SHORT, **EXAMPLE, simulation__clients=str(tmp_path / "disks"))
    first, second = (run(tmp_path / name, text) for name in ("one", "two"))
    spent = [report["privacy"]["units"][0]["epsilon"] for report in (first, second)]
    assert spent[1] > spent[0]
    assert not (tmp_path / "two" / "clients").exists()
