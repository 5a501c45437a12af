"""The floors of the house, read off the imports."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The longest prefix that fits a module says its floor; a module imports only from its own floor or below.
FLOORS = {
    "vlbert_data.errors": 0,
    "vlbert_data.types": 0,
    "vlbert_data.boxes": 0,
    "vlbert_data.halves": 0,
    "vlbert_data.hub": 0,
    "vlbert_data.memory": 0,
    "vlbert_data.nearby": 0,
    "vlbert_data.ids": 0,
    "vlbert_data.runs": 0,
    "vlbert_data.compiled": 0,
    "vlbert_data.addresses": 0,
    "vlbert_data.copies": 0,
    "vlbert_data": 2,
    "vlbert_data.manifest": 1,
    "vlbert_data.index": 1,
    "vlbert_data.shards": 1,
    "vlbert_data.corpus": 1,
    "vlbert_data.token_file": 1,
    "vlbert_data.token_runs": 1,
    "vlbert_data.windows": 1,
    "vlbert_data.tokenizer": 1,
    "vlbert_data.weights": 1,
    "vlbert_train": 3,
    "vlbert_train.tokens": 4,
    "vlbert_train.batch": 4,
    "vlbert_train.loader": 4,
    "vlbert_train.assemble": 4,
    "vlbert_train.buffers": 4,
    "vlbert_train.examples": 4,
    "vlbert_train.features": 4,
    "vlbert_train.group": 4,
    "vlbert_train.images": 4,
    "vlbert_train.sets": 4,
    "vlbert_train.captions": 4,
    "vlbert_train.rois": 4,
    "vlbert_train.supply": 4,
    "vlbert_train.attention": 5,
    "vlbert_train.model": 5,
    "vlbert_train.pretrained": 5,
    "vlbert_train.loss": 5,
    "vlbert_train.optim": 5,
    "vlbert_train.distributed": 5,
    "vlbert_train.checkpoint": 5,
    "vlbert_train.metrics": 5,
    "vlbert_train.run_folder": 5,
    "vlbert_train.learner": 6,
    "vlbert_train.word_groups": 6,
    "vlbert_train.evaluate": 6,
    "vlbert_train.guesses": 6,
    "vlbert_train.trainer": 6,
    "cli": 7,
}
# Each heavy package has one home; naming it here is a decision.
HOMES = {
    "h5py": {"vlbert_data.shards.hdf5", "vlbert_data.importers"},
    "lmdb": {"vlbert_data.shards.lmdb", "vlbert_data.importers"},
    "PIL": {"vlbert_data.images", "vlbert_data.describe", "vlbert_data.detect", "vlbert_data.tour"},
    "numba": {"vlbert_data.compiled"},
    "llvmlite": {"vlbert_data.compiled"},
    "tensorboard": {"vlbert_train.metrics"},
    "torchvision": {"vlbert_data.detect", "vlbert_data.describe"},
    "click": {"cli"},
    "rich": {"cli"},
}
# What worker processes import must start at once.
LIGHT = (
    "vlbert_data.build.decode",
    "vlbert_data.build.writer",
    "vlbert_data.importers.make_shards",
    "vlbert_data.importers.run",
    "vlbert_data.verify",
    "vlbert_data.report",
    "cli.main",
)


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("vlbert_data", "vlbert_train", "cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {module} | {
                f"{module}.{alias.name}" for alias in node.names if is_module(f"{module}.{alias.name}")
            }
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def floor(name: str) -> int | None:
    fitting = [prefix for prefix in FLOORS if within(name, prefix)]
    return FLOORS[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_go_down_only(name: str, path: Path) -> None:
    own = floor(name)
    assert own is not None
    for imported in imports(path):
        other = floor(imported)
        # A package's own name (`from vlbert_data import __version__`) is no floor.
        if other is None or imported in {"vlbert_data", "vlbert_train", "cli"}:
            continue
        assert other <= own, f"{name} (floor {own}) imports {imported} (floor {other})"
        if name.startswith("vlbert_train"):
            assert other <= 1 or not imported.startswith("vlbert_data"), f"{name} imports {imported}: above floor 1"


def test_the_model_and_its_loss_see_the_config_and_the_batch_only() -> None:
    allowed = {"vlbert_train.batch", "vlbert_train.config", "vlbert_train.attention", "vlbert_data.errors"}
    for name, path in modules():
        if name in {"vlbert_train.model", "vlbert_train.loss"}:
            ours = {imported for imported in imports(path) if imported.split(".")[0] in {"vlbert_data", "vlbert_train"}}
            assert {imported for imported in ours if is_module(imported)} <= allowed | {"vlbert_train", "vlbert_data"}


@pytest.mark.parametrize("package", list(HOMES))
def test_heavy_packages_stay_in_their_homes(package: str) -> None:
    for name, path in modules():
        if any(within(imported, package) for imported in imports(path)):
            assert any(within(name, home) for home in HOMES[package]), f"{name} imports {package}"


@pytest.mark.parametrize("module", LIGHT)
def test_what_workers_import_loads_neither_torch_nor_a_compiler(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'transformers', 'pandas', 'numba'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_is_instant_and_loads_neither_torch_nor_transformers() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cli.main", "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
        loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert not loaded & {"torch", "transformers", "numpy", "pyarrow", "rich"}
        assert "build-shards" in done.stdout
    # Half a second is the promise; a shared machine that is busy may take three times as long.
    assert min(times) < 1.5


@pytest.mark.parametrize("command", ["build-shards", "import-features", "inspect-shard"])
def test_each_commands_help_loads_no_torch(command: str) -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.rstrip().endswith("[]")
    assert "Usage: vlb" in done.stdout
