"""`--devices`: the same video from several processes, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from livereel.engine.cli import main

SECONDS = 30.0
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python",
    sys.executable, "-m", "livereel.engine.cli",
]  # fmt: skip
SHARE = max(1, torch.get_num_threads() // 2)  # threads of each of two processes


def words(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "generate", "a red ball", "--model", str(folder), "-o", f"{out}/", "--device", "cpu",
        "--dtype", "float32", "--frames", "13", *more,
    ]  # fmt: skip


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_same_video(tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    torch.set_num_threads(SHARE)
    assert main(words(tiny_folder, one)) == 0
    capfd.readouterr()
    assert main(words(tiny_folder, two, "--devices", "2")) == 0
    said = capfd.readouterr().out
    assert said.count("13 frames of 48x32") == 1
    assert len(pictures(one)) == 13
    assert pictures(one) == pictures(two)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--devices", "0"], "must be a whole number from 1 to 64"),
        (["--devices", "65"], "must be a whole number from 1 to 64"),
        (["--devices", "2", "--device", "cuda:1"], "names one GPU"),
    ],
)
def test_refused(
    more: list[str], says: str, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(words(tiny_folder, tmp_path / "out", *more)) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_too_little_memory(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("livereel.engine.memory.available_ram", lambda: 10**9)
    assert main(words(tiny_folder, tmp_path / "out", "--devices", "64")) == 2
    assert "64 processes need about" in capsys.readouterr().err


def test_torchrun_contradicted(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(words(tiny_folder, tmp_path / "out", "--devices", "2")) == 2
    assert "torchrun started 3 processes" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert main(words(tiny_folder, tmp_path / "out")) == 2
    assert "torchrun sets it to a whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun(tiny_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    torch.set_num_threads(SHARE)
    assert main(words(tiny_folder, one)) == 0
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    command = [*run, sys.executable, "-m", "livereel.engine.cli", *words(tiny_folder, two)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(SHARE)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("13 frames of 48x32") == 1
    assert pictures(one) == pictures(two)


@pytest.mark.slow
def test_death(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "livereel.engine.cli"]
    command += words(tiny_folder, tmp_path / "out", "--devices", "2", "--frames", "4000")
    code, told = killed(command, tmp_path, "spawn_main")
    assert code == 2
    assert told.splitlines()[-1] == "livereel: rank 1 was killed by SIGKILL"


@pytest.mark.slow
def test_death_under_torchrun(tiny_folder: Path, tmp_path: Path) -> None:
    """torchrun itself watches its ranks, and has them end."""
    command = [*TORCHRUN, *words(tiny_folder, tmp_path / "out", "--frames", "4000")]
    code, told = killed(command, tmp_path, "livereel.engine.cli")
    assert code != 0
    assert "SIGKILL" in told


def killed(command: list[str], folder: Path, rank: str) -> tuple[int, str]:
    """Kill the second rank of a job, by a word of its command, when there is something in the
    folder; gives the job's exit code and what it said. No rank outlives it."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stderr is not None
        while len(ranks := children(job.pid, rank)) < 2 or not any(folder.iterdir()):
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.1)
        os.kill(ranks[1], signal.SIGKILL)
        start = time.monotonic()
        code = job.wait(SECONDS)
        assert time.monotonic() - start < SECONDS
        told = job.stderr.read()
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    return code, told


def children(pid: int, word: str) -> list[int]:
    """Its ranks, in order: a process that multiprocessing starts for itself is none."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in pids if word in Path(f"/proc/{one}/cmdline").read_text()]
