"""Ranks as processes: they are several, they work, and none outlives the job or its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from livereel.engine import InputError, ResourceError
from livereel.engine.parallel.launch import Ranks

SECONDS = 20.0
"""Far more than a job's end takes, and far less than a hang."""


def gone(pid: int) -> bool:
    """Whether the process has ended, or is about to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if all(map(gone, pids)):
            return True
        time.sleep(0.05)
    return False


def test_work_and_errors(jobs: ModuleType) -> None:
    with Ranks(2, threads=1) as ranks:
        told = ranks.run(jobs.who)
        assert [one[1:] for one in told] == [(0, 2, 1), (1, 2, 1)]
        assert [one[0] for one in told] == ranks.pids
        assert len({os.getpid(), *ranks.pids}) == 3
        assert ranks.run(jobs.trade) == [True, True]
        pids, start = ranks.pids, time.monotonic()
        with pytest.raises(InputError, match=r"^width is 7; wanted a multiple of 16$"):
            ranks.run(jobs.refuse, 1)
        assert time.monotonic() - start < SECONDS
        assert all_gone(pids)
        with pytest.raises(ResourceError, match="have ended"):
            ranks.run(jobs.who)


def test_death(jobs: ModuleType) -> None:
    with Ranks(2, threads=1) as ranks:
        ranks.run(jobs.who)
        pids, start = ranks.pids, time.monotonic()
        with pytest.raises(ResourceError, match=r"^rank 1 was killed by SIGKILL$"):
            ranks.run(jobs.die, 1)
        assert time.monotonic() - start < SECONDS
        assert all_gone(pids)


@pytest.mark.slow
def test_death_of_the_first_and_mistakes(jobs: ModuleType) -> None:
    with Ranks(3, threads=1) as ranks, pytest.raises(ResourceError, match="rank 0 was killed"):
        ranks.run(jobs.die, 0)
    with Ranks(2, threads=1) as ranks:
        with pytest.raises(ResourceError, match="failed: ValueError: a mistake of ours") as caught:
            ranks.run(jobs.err)
        assert "in err" in str(caught.value.__cause__)


@pytest.mark.slow
def test_first_rank_answers_a_stop(jobs: ModuleType, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def stop() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with Ranks(2, threads=1) as ranks:
        ranks.run(jobs.who)
        pids = ranks.pids
        threading.Thread(target=stop, daemon=True).start()
        assert ranks.run(jobs.wait_for_stop, str(ready)) == ["stopped", None]
        assert all_gone(pids)


@pytest.mark.slow
def test_ranks_end_with_their_starter(path: Path, tmp_path: Path) -> None:
    code = f"""if __name__ == "__main__":
        import rank_jobs
        from livereel.engine.parallel.launch import Ranks
        ranks = Ranks(2, threads=1)
        ranks.run(rank_jobs.who)
        print(*ranks.pids, flush=True)
        ranks.run(rank_jobs.wait_for_stop, {str(tmp_path / "ready")!r})"""
    folders = [str(path), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
    ) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        starter.kill()
    assert all_gone(pids)


@pytest.mark.parametrize("count", [0, 65])
def test_number_is_bounded(count: int) -> None:
    with pytest.raises(InputError, match="wanted 1 to 64"):
        Ranks(count)
