"""Several sessions' chunks at once on one processor, its cores shared out among them.

A small model's layers are too short for many cores: threads wait for one another at the end of
each. With a chunk of its own to work on no core waits, so n chunks abreast take less time than n
passes of all cores one after the other, and come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class Abreast:
    """Runs up to `most` jobs at once, and no more than there are `threads` to share."""

    def __init__(self, *, most: int, threads: int) -> None:
        self._threads = threads
        self.most = min(most, threads)
        self._pool = ThreadPoolExecutor(self.most, "abreast")

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """What each job gives or raises; one alone has all threads."""
        if len(jobs) == 1:
            return [_outcome(jobs[0])]
        share = max(1, self._threads // min(len(jobs), self.most))
        return list(self._pool.map(lambda job: self._one(job, share), jobs))

    @staticmethod
    def _one(job: Callable[[], T], threads: int) -> T | Exception:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # of this thread's own
        return _outcome(job)


def _outcome(job: Callable[[], T]) -> T | Exception:
    try:
        return job()
    except Exception as error:
        return error
