"""Conv caches that come from another rank: a clip's frames are spread over ranks in order, and each
convolution gets the frames before a rank's own, its halo, from the rank that has them.

A halo is what the convolution's cache would be, had one rank run all frames: the same tensor, in
the same place. It is sent as soon as its frames are there, before the sender convolves them, and
received while the receiver convolves what does not see it.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.causal_conv import CacheTape, ConvCaches
from .group import Exchange, Group

_UNDER_WAY = 4
"""Sends that may be under way; with more, a sender waits for its neighbor, and holds no memory."""


@dataclass(frozen=True)
class Route:
    """The places in `group` of the ranks with the frames `before` and `after` this one's; None
    where the frames that are run together begin and end."""

    group: Group
    before: int | None
    after: int | None


class HaloTape(CacheTape):
    """A tape whose caches come from the rank before and go to the rank after.

    The first rank is given the caches of what was run before (None at a stream's start), and the
    last one keeps those for what comes next; others neither take nor keep any. `time` is the dim
    that counts a cache's frames: 1, or 2 where channels come before. Call `finish` in the end.
    """

    def __init__(self, caches: ConvCaches | None, route: Route, time: int) -> None:
        super().__init__(caches)
        self.first = caches is None and route.before is None
        self._route, self._time = route, time
        self._under_way: deque[tuple[Exchange, Tensor]] = deque()

    @property
    def neighbor(self) -> HaloTape | None:
        """The way to the rank before."""
        return None if self._route.before is None else self

    def put(self, cache: Tensor) -> None:
        """Send a layer's cache on, or keep it on the last rank."""
        if self._route.after is None:
            super().put(cache)
            return
        self.finish(but=_UNDER_WAY - 1)
        sent = self._channels_last(cache).contiguous()
        exchange = self._route.group.exchange({self._route.after: sent}, {})
        self._under_way.append((exchange, sent))

    def swap(self, x: Tensor, length: int) -> Callable[[], Tensor]:
        """As `Neighbor.swap`. Where `x` is shorter than that, the neighbor's frames pass through,
        and are waited for first."""
        before, after = self._route.before, self._route.after
        assert before is not None
        frames = self._channels_last(x)
        past = frames.new_empty((len(frames), length, *frames.shape[2:]))
        halo = self._as_cache(past)
        if after is None or x.shape[self._time] < length:
            exchange = self._route.group.exchange({}, {before: past})
            if x.shape[self._time] < length:
                exchange.wait()
                x = torch.cat([halo, x], dim=self._time)
            self.put(newest(x, length, self._time))
        else:
            sent = newest(frames, length, 1)
            exchange = self._route.group.exchange({after: sent}, {before: past})

        def arrived() -> Tensor:
            exchange.wait()
            return halo

        return arrived

    def finish(self, but: int = 0) -> None:
        """Wait until all that was sent has been taken, `but` for the newest so many."""
        while len(self._under_way) > but:
            self._under_way.popleft()[0].wait()

    def _channels_last(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]`, as caches travel however they lie in memory at either end."""
        return x if self._time == 1 else x.movedim(1, -1)

    def _as_cache(self, x: Tensor) -> Tensor:
        """The inverse of `_channels_last`."""
        return x if self._time == 1 else x.movedim(-1, 1)


def newest(x: Tensor, length: int, time: int) -> Tensor:
    """The last `length` frames, in memory of their own."""
    frames = x.narrow(time, x.shape[time] - length, length)
    return frames.clone(memory_format=torch.contiguous_format)


def to_first(
    own: Tensor | None, sizes: Sequence[int], dim: int, group: Group, room: Tensor | None = None,
    places: Sequence[int] | None = None,
) -> Tensor | None:  # fmt: skip
    """The tensors of the ranks at `places` (by default all), which measure `sizes` along `dim` and
    else the same, one behind the other on rank 0; None on others.

    They come into `room` if that is given, as it must be where rank 0 is not among them.
    """
    if group.rank:
        if own is not None:
            group.exchange({0: own.contiguous()}, {}).wait()
        return None
    if room is None:
        assert own is not None
        room = own.new_empty((*own.shape[:dim], sum(sizes), *own.shape[dim + 1 :]))
    parts = room.split(list(sizes), dim)
    for place, target in zip(range(group.size) if places is None else places, parts, strict=True):
        part = own
        if place:
            part = target.new_empty(target.shape)
            group.exchange({}, {place: part}).wait()
        assert part is not None
        target.copy_(part)
    return room
