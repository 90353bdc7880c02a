"""What is declared against what is there: dependencies, versions, type markers, pinned tools."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "kernels", "export", "benchmarks")

# Where import and project name differ; None comes with a declared dependency, or is one of an older
# Python's.
PROJECTS = {
    "PIL": "pillow",
    "onnx_ir": None,
    "prometheus_client": "prometheus-client",
    "tomli": None,
    "triton": None,
}


def declared(extra: str = "") -> set[str]:
    """Names the core (or the core and an extra, with those that it names) requires."""
    names: set[str] = set()
    for requirement in map(Requirement, importlib.metadata.requires("livereel") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "livereel":
                names.update(*map(declared, requirement.extras))
            else:
                names.add(canonicalize_name(requirement.name))
    return names


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports from outside the standard library and LiveReel."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"livereel"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("engine", ("",)),
        ("kernels", ("",)),
        ("export", ("", "export")),
        ("benchmarks", ("", "dev")),
    ],
)
def test_imports_are_declared(folder: str, extras: tuple[str, ...]) -> None:
    allowed = set().union(*map(declared, extras))
    for path in sorted((ROOT / folder).rglob("*.py")):
        extra = declared("serve") if path.is_relative_to(ROOT / "engine/serve") else set()
        if path in (ROOT / "engine/media/metrics.py", ROOT / "engine/media/plot.py"):
            extra = declared("metrics")
        if path == ROOT / "engine/runners/onnx.py":
            extra = declared("export")
        if path.is_relative_to(ROOT / "engine/serve") and path.name.startswith("ray_"):
            extra = declared("ray")
        for module in imported(path):
            project = PROJECTS.get(module, canonicalize_name(module))
            assert project is None or project in allowed | extra, f"{path} imports {module}"


def test_every_package_is_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


def test_constraints_pin_what_the_tests_run_on() -> None:
    """Each line pins one version, and no direct dependency is left out."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), line
            pins[canonicalize_name(requirement.name)] = requirement
    assert str(pins["torch"].specifier) == "==2.13.0"
    for name in declared("dev"):
        assert name in pins, f"{name} is not pinned in constraints.txt"
