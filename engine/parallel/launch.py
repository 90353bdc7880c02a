"""Starts a job's ranks as processes of this machine, gives them work, and ends them together.

A rank that dies ends the job within seconds: its process is watched, not its messages, since those
who wait for them may wait for long. Ranks end when the process that started them is gone, however
that went.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from .. import errors, machine
from ..errors import InputError, LiveReelError, ResourceError
from .group import MAX_RANKS, Group, LostError, joined

P = ParamSpec("P")
R = TypeVar("R")

_GRACE_S = 1.0
"""How long, after a first failure, others are waited for: theirs may be its cause."""
_END_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOST, _FAILED, _DIED = 1, 2, 3
"""How near to the cause what a rank says is."""


class Ranks:
    """So many processes, joined in a `Group` on "cpu" or "cuda", each with `threads` of the CPU
    (by default an even share of the cores).

    Raises `InputError` for a number out of range.
    """

    def __init__(self, count: int, device: str = "cpu", *, threads: int | None = None) -> None:
        if not 1 <= count <= MAX_RANKS:
            raise InputError(f"devices is {count}; wanted 1 to {MAX_RANKS}")
        self._folder = tempfile.TemporaryDirectory(prefix="livereel-")
        job = _Job(
            count=count,
            device=device,
            threads=threads or max(1, machine.cores() // count),
            place=Path(self._folder.name) / "meeting",
        )
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection[Any, Any]] = []
        self._processes: list[SpawnProcess] = []
        with _environment(OMP_NUM_THREADS=str(job.threads), **_LOCAL):
            for rank in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(rank, job, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [cast(int, process.pid) for process in self._processes]

    def run(
        self, function: Callable[Concatenate[Group, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> list[R]:
        """Call `function(group, *args)`, of a module's top level, on every rank; gives what each
        returned.

        What one raises ends the job and is raised here, in the words of the rank that began it. A
        SIGINT or SIGTERM meanwhile is the first rank's to answer: its answer ends the job, and the
        others' are None. A second one is a `KeyboardInterrupt`. Raises `ResourceError` for a rank
        that died.
        """
        if not self._processes:
            raise ResourceError("the ranks have ended")
        try:
            with _forwarded(self._processes[0]) as told:
                for pipe in self._pipes:
                    with contextlib.suppress(BrokenPipeError):  # told below, as a death
                        pipe.send((function, args, kwargs))
                return self._answers(told)
        except BaseException:
            self.close(patience=0.0)
            raise

    def _answers(self, told: list[int]) -> list[Any]:
        outcomes: dict[int, _Outcome] = {}
        deadline: float | None = None
        while len(outcomes) < len(self._pipes):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            open_: dict[object, int] = {
                what: rank
                for rank, pair in enumerate(zip(self._pipes, self._processes, strict=True))
                if rank not in outcomes
                for what in (pair[0], pair[1].sentinel)
            }
            ready = {open_[what] for what in wait(cast(Any, list(open_)), left)}
            if deadline is not None and not ready:
                break
            for rank in ready:
                outcomes[rank] = self._outcome(rank)
                if outcomes[rank].weight and deadline is None:
                    deadline = time.monotonic() + _GRACE_S
            if told and 0 in outcomes:
                break
        if told and 0 in outcomes and outcomes[0].weight == _DIED:
            raise KeyboardInterrupt  # it was not listening yet
        worst = max(outcomes.values(), key=lambda outcome: outcome.weight)
        if worst.weight:
            raise worst.error
        values = [outcomes[i].value if i in outcomes else None for i in range(len(self._pipes))]
        if len(outcomes) < len(values):
            self.close(patience=_GRACE_S)
        return values

    def _outcome(self, rank: int) -> _Outcome:
        """What a rank that answered, or died, has to say."""
        with contextlib.suppress(EOFError, OSError):
            if self._pipes[rank].poll():
                return cast(_Outcome, self._pipes[rank].recv())
        process = self._processes[rank]
        process.join(_END_S)
        return _Outcome(weight=_DIED, why=f"rank {rank} {_ending(process.exitcode)}")

    def close(self, patience: float = _END_S) -> None:
        """End the processes; those that take longer than `patience`, in seconds, are killed."""
        for pipe in self._pipes:
            pipe.close()  # at which a rank without work ends
        deadline = time.monotonic() + patience
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []
        self._folder.cleanup()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class _Job:
    count: int
    device: str
    threads: int
    place: Path


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What came of a rank's work; the one of most `weight` is the job's. `why` is told of an
    error, in the class of that `name` if it is one of ours, and `trace` is where it was raised."""

    value: Any = None
    weight: int = 0
    name: str = "ResourceError"
    why: str = ""
    trace: str = ""

    @property
    def error(self) -> LiveReelError:
        error: LiveReelError = getattr(errors, self.name)(self.why)
        error.__cause__ = RuntimeError(self.trace) if self.trace else None
        return error


def _work(rank: int, job: _Job, pipe: Connection[Any, Any]) -> None:
    """A rank's life."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C is for the first process, which hands it on to the first rank
    for number in _SIGNALS:  # what the first rank does may take them
        signal.signal(number, signal.SIG_IGN if rank else signal.SIG_DFL)
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(job.threads)
    try:
        with joined(
            torch.device(job.device), place=job.place, rank=rank, count=job.count
        ) as group, contextlib.suppress(EOFError, OSError):  # fmt: skip
            while True:
                function, args, kwargs = pipe.recv()
                pipe.send(_outcome_of(rank, lambda: function(group, *args, **kwargs)))  # noqa: B023
    except LiveReelError as error:  # no GPU, or nobody to meet
        with contextlib.suppress(OSError):
            pipe.send(_told(error))


def _outcome_of(rank: int, job: Callable[[], object]) -> _Outcome:
    try:
        return _Outcome(value=job())
    except LiveReelError as error:
        return _told(error)
    except (Exception, KeyboardInterrupt) as error:
        why = f"rank {rank} failed: {type(error).__name__}: {error}"
        return _Outcome(weight=_FAILED, why=why, trace=traceback.format_exc())


def _told(error: LiveReelError) -> _Outcome:
    lost = isinstance(error, LostError)
    name = "ResourceError" if lost else type(error).__name__
    weight = _LOST if lost else _FAILED
    return _Outcome(weight=weight, name=name, why=str(error), trace=traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


_LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
"""All ranks are on this machine: nothing of theirs is open to others."""


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _forwarded(process: SpawnProcess) -> Iterator[list[int]]:
    """Hand the first SIGINT or SIGTERM on to `process`; gives a list that it is then in."""
    told: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(cast(int, process.pid), number)

    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.signal(number, hand_on) for number in _SIGNALS}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
