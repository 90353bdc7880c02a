"""The suite's frame, with stages that fail or do nothing: no GPU is needed for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from livereel.engine.cli.bench import _known

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.sh"


@pytest.mark.parametrize(
    ("code", "stages"),
    [
        (0, ["--test", "--stream", "--cogvideox"]),
        (7, ["--kernels"]),
        (0, ["--targets", "--clip", "--startup"]),
        (1, ["--targets"]),
    ],
)
def test_each_stage_stands_alone_and_leaves_its_outcome(
    tmp_path: Path, code: int, stages: list[str]
) -> None:
    # Stands for Python: runs the suite's own report, has a GPU, and says what stages would run.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = - ] && exec {sys.executable} "$@"\n[ "$1" = -c ] && exit 0\n'
        f'echo "$@"\nexit {code}\n'
    )
    python.chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    variables = {"PYTHON": str(python), "OUT": str(fetched), "COMMIT": "abc"}
    done = subprocess.run(
        [bash, str(SCRIPT), *stages, "--out", str(tmp_path / "out")],
        env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == (code != 0), done.stderr
    report = json.loads((tmp_path / "out" / "suite.json").read_text())
    names = [stage.removeprefix("--") for stage in stages]
    assert {name: stage["exit"] for name, stage in report["stages"].items()} == dict.fromkeys(
        names, code
    )
    assert report["versions"]["torch"] is not None and "chip" in report
    assert report["commit"] == "abc"
    with tarfile.open(fetched / "suite.tar.gz") as archive:
        kept = {name.removeprefix("./") for name in archive.getnames()}
    assert kept == {".", "suite.json", *(f"{name}.log" for name in names)}
    for name in names:
        assert (tmp_path / "out" / f"{name}.log").read_text().startswith("-m ")
    if "--targets" in stages:  # a bench that fails leaves the others their turn
        assert (tmp_path / "out" / "targets.log").read_text().count("--random-weights") == 9
        assert f"-m livereel.benchmarks.targets {tmp_path / 'out'}" in done.stdout


def test_every_kernel_is_timed() -> None:
    _, _, timed = SCRIPT.read_text().partition("bench kernels ")
    named = timed[: timed.index("}")].replace("\\\n", " ").split('kernels.json" ')[1].split()
    assert sorted(named) == _known()


def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES= exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), "--targets", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "gpu_suite: torch sees no CUDA device here\n"


def test_an_unknown_flag_gets_the_usage(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--fly"], capture_output=True, text=True)
    flags = "[--build] [--test] [--kernels] [--stream] [--cogvideox] [--out FOLDER]"
    assert done.returncode == 2 and flags in done.stdout and done.stdout.endswith("no git.\n")
