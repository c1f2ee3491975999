"""Whole runs with a tiny model: the same bits by every road, and after every crash."""

import json
import subprocess

import numpy as np
import pytest
from running import COMMAND, TINY, broken_run, changed, run, start

from perennial.core.errors import DataError, RunError
from perennial.server.events import EventLog
from perennial.simulations.simulate import simulate

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, run(folder, TINY)


def test_a_run_leaves_everything_a_user_needs(unbroken):
    folder, report = unbroken
    assert report["finished"]
    assert [d["name"] for d in report["domains"]] == ["bank", "clinic", "shop"]
    matrix = report["accuracy_matrix"]
    assert [[cell is not None for cell in row] for row in matrix] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert len(report["rounds"]) == 9
    losses = [row["loss"] for row in report["rounds"]]
    assert all(losses[3 * d + 2] < losses[3 * d] for d in range(3))
    assert len(report["clients"]) == 3
    for name in (
        "config.toml",
        "events.jsonl",
        "report.html",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/head.safetensors",
        "adapters/02-shop/labels.json",
        "clients/00000/client.json",
    ):
        assert (folder / name).is_file(), name
    assert list((folder / "tensorboard").glob("events*"))
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert len(json.loads((folder / "adapter" / "labels.json").read_text())) == 18


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(unbroken, tmp_path):
    first = unbroken[1]["adapter_hash"]
    assert run(tmp_path / "again", TINY)["adapter_hash"] == first
    assert run(tmp_path / "other", changed(TINY, run__seed=12))["adapter_hash"] != first


@pytest.mark.parametrize(
    "change",
    [
        {"simulation__strict_wire": True},
        {"simulation__backend": "processes", "simulation__workers": 2},
        {"evaluate__where": "clients"},
        {"evaluate__every": 0},
    ],
    ids=str,
)
def test_every_road_ends_with_the_same_bits(change, unbroken, tmp_path):
    report = run(tmp_path / "run", changed(TINY, **change))
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    final = report["accuracy_matrix"][-1]
    assert final == pytest.approx(unbroken[1]["accuracy_matrix"][-1])


