"""Ranks that compute together, and the ways in which tensors go between them.

All ways are made of point-to-point messages, which NCCL and gloo both have for tensors of any
shape and of different sizes from rank to rank; a message of nothing is not sent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, ResourceError

MAX_RANKS = 64


class LostError(ResourceError):
    """Another rank is gone, or the way to it: not the cause of what goes wrong."""


TIMEOUT = timedelta(hours=1)
"""How long a rank waits for a message. A rank that has died ends the job long before
(`launch.Ranks`, or torchrun); this bounds the wait for one that computes."""


@dataclass(frozen=True)
class Group:
    """Some of a job's ranks, in an order of their own, as one of them sees it.

    `ranks` are their numbers in the job and `rank` is this one's place among them.
    """

    rank: int
    ranks: tuple[int, ...]
    device: torch.device

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.ranks)

    def part(self, *places: int) -> Group | None:
        """The group of the ranks at these places alone; None on a rank that is not among them."""
        ranks = tuple(self.ranks[place] for place in places)
        own = self.ranks[self.rank]
        return Group(ranks.index(own), ranks, self.device) if own in ranks else None

    def exchange(self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> Exchange:
        """Begin to send tensors to the ranks at these places, and to fill others from them.

        Tensors must be contiguous and of the same shape on both sides, and stay untouched until
        `Exchange.wait`, without which they may not arrive. Those between two ranks arrive in the
        order that they were sent in.
        """
        ops = [
            dist.P2POp(way, tensor, self.ranks[place])
            for way, tensors in ((dist.isend, sent), (dist.irecv, received))
            for place, tensor in tensors.items()
            if tensor.numel()
        ]
        with _loss_told():
            return Exchange(dist.batch_isend_irecv(ops) if ops else [])

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """`parts[i]` goes to the rank at place i; gives what came from each, of these `shapes`."""
        parts = [part.contiguous() for part in parts]
        came = [parts[0].new_empty(tuple(shape)) for shape in shapes]
        others = [place for place in range(self.size) if place != self.rank]
        self.exchange({at: parts[at] for at in others}, {at: came[at] for at in others}).wait()
        came[self.rank] = parts[self.rank]
        return came

    def broadcast(self, x: Tensor) -> None:
        """Fill `x`, contiguous and of one shape on all ranks, with what the first one has in it."""
        others = range(1, self.size)
        if self.rank == 0:
            self.exchange(dict.fromkeys(others, x), {}).wait()
        else:
            self.exchange({}, {0: x}).wait()

    def gather(self, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        """All ranks' tensors, which measure `sizes` along `dim` and else the same, as one."""
        shapes = [(*x.shape[:dim], size, *x.shape[dim + 1 :]) for size in sizes]
        return torch.cat(self.all_to_all([x] * self.size, shapes), dim=dim)


@dataclass
class Exchange:
    """Messages under way."""

    works: list[Any]

    def wait(self) -> None:
        """Until those to be received are here, and those sent may be written over.

        On a GPU its stream waits, not the host. Raises `LostError` when a rank is gone.
        """
        with _loss_told():
            for work in self.works:
                work.wait()
        self.works = []


@contextlib.contextmanager
def joined(
    device: torch.device, *, place: Path | None = None, rank: int = 0, count: int = 1
) -> Iterator[Group]:
    """The group of all ranks of this job, over NCCL on GPUs and over gloo on CPUs.

    Which rank this is torchrun says in the environment, unless a file to meet at, `place`, is
    given. On GPUs each rank takes the one of its number on its machine. Raises `InputError` for an
    environment that is not torchrun's, `ResourceError` where a GPU is missing, `LostError` where
    ranks do not meet.
    """
    told: dict[str, Any] = {}
    local = rank
    if place is None:
        rank, count, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    else:
        told = {"init_method": f"file://{place}", "rank": rank, "world_size": count}
    if not 0 <= rank < count <= MAX_RANKS:
        raise InputError(f"rank {rank} of {count}: a job has 1 to {MAX_RANKS} ranks")
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if local >= found:
            raise ResourceError(f"{local + 1} GPUs are wanted on this machine; {found} found")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend, ids = ("nccl", [device.index]) if device.type == "cuda" else ("gloo", None)
    with _loss_told():
        dist.init_process_group(backend, timeout=TIMEOUT, **told)
    try:
        with _loss_told():
            dist.barrier(device_ids=ids)  # NCCL wants all ranks in the first exchange
        yield Group(rank, tuple(range(count)), device)
        with _loss_told():
            dist.barrier(device_ids=ids)  # what others still wait for is sent from here
    finally:
        dist.destroy_process_group()


def torchrun_ranks() -> int:
    """How many ranks torchrun started. Raises `InputError` for an environment that is not its."""
    return _number("WORLD_SIZE")


def shares(whole: int, ranks: int) -> list[int]:
    """`whole` things in as even parts as can be, the larger ones first."""
    each, more = divmod(whole, ranks)
    return [each + (rank < more) for rank in range(ranks)]


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not (value.isdecimal() and len(value) < 8):
        raise InputError(f"{name} is {value!r:.40}; torchrun sets it to a whole number")
    return int(value)


@contextlib.contextmanager
def _loss_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises
        raise LostError(f"the ranks lost one another: {error}") from error
