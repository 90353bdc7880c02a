"""What a stream asks of a CUDA device beside arithmetic: graphs, a second stream, events.

Behind one small face, so that the logic above it is tested with a stand-in where there is no GPU.
None of this has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Gpu(Protocol):
    """A device with a main stream, in which a chunk's passes go, and one beside it."""

    def capture(
        self, function: Callable[[], T], *, beside: bool = False
    ) -> tuple[T, Callable[[], None]]:
        """Record what `function` does; gives its results' memory, and what does it all again there.

        It must have run before, so that its kernels are compiled and loaded. Graphs that are to run
        `beside` others share no memory with them.
        """

    def beside(self) -> AbstractContextManager[None]:
        """Work in the second stream, once all that the main one has been given by now is done."""

    def arrival(self) -> Callable[[], None]:
        """What waits until the present stream has done all that it has been given by now."""

    def pinned(self, like: Tensor) -> Tensor:
        """Memory on the host, of the shape and dtype of a tensor, that copies need not wait for."""


_capturing = Lock()
"""Before it records, torch waits for the device and gives unused memory back, which would disturb
another thread's recording."""


class CudaGpu:
    """A CUDA device. Graphs of one stream run one after another and share a pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._second = torch.cuda.Stream(device)
        # torch's own is of the device that the process first captured on, whatever this one is.
        self._recorded = torch.cuda.Stream(device)
        self._pools = {beside: torch.cuda.graph_pool_handle() for beside in (False, True)}

    def capture(
        self, function: Callable[[], T], *, beside: bool = False
    ) -> tuple[T, Callable[[], None]]:
        """See `Gpu.capture`."""
        graph, pool = torch.cuda.CUDAGraph(), self._pools[beside]
        # Other threads of the process may go on using the device.
        recording = torch.cuda.graph(
            graph, pool=pool, stream=self._recorded, capture_error_mode="thread_local"
        )
        with _capturing, torch.cuda.device(self._device), recording:
            results = function()
        return results, graph.replay

    @contextmanager
    def beside(self) -> Iterator[None]:
        """See `Gpu.beside`."""
        self._second.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._second):
            yield

    def arrival(self) -> Callable[[], None]:
        """See `Gpu.arrival`."""
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize

    def pinned(self, like: Tensor) -> Tensor:
        """See `Gpu.pinned`."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
