"""An MLflow registry follows the releases: versions, figures, files, and which one serves."""

import pytest

from perennial.cli.releasing import signer
from perennial.core.errors import RunError
from perennial.server import releases
from perennial.server.mlflow_mirror import ALIAS, mirror

tracking = pytest.importorskip("mlflow.tracking", reason="mlflow-skinny is not installed")


@pytest.fixture
def home(tmp_path):
    made = tmp_path / "home"
    made.mkdir()
    return made


def cut(home, number):
    source = home / "adapter.bin"
    source.write_bytes(bytes([number]) * 9)
    accuracy = {"bank": 0.5 + number / 10, "city & more": 0.25}
    card = {"accuracy": accuracy, "epsilon": 1.5 * number, "domains": ["bank"]}
    parent = number - 1 or None
    return releases.cut(home, {"adapter/a.bin": source}, card, signer(home), parent)


def test_the_registry_follows_and_calls_may_be_repeated(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = cut(home, 1)
    releases.promote(home, 1)
    assert mirror(home, uri, "fleet") == [1]
    cut(home, 2)
    releases.promote(home, 2)
    assert mirror(home, uri, "fleet") == [2]
    assert mirror(home, uri, "fleet") == []
    seen = tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
    assert len(seen.search_model_versions("name = 'fleet'")) == 2
    version = seen.get_model_version_by_alias("fleet", ALIAS)
    assert (version.tags["release"], version.tags["parent"]) == ("0002", "1")
    metrics = seen.get_run(version.run_id).data.metrics
    assert metrics == {"accuracy.bank": 0.7, "accuracy.city _ more": 0.25, "epsilon": 3.0}
    folder = seen.download_artifacts(version.run_id, "release", str(tmp_path))
    assert (home / "mlruns").is_dir()  # and nothing where the command was called
    assert (tmp_path / folder / "adapter" / "a.bin").read_bytes() == bytes([2]) * 9

    assert not (tmp_path / "mlruns").exists()

    releases.rollback(home)
    assert mirror(home, uri, "fleet") == []
    assert seen.get_model_version_by_alias("fleet", ALIAS).tags["digest"] == first.digest


def test_a_registry_that_cannot_be_had_is_named(home, tmp_path):
    cut(home, 1)
    with pytest.raises(RunError, match="MLflow registry at"):
        mirror(home, "nowhere://x", "fleet")
