"""What is in the wheel, and that it works away from its sources; `make check` builds it first."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = sorted((ROOT / ".build").glob("*.whl"))
TOPS = ("tests", "benchmarks", "examples", ".venv", ".build", "build")
SOURCES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in TOPS]
FRESH = WHEELS and all(p.stat().st_mtime <= WHEELS[-1].stat().st_mtime for p in SOURCES)
needs_wheel = pytest.mark.skipif(
    not FRESH, reason="no wheel of these sources: run `make check`, which builds it"
)


@needs_wheel
def test_the_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(WHEELS[-1]) as wheel:
        names = wheel.namelist()
    modules = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("perennial/") for name in modules)
    tops = {name.split("/")[1] for name in modules}
    assert not tops & {"tests", "benchmarks", "examples", "docs", "build", "runs"}
    for wanted in ("perennial/py.typed", "perennial/data/embedded/requests.csv"):
        assert wanted in names
    sources = {
        f"perennial/{path.relative_to(ROOT)}" for path in SOURCES if "__pycache__" not in path.parts
    }
    assert {name for name in modules if name.endswith(".py")} == sources
    assert any(name.endswith("licenses/LICENSE") for name in names)


@needs_wheel
def test_the_wheel_runs_away_from_its_sources(tmp_path):
    python = ROOT / ".build" / "env" / "bin" / "python"
    code = "import perennial; print(perennial.__file__, perennial.__version__)"
    out = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert ".build" in out
    help_ = subprocess.run(
        [python.parent / "perennial", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert help_.returncode == 0
    assert "simulate" in help_.stdout
