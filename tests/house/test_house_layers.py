"""The house keeps its shape: imports run one way, heavy libraries have one door each."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = sorted({name.split(".")[1] for name in PACKAGES if "." in name})

LEAVES = {"core": set()} | {
    name: {"core"} for name in ("strategies", "privacy", "continual", "models", "data", "export")
}
MAY_IMPORT = LEAVES | {
    "client": {"core", "models", "data"},
    "server": {"core", "models", "data"},
    "simulations": set(FOLDERS) - {"cli", "export"},
    "export": set(FOLDERS) - {"cli", "simulations"},
    "cli": set(FOLDERS),
}

# Library -> the files (or folders) that may import it.
DOORS = {
    "opacus": ("privacy/dp_sgd.py", "privacy/opacus_route.py", "privacy/crosscheck.py"),
    "dp_accounting": ("privacy/accounting.py",),
    "tenseal": ("privacy/lattice.py",),
    "cryptography": ("privacy/",),
    "zstandard": ("privacy/lattice.py",),
    "grpc_health": ("privacy/",),
    "grpc": ("privacy/",),
    "faiss": ("continual/index.py",),
    "peft": ("models/",),
    "transformers": ("models/",),
    "flwr": (
        "client/app.py",
        "client/worker.py",
        "server/app.py",
        "server/fetch.py",
        "server/superlink.py",
        "simulations/",
    ),
    "torch": ("models/", "client/", "privacy/", "continual/", "export/"),
    "rich": ("cli/",),
    "typer": ("cli/",),
    "prometheus_client": ("cli/metrics.py",),
    "mlflow": ("server/mlflow_mirror.py",),
    "tensorboard": ("server/tensorboard.py",),
    "pyarrow": ("data/parquet.py",),
    "datasets": ("data/hub.py",),
    "gguf": ("export/gguf.py",),
    "onnx": ("export/",),
    "onnx_ir": ("export/",),
    "onnxruntime": ("export/",),
    "tokenizers": ("export/",),
    "avalanche": ("simulations/avalanche_streams.py",),
}


def sources() -> list[Path]:
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def imports(path: Path) -> list[tuple[int, str]]:
    """(number of leading dots, module) of every import in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [alias.name for alias in node.names] if not module else [""]
            found += [(node.level, f"{module}.{name}".strip(".")) for name in names]
    return found


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    depth = len(path.relative_to(ROOT).parts)
    for level, module in imports(path):
        if level != depth or not module:
            assert level < depth or not module
            continue
        target = module.split(".")[0]
        if target in FOLDERS and target != folder_of(path):
            assert target in MAY_IMPORT[folder_of(path)], f"{path} imports {target}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_own_modules_are_imported_relatively(path):
    assert not [m for level, m in imports(path) if level == 0 and m.split(".")[0] == "perennial"]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_heavy_library_has_its_door(path):
    here = str(path.relative_to(ROOT))
    for level, module in imports(path):
        doors = DOORS.get(module.split(".")[0]) if level == 0 else None
        if doors is not None:
            assert any(here == door or here.startswith(door) for door in doors), (here, module)


def test_core_stands_on_numpy_pydantic_and_the_standard_library():
    import sys

    allowed = {"numpy", "pydantic", "__future__"} | set(sys.stdlib_module_names)
    for path in (ROOT / "core").glob("*.py"):
        for level, module in imports(path):
            assert level or module.split(".")[0] in allowed, (path, module)


def test_no_import_cycle_between_modules():
    graph = {}
    for path in sources():
        here = path.relative_to(ROOT).with_suffix("").parts
        found = set()
        for level, module in imports(path):
            if level:
                base = here[: len(here) - level]
                found.add(tuple(base) + tuple(module.split(".")))
        graph[here] = found
    graph = {node: {e for e in edges if e in graph} for node, edges in graph.items()}
    done, open_ = set(), []

    def visit(node):
        assert node not in open_, f"cycle: {[*open_, node]}"
        if node in done:
            return
        open_.append(node)
        for edge in graph[node]:
            visit(edge)
        open_.pop()
        done.add(node)

    for node in graph:
        visit(node)


def test_packages_list_every_folder_of_the_tree():
    there = {
        "perennial." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PACKAGES) == there | {"perennial"}


def test_nothing_importable_lies_at_the_root_but_the_package_itself():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_print_only_in_cli_and_stay_readable(path):
    text = path.read_text()
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not prints or folder_of(path) == "cli"
    assert text.count("\n") <= 420, f"{path} is telling you something"
    assert path.name != "utils.py"