def test_ray_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("ray", reason="needs the extra: pip install 'perennial[ray]'")
    # In a process of its own: the engine leaves threads and a logger behind.
    short = changed(TINY, domains__order=["bank"], round__rounds=2)
    text = changed(short, simulation__backend="ray", run__folder=str(tmp_path))
    (tmp_path / "ray.toml").write_text(text)
    done = subprocess.run(
        [*COMMAND, "simulate", tmp_path / "ray.toml", "--quiet"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (report,) = tmp_path.glob("tiny-*/report.json")
    wanted = run(tmp_path / "inline", short)["adapter_hash"]
    assert json.loads(report.read_text())["adapter_hash"] == wanted


def test_a_run_killed_and_resumed_ends_with_the_same_bits(unbroken, tmp_path):
    folder, report = broken_run(tmp_path, kills=3)
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    assert report["accuracy_matrix"] == unbroken[1]["accuracy_matrix"]
    assert len(report["rounds"]) == 9
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == (
        unbroken[0] / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert not list(folder.rglob(".*.new"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_twenty_times_ends_with_the_same_bits(unbroken, tmp_path, seed):
    _, report = broken_run(tmp_path, kills=20, seed=seed + 1)
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    assert report["accuracy_matrix"] == unbroken[1]["accuracy_matrix"]


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(unbroken, tmp_path):
    folder = tmp_path / "run"
    first = run(folder, TINY)
    again = run(folder, TINY)
    assert again["adapter_hash"] == first["adapter_hash"] == unbroken[1]["adapter_hash"]
    assert again["accuracy_matrix"] == first["accuracy_matrix"]


def test_the_run_goes_on_under_faults_and_counts_them(tmp_path):
    text = changed(
        TINY,
        shards__num_clients=8,
        simulation__faults__drop_rate=0.1,
        simulation__faults__straggle_rate=0.1,
        simulation__faults__garbage_rate=0.1,
        simulation__faults__nan_rate=0.1,
    )
    report = run(tmp_path / "run", text)
    assert report["finished"]
    causes = set(report["rejected"])
    assert {"dropped out", "late", "not finite"} <= causes
    assert causes - {"dropped out", "late", "not finite"} <= {
        "wrong length",
        "change out of range",
        "malformed body",
    }
    kept = sum(row["accepted"] for row in report["rounds"])
    assert kept + sum(report["rejected"].values()) == 9 * 8


def test_a_round_without_a_quorum_is_tried_again_then_the_run_stops_and_can_go_on(tmp_path):
    text = changed(TINY, simulation__faults__drop_rate=1.0, round__retries=1)
    with pytest.raises(RunError, match=r"min_replies = 1.*2 attempts.*'dropped out': 3.*resumed"):
        simulate(text, tmp_path / "run")
    events = [json.loads(x) for x in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events].count("round_failed") == 2
    # Nothing was lost: without the fault the same folder goes on from its start.
    assert run(tmp_path / "run", TINY)["finished"]


def test_a_cohort_is_asked_and_no_one_else(tmp_path):
    report = run(tmp_path / "run", changed(TINY, round__cohort=2))
    assert all(row["accepted"] == 2 for row in report["rounds"])


@pytest.mark.parametrize("strategy", ["ffa", "fedprox", "median"])
def test_other_strategies_run_to_the_end(strategy, tmp_path, unbroken):
    report = run(tmp_path / "run", changed(TINY, strategy__name=strategy, round__rounds=1))
    assert report["finished"]
    if strategy == "ffa":
        down, up = report["totals"]["bytes_down"], report["totals"]["bytes_up"]
        assert up < 0.75 * down


def test_a_shard_may_be_empty(tmp_path):
    text = changed(TINY, shards__num_clients=20, shards__alpha=0.01, round__rounds=1)
    report = run(tmp_path / "run", text)
    assert report["finished"]
    assert min(client["records_total"] for client in report["clients"]) == 0
    assert not report["rejected"]


def test_joint_training_has_one_domain(tmp_path):
    tree = changed(TINY, domains__joint=True, round__rounds=1).replace(
        'order = [\n    "bank",\n    "clinic",\n    "shop",\n]\n', ""
    )
    report = run(tmp_path / "run", tree)
    assert [d["name"] for d in report["domains"]] == ["all"]
    assert len(report["accuracy_matrix"]) == 1


def test_a_causal_model_runs_through_the_same_loop(tmp_path, llama_folder):
    rng = np.random.default_rng(0)
    rows = ["prompt,completion,domain"]
    for domain in ("x", "y"):
        for _ in range(40):
            a = int(rng.integers(0, 20))
            rows.append(f"w{a},w{(a + (1 if domain == 'x' else 2)) % 29},{domain}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    text = f"""
[data]
name = "csv"
train = "{tmp_path / "pairs.csv"}"
prompt = "prompt"
completion = "completion"
[shards]
num_clients = 2
[model]
name = "causal_lm"
base = "{llama_folder}"
[train]
lr = 1e-2
epochs = 4
[round]
rounds = 2
"""
    report = run(tmp_path / "run", text)
    assert report["finished"]
    losses = [row["loss"] for row in report["rounds"]]
    assert losses[1] < losses[0]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_resuming_with_another_config_is_refused_but_not_with_another_backend(tmp_path):
    folder = tmp_path / "run"
    text = changed(TINY, round__rounds=1)
    first = run(folder, text)
    for other in ({"model__rank": 2}, {"train__lr": 1e-3}, {"domains__order": ["shop", "bank"]}):
        with pytest.raises(RunError, match="Resume with the config, data and version"):
            simulate(changed(text, **other), folder)
    again = run(folder, changed(text, simulation__strict_wire=True, round__deadline_s=5.0))
    assert again["adapter_hash"] == first["adapter_hash"]


def test_missing_data_leaves_nothing_behind(tmp_path):
    text = changed(TINY, run__folder=str(tmp_path / "runs"), data__name="csv", data__train="no.csv")
    (tmp_path / "c.toml").write_text(text)
    process = start(tmp_path, "c.toml")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no.csv" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "runs").glob("*"))
    with pytest.raises(DataError):
        simulate(text, tmp_path / "x")


def test_what_was_told_to_a_process_that_died_before_its_first_checkpoint_is_void(tmp_path):
    told = {"ok": True, "cause": "", "bytes_up": 1, "records": 1.0, "loss": 1.0, "seconds": 1.0}
    with EventLog(tmp_path / "events.jsonl") as log:
        log.emit("round_started", domain=0, round=0, attempt=0, asked=3, bytes_down=1)
        log.emit("reply", domain=0, round=0, attempt=0, node=99, **told, epsilon={}, releases={})
    report = run(tmp_path, changed(TINY, domains__order=["bank"], round__rounds=1))
    assert len(report["clients"]) == 3
    assert 99 not in {client["node"] for client in report["clients"]}
