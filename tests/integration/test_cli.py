"""The command as a user meets it: exit codes, messages, what is written and what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TINY = """
[run]
name = "t"
seed = 1
[data]
name = "sample"
[domains]
order = ["bank", "shop"]
[shards]
num_clients = 2
[model]
name = "tiny"
[round]
rounds = 2
"""


def perennial(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "perennial", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(TINY)
    return path


def test_help_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from perennial.cli.main import app; "
        "heavy = {'torch', 'flwr', 'transformers', 'peft', 'numpy.linalg', 'rich.live'}; "
        "assert not heavy & {'torch', 'flwr', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    done = perennial(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("check", "simulate", "report", "runs", "bundle"):
        assert command in done.stdout


def test_all_faults_of_a_config_come_at_once_and_nothing_is_written(tmp_path, config):
    config.write_text(TINY + '[train]\nlr = "fast"\nepocs = 3\n[nonsense]\n')
    for command in ("check", "simulate"):
        done = perennial(tmp_path, command, "c.toml")
        assert done.returncode == 2
        assert "3 faults" in done.stderr
        assert "[train.lr] must be" in done.stderr
        assert "'fast'" in done.stderr
        assert "[train.epocs] unknown key; did you mean 'epochs'?" in done.stderr
        assert "[nonsense] unknown key" in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.rank=0"], "[model.rank] must be greater than or equal to 1; got 0"),
        (["strategy.name=fedag"], "did you mean 'fedavg'?"),
        (["round.cohort=9"], "must be at most shards.num_clients = 2"),
        (["simulation.backend=ray", "simulation.strict_wire=true"], "no strict_wire"),
        (['domains.order=["bank", "moon"]'], "moon"),
        (["data.name=csv", "data.train=nowhere.csv"], "nowhere.csv"),
        (["train"], "must be table.key=value"),
        (["run.seed=-1"], "[run.seed] must be"),
        (["data.train=x.csv"], "[data.train] unknown option"),
    ],
)
def test_a_fault_has_exit_code_2_and_says_what_to_do(tmp_path, config, settings, message):
    done = perennial(tmp_path, "check", "c.toml", *[a for s in settings for a in ("--set", s)])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_check_describes_a_sound_config(tmp_path, config):
    done = perennial(tmp_path, "check", "c.toml")
    assert done.returncode == 0, done.stderr
    assert "600 train" in done.stdout
    assert "bank, shop" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate"], "give a FILE, or --resume RUN"),
        (["simulate", "no.toml"], "no.toml must be a config file; there is none"),
        (["simulate", "--resume", "nothing"], "must be a run folder"),
        (["simulate", "c.toml", "--resume", "x"], "not both"),
        (["report", "nothing"], "must be a run folder"),
        (["check", "binary.toml"], "UTF-8"),
    ],
)
def test_wrong_arguments_have_exit_code_2(tmp_path, config, arguments, message):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    done = perennial(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "runs").exists()


def test_a_run_from_start_to_report(tmp_path, config):
    done = perennial(tmp_path, "simulate", "c.toml")
    assert done.returncode == 0, done.stderr
    assert "accuracy, percent" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert f"report: {Path('runs') / run.name / 'report.html'}" in done.stdout
    assert (run / "log.txt").is_file()

    listed = perennial(tmp_path, "runs")
    assert run.name in listed.stdout
    assert "finished" in listed.stdout

    (run / "report.html").unlink()
    rebuilt = perennial(tmp_path, "report", run.name)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert (run / "report.html").is_file()

    again = perennial(tmp_path, "simulate", "--resume", run.name, "--quiet")
    assert again.returncode == 0, again.stderr
    assert again.stdout == ""
    assert "cannot change" in perennial(
        tmp_path, "simulate", "--resume", run.name, "--set", "run.seed=2"
    ).stderr.replace("│", " ")


def test_json_shows_every_event_and_set_changes_the_run(tmp_path, config):
    done = perennial(tmp_path, "simulate", "c.toml", "--json", "--set", "round.rounds=1")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[0]["config"]["round"]["rounds"] == 1
    assert events[-1]["event"] == "run_finished"
    (run,) = (tmp_path / "runs").iterdir()
    assert "rounds = 1" in (run / "config.toml").read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, config):
    (tmp_path / "file").write_text("")
    done = perennial(tmp_path, "simulate", "c.toml", "--set", "run.folder=file/runs")
    assert done.returncode == 2
    assert "[run.folder]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_fails_says_where_the_details_are(tmp_path, config):
    done = perennial(tmp_path, "simulate", "c.toml", "--set", "simulation.faults={drop_rate = 1.0}")
    assert done.returncode == 1
    assert "dropped out" in done.stderr
    assert "log.txt" in done.stderr
    assert "Traceback" not in done.stderr


SPY = """
import os, socket
real = socket.socket.connect
def connect(self, address):
    with open(os.environ["SPY"], "a") as file:
        file.write(f"{address}\\n")
    return real(self, address)
socket.socket.connect = connect
resolve = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    with open(os.environ["SPY"], "a") as file:
        file.write(f"lookup {host}\\n")
    return resolve(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def test_a_run_on_the_embedded_default_opens_no_connection(tmp_path):
    spy, seen = tmp_path / "spy", tmp_path / "seen.txt"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    demo = Path(__file__).parents[2] / "examples" / "demo.toml"
    shorter = ["round.rounds=1", "train.epochs=1", 'domains.order=["bank"]']
    done = perennial(
        tmp_path,
        "simulate",
        str(demo),
        *[a for s in shorter for a in ("--set", s)],
        PYTHONPATH=str(spy),
        SPY=str(seen),
    )
    assert done.returncode == 0, done.stderr
    lines = seen.read_text().splitlines() if seen.exists() else []
    here = ("127.0.0.1", "lookup localhost")
    assert [line for line in lines if not any(name in line for name in here)] == []
    # The spy works: a connection of any kind would have been seen.
    check = "import socket; socket.socket().connect_ex(('127.0.0.1', 9)); socket.create_connection"
    probe = f"{check}(('127.0.0.1', 9), 1)"
    subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(spy), "SPY": str(seen)},
        capture_output=True,
    )
    assert "127.0.0.1" in seen.read_text()


def test_a_reader_that_leaves_does_not_stop_the_run(tmp_path, config):
    command = f"{sys.executable} -m perennial simulate c.toml --json"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "report.json").read_text())["finished"]


def test_one_damaged_run_does_not_hide_the_others(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text(TINY)
    (tmp_path / "runs" / "a" / "events.jsonl").write_text("junk\nmore junk\n")
    done = perennial(tmp_path, "runs")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout
    assert "not begun" in done.stdout
