"""The built wheel: what is in it, and that it works on its own, away from the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[1]
PROMPT = "a large red star moving right on a black background"


def run(*command: str | Path, cwd: Path) -> str:
    """Run outside the repository, with nothing of ours on the path; give what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def generates_a_clip(python: Path, cwd: Path) -> None:
    """The installed package, robbed of what only training needs, makes one clip."""
    where = run(
        python,
        "-c",
        "import json, livereel.engine, livereel.engine.native._core as core\n"
        "print(json.dumps([livereel.engine.__file__, core.__file__]))",
        cwd=cwd,
    )
    package, core = map(Path, json.loads(where))
    assert package.is_relative_to(cwd)
    assert core.is_relative_to(cwd)
    for name in ("scenes.py", "train.py"):
        (package.parent / "demo" / name).unlink()
    clip = cwd / "clip.mp4"
    run(python.with_name("livereel"), "generate", PROMPT, "--seconds", "1", "-o", clip, cwd=cwd)
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 16
    assert frames[0].to_ndarray(format="rgb24").max() > 128


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for package in ("engine", "kernels", "export", "benchmarks"):
        assert {f"livereel/{package}/__init__.py", f"livereel/{package}/py.typed"} <= names
    assert f"livereel/engine/native/_core{suffix}" in names
    assert "livereel/engine/native/_core.pyi" in names
    assert "livereel/__init__.py" not in names
    # All that the tree holds arrives, weights included, and nothing else.
    tree = {
        f"livereel/{path.relative_to(ROOT).as_posix()}"
        for package in ("engine", "kernels", "export", "benchmarks")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    built = {f"livereel/engine/native/_core{suffix}"}
    assert {name for name in names if ".dist-info/" not in name} == tree | built


def test_sdist_builds_what_the_tree_builds(wheel: Path, tmp_path: Path) -> None:
    """The source archive holds all that a build reads, and neither tools' folders nor results."""
    run(
        sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT,
        cwd=tmp_path,
    )  # fmt: skip
    (archive,) = tmp_path.glob("livereel-*.tar.gz")
    names = {line.split("/", 1)[-1] for line in run("tar", "tzf", archive, cwd=tmp_path).split()}
    assert {"pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "csrc/philox.cpp"} <= names
    assert "engine/demo/weights/model_index.json" in names
    assert not [name for name in names if name.startswith((".venv", "build/", "out/", ".git/"))]


def test_generates_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """A new environment that has our dependencies but none of our own files."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--ignore-installed", wheel, cwd=tmp_path,
    )  # fmt: skip
    generates_a_clip(python, tmp_path)


@pytest.mark.slow
def test_generates_after_a_real_install(wheel: Path, tmp_path: Path) -> None:
    """The same with the declared dependencies alone, fetched by pip."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=tmp_path)
    generates_a_clip(python, tmp_path)
