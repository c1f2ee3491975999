"""The thin bundle: no code, no dependency, and nobody else's files."""

import tomllib

import pytest

from perennial.core.errors import DataError
from perennial.server.bundle import write_bundle, write_service_bundle
from perennial.simulations.compat import packed

TEXT = '[data]\nname = "sample"\n[model]\nname = "tiny"\n'


def test_a_bundle_names_the_installed_apps_and_asks_an_index_for_nothing(tmp_path):
    folder = write_bundle(tmp_path / "app", TEXT, "runs/x")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    app = project["tool"]["flwr"]["app"]
    assert app["components"]["clientapp"] == "perennial.client.app:app"
    assert app["config"] == {"config": TEXT, "folder": "runs/x", "keyholder": ""}
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "pyproject.toml"]
    assert "Apache License" in (folder / "LICENSE").read_text()
    write_bundle(folder, TEXT)  # a bundle of ours may be written anew


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    with pytest.raises(DataError, match=r"holds other files\. Give another folder"):
        write_bundle(tmp_path, TEXT)
    assert "mine" in (tmp_path / "pyproject.toml").read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_bundle_of_services_has_one_hash_wherever_it_is_written(tmp_path):
    one = packed(write_service_bundle(tmp_path / "one"))
    other = packed(write_service_bundle(tmp_path / "deep" / "other"))
    assert one == other
    assert packed(write_bundle(tmp_path / "app", TEXT)) != one
