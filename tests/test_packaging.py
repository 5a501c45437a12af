"""What pyproject.toml promises: everything that is imported is declared, and everything that is read is installed."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vlbert_data import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("vlbert_data", "vlbert_train", "cli")
# Import names that are not those of the package that brings them.
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
# Used only where it is there, as a faster way to the same values.
OPTIONAL = {"torchvision"}


def name_of(requirement: str) -> str:
    """Return the normal form of a distribution's name in a requirement."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported() -> set[str]:
    """Return the first names of all modules that our packages import, anywhere in a file."""
    found: set[str] = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_package_that_is_imported_is_declared_and_none_besides() -> None:
    declared = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
    wanted = {DISTRIBUTIONS.get(name, name) for name in imported() - OPTIONAL}
    assert wanted == declared


def test_every_dependency_has_the_one_version_that_is_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in lines if "==" in line}
    wanted = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
    wanted |= {name_of(requirement) for requirement in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert wanted <= pinned


def test_the_version_is_said_once_and_the_same() -> None:
    assert PROJECT["project"]["version"] == __version__
    said = subprocess.check_output([sys.executable, "-m", "cli.main", "--version"], text=True, cwd=ROOT)
    assert said == f"vlb, version {__version__}\n"


def test_a_wheel_holds_all_that_is_read_at_run_time(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    build = (
        "import sys; from setuptools import build_meta; "
        f"sys.argv = ['build']; print(build_meta.build_wheel({str(tmp_path)!r}))"
    )
    copy = tmp_path / "project"
    copy.mkdir()
    for name in (*PACKAGES, "recipes", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-rL", str(ROOT / name), str(copy)], check=True)
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=copy, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("vlbert-")}
    # A link to a folder, such as that of the recipes, is followed: what it leads to is installed too.
    wanted = {path.relative_to(copy).as_posix() for package in PACKAGES for path in (copy / package).rglob("*.*")}
    wanted = {name for name in wanted if "__pycache__" not in name and not (copy / name).is_dir()}
    assert wanted - inside == set()
    assert any(name.startswith("cli/pages/assets/") for name in inside)
    assert any(name.startswith("vlbert_train/recipes/") for name in inside)
