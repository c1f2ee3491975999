import pytest

from perennial.core import plugins
from perennial.core.check import KINDS
from perennial.core.errors import ConfigError
from perennial.core.parts import Export, Privatizer, SecureSum, Source, Strategy
from perennial.core.signed import Signatures

OUTSIDE = """
from typing import Annotated, Literal
from pydantic import Field
from perennial.core.parts import Strategy
from perennial.strategies import fedavg

def build(
    *,
    need: int,
    rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5,
    mode: Literal["a", "b"] = "a",
    source: str | dict[str, str] = "",
    sizes: tuple[int, ...] = (),
) -> Strategy:
    rule = fedavg.build()
    seen.append((need, rate, mode, source, sizes))
    return rule

seen = []
"""


@pytest.fixture
def outside(tmp_path, monkeypatch, request):
    """Name of a plug-in module outside the package; unique, since modules stay imported."""
    package = f"outside_{abs(hash(request.node.name))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "rule.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{package}.rule"


def faults(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return {fault.place: str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize("table", sorted(KINDS))
def test_every_kind_has_plugins(table):
    kind, part = KINDS[table]
    assert plugins.names(kind, part)
    assert set(plugins.names(kind, part)) <= set(plugins.names(kind))


def test_names_are_files_with_a_build_of_that_part():
    assert "fedavg" in plugins.names("strategies", Strategy)
    assert "plain" in plugins.names("privacy", SecureSum)
    assert "plain" not in plugins.names("privacy", Privatizer)
    assert "balanced" in plugins.names("export", Export)
    assert "bases" not in plugins.names("models")
    assert plugins.names("no_such_folder") == []


def test_every_file_of_a_plugin_folder_is_of_a_known_part():
    # Signatures have no table: services ask for them, whatever a config says.
    known = [*KINDS.values(), ("privacy", Signatures)]
    for kind in {kind for kind, _ in known}:
        of_parts = [n for k, part in known if k == kind for n in plugins.names(kind, part)]
        assert sorted(of_parts) == plugins.names(kind)


def test_load_builds_with_the_options():
    strategy = plugins.load("strategies", "fedprox", {"mu": 2}, Strategy)
    assert strategy.pull({"w": 5.0}, {"w": 2.0}) == {"w": 6.0}


@pytest.mark.parametrize(
    "name", ["fedavgg", "__init__", "", ".x", ".", "..", "../fedavg", "a/b", "a-b.c"]
)
def test_no_such_plugin(name):
    found = faults(lambda: plugins.load("strategies", name, {}, Strategy, "strategy"))
    assert list(found) == ["strategy.name"]
    assert f"no strategies plug-in {name!r}" in found["strategy.name"]
    assert "allowed: fedavg, fedprox" in found["strategy.name"]


@pytest.mark.parametrize("name", ["no_such_package.rule", "os.path", "perennial.core.values"])
def test_a_module_that_is_no_plugin(name):
    found = faults(lambda: plugins.load("strategies", name, {}, Strategy))
    assert f"{name!r} cannot be loaded" in found["strategies.name"]


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("privacy", "plain", Privatizer),
        ("privacy", "none", SecureSum),
        ("strategies", "perennial.continual.none", Strategy),
    ],
)
def test_a_plugin_of_the_wrong_part(kind, name, part):
    found = faults(lambda: plugins.load(kind, name, {}, part, "table"))
    assert f"{name!r} does not build a {part.__name__}" in found["table.name"]
    assert name not in found["table.name"].split("allowed: ")[1].split(", ")


def test_a_plugin_from_outside(outside):
    import importlib

    options = {"need": 1, "rate": 1, "source": {"a": "b"}, "sizes": (1, 2)}
    assert isinstance(plugins.load("strategies", outside, options, Strategy), Strategy)
    assert importlib.import_module(outside).seen == [(1, 1.0, "a", {"a": "b"}, (1, 2))]
    assert isinstance(importlib.import_module(outside).seen[0][1], float)


def test_all_faults_of_the_options_come_at_once(outside):
    options = {
        "rate": 2.0,
        "mode": "c",
        "source": 3,
        "sizes": (1, "x"),
        "raet": 0.1,
    }
    found = faults(lambda: plugins.load("strategies", outside, options, Strategy, "strategy"))
    assert found == {
        "strategy.need": "[strategy.need] must be given",
        "strategy.rate": "[strategy.rate] must be less than or equal to 1; got 2.0",
        "strategy.mode": "[strategy.mode] must be 'a' or 'b'; got 'c'",
        "strategy.source": "[strategy.source] must be a valid string or must be a table; got 3",
        "strategy.sizes.1": "[strategy.sizes.1] must be a valid integer; got 'x'",
        "strategy.raet": "[strategy.raet] unknown option; did you mean 'rate'? "
        "allowed: mode, need, rate, sizes, source",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, "1"])
def test_an_option_that_is_no_number(value):
    options = {"server_lr": value}
    assert "strategy.server_lr" in faults(
        lambda: plugins.load("strategies", "fedavg", options, Strategy, "strategy")
    )


def test_faults_are_what_load_would_refuse_and_build_nothing(outside):
    import importlib

    assert plugins.faults("strategies", outside, {"need": 1}, Strategy, "s") == ()
    (fault,) = plugins.faults("strategies", outside, {"need": "1"}, Strategy, "s")
    assert fault.place == "s.need"
    assert importlib.import_module(outside).seen == []


def test_a_source_says_what_it_misses():
    assert "data.train" in faults(lambda: plugins.load("data", "csv", {}, Source, "data"))


@pytest.mark.parametrize(
    "content",
    [
        "def build(:",
        "from __future__ import annotations\ndef build(*, x: int = 1) -> Strategy: ...",
        "build = 3",
        "import no_such_library_of_anyone",
        "x = 1",
    ],
)
def test_a_plugin_from_outside_that_cannot_be_loaded_is_a_fault(outside, tmp_path, content):
    name = outside.replace(".rule", ".broken")
    (tmp_path / name.replace(".", "/")).with_suffix(".py").write_text(content)
    found = faults(lambda: plugins.load("strategies", name, {}, Strategy, "strategy"))
    assert "cannot be loaded: " in found["strategy.name"]
    assert "installed or on PYTHONPATH" in found["strategy.name"]


def test_a_process_may_be_told_which_modules_from_outside_it_may_import(tmp_path, monkeypatch):
    mark = tmp_path / "imported"
    (tmp_path / "sly_rule.py").write_text(f"open({str(mark)!r}, 'w').close()\n{OUTSIDE}")
    (tmp_path / "sly").mkdir()
    (tmp_path / "sly" / "__init__.py").write_text("")
    (tmp_path / "sly" / "rule.py").write_text((tmp_path / "sly_rule.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    for listed in ("", "sly", "other.rule"):
        monkeypatch.setenv(plugins.ALLOWED, listed)
        with pytest.raises(ConfigError, match="not on this machine's list"):
            plugins.load("strategies", "sly.rule", {"need": 1}, Strategy)
        assert not mark.exists()  # not even looked at
    assert plugins.load("strategies", "fedavg", {}, Strategy)
    monkeypatch.setenv(plugins.ALLOWED, "other.rule,sly.rule")
    assert plugins.load("strategies", "sly.rule", {"need": 1}, Strategy)
    assert mark.exists()
