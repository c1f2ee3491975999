"""What holds for every target in `export/`, so for a new file at once."""

import hashlib

import pytest

from perennial.core import plugins
from perennial.core.parts import Export

# Options that a target requires; one that is not here is built with its defaults.
OPTIONS = {}


@pytest.fixture(params=plugins.names("export", Export))
def export(request):
    return plugins.load("export", request.param, OPTIONS.get(request.param, {}), Export)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    from perennial.models import encoder_classifier

    folder = tmp_path_factory.mktemp("release") / "adapter"
    model = encoder_classifier.build(layers=1)
    model.fit_labels(["greet", "part"])
    model.save(folder)
    return folder


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_artefact_is_written_and_the_adapter_left_alone(export, adapter, tmp_path):
    before = digests(adapter)
    artefact = export.write(adapter, tmp_path / "artefact")
    assert artefact.is_dir()
    assert digests(artefact)
    assert digests(adapter) == before


def test_none_hands_the_adapter_on(adapter, tmp_path):
    from perennial.export import none

    target = tmp_path / "artefact"
    assert none.build().write(adapter, target) == adapter
    assert not target.exists()
