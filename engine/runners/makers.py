"""Makes a session's chunks: latents, then frames, on one stream of the device or on two.

`Maker` computes as it goes. `GraphedMaker` replays CUDA graphs once a stream is in its steady
state: two for the passes (the first, in which the chunk before is cached, and the rest) and one for
the decoder. Host and device part ways then: noise and the tables of positions are put where the
graphs read them, frames come back through pinned memory while the next chunk's first pass is
running, and nothing else is waited for. That pass is begun on the assumption that no control comes;
what it computed is dropped when one does, and the ring has room for that.

None of this has run on a GPU yet; the logic is tested with a stand-in for one.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ..types import LayerKV

if TYPE_CHECKING:
    from ..layers.causal_conv import ConvCaches
    from ..sampling.chunk import ChunkPlan
    from ..sampling.stream import StreamSampler, StreamState
    from ..types import KV, Frames, StaticPass
    from .gpu import Gpu
    from .runner import Runner
    from .watch import Watch


class Maker:
    """Computes each chunk as it is asked for."""

    def __init__(self, runner: Runner, sampler: StreamSampler) -> None:
        self._runner, self._sampler = runner, sampler

    def latents(self, state: StreamState, text: KV, negative: KV | None, steps: int) -> Tensor:
        """As `StreamSampler.sample`."""
        return self._sampler.sample(state, text, negative, steps)

    def frames(
        self, latents: Tensor, caches: ConvCaches | None, watch: Watch
    ) -> tuple[Callable[[], Frames], ConvCaches]:
        """What waits for the chunk's frames `[F, H, W, 3]`, and the decoder's new caches."""
        decoded, caches = self._runner.decode(latents, caches)
        watch.lap("vae")
        frames = self._runner.frames(decoded)
        watch.lap("convert")
        return lambda: frames, caches

    def ahead(self, state: StreamState, text: KV, negative: KV | None, steps: int) -> None:
        """Begin the chunk after `state`, if there is a way to without waiting."""


class GraphedMaker(Maker):
    """Replays graphs for chunks of a shape that has been met before.

    A shape is computed once as `Maker` does, which compiles and loads all that it needs, and is
    captured when it comes again. Whoever interrupts the wait for frames, with Ctrl-C say, finds the
    next chunk's pass begun: the ring has let go of frames that a retry would read.
    """

    def __init__(self, runner: Runner, sampler: StreamSampler, gpu: Gpu) -> None:
        super().__init__(runner, sampler)
        self._gpu = gpu
        self._met: set[Hashable] = set()
        self._steps: dict[Hashable, _Steps] = {}
        self._decoders: dict[Hashable, _Decoder] = {}
        self._ring: Tensor | None = None
        self._begun: tuple[_Moment, _Steps] | None = None

    def latents(self, state: StreamState, text: KV, negative: KV | None, steps: int) -> Tensor:
        """As `StreamSampler.sample`; where the first pass was begun ahead, only the rest."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0].same(_Moment.of(state, text, negative, steps)):
            self._sampler.close(state)
            return begun[1].finish()
        plan = self._sampler.plan(state, text, negative, steps)
        graphs = self._graphs(state, plan, new=True)
        self._sampler.close(state)
        if graphs is None:
            return plan.rest(plan.first())
        graphs.begin(plan)
        return graphs.finish()

    def frames(
        self, latents: Tensor, caches: ConvCaches | None, watch: Watch
    ) -> tuple[Callable[[], Frames], ConvCaches]:
        """As `Maker.frames`, beside the main stream."""
        if caches is None:
            return super().frames(latents, caches, watch)
        key = ("decoder", latents.shape)
        if key not in self._met:
            self._met.add(key)
            return super().frames(latents, caches, watch)
        if key not in self._decoders:
            self._decoders[key] = _Decoder(self._runner, self._gpu, latents, caches)
        with self._gpu.beside():
            return self._decoders[key].run(latents, caches, watch)

    def ahead(self, state: StreamState, text: KV, negative: KV | None, steps: int) -> None:
        """Run the first pass of the chunk after `state` beside the decoder."""
        plan = self._sampler.plan(state, text, negative, steps)
        graphs = self._graphs(state, plan, new=False)
        if graphs is not None:
            graphs.begin(plan)
            self._begun = _Moment.of(state, text, negative, steps), graphs

    def _graphs(self, state: StreamState, plan: ChunkPlan, *, new: bool) -> _Steps | None:
        """Those for chunks like this one; if `new` they are captured now where need be."""
        if plan.open is None or state.ring is None:
            return None
        if state.ring.k is not self._ring:  # a stream that was reset, or rebuilt
            self._steps.clear()
            self._ring = state.ring.k
        key = _shape(plan)
        if key not in self._steps:
            known = key in self._met
            if new:
                self._met.add(key)
            if not new or not known:
                return None
            self._steps[key] = _Steps(plan, self._gpu)
        return self._steps[key]


@dataclass(frozen=True)
class _Moment:
    """What a first pass was begun on."""

    numbers: tuple[int, ...]
    tensors: tuple[object, ...]

    @classmethod
    def of(cls, state: StreamState, text: KV, negative: KV | None, steps: int) -> _Moment:
        numbers = (state.chunk, state.latent, state.noise_offset, state.seed, steps, state.track_at)
        ring = None if state.ring is None else state.ring.k
        return cls(numbers, (text, negative, state.pending, ring, state.track))

    def same(self, other: _Moment) -> bool:
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self.numbers == other.numbers and all(a is b for a, b in pairs)


class _Steps:
    """A chunk's passes as two graphs, over the memory of the plan that they were captured from."""

    def __init__(self, plan: ChunkPlan, gpu: Gpu) -> None:
        self._given = plan.text, plan.negative
        assert plan.open is not None
        clean = replace(plan.open, clean=plan.open.clean.clone())  # which the state has as well
        negative = None if plan.negative is None else _clone(plan.negative)
        self._plan = replace(plan, text=_clone(plan.text), negative=negative, open=clean)
        self._flow, self._first = gpu.capture(self._plan.first)
        self._latents, self._rest = gpu.capture(lambda: self._plan.rest(self._flow))

    def begin(self, plan: ChunkPlan) -> None:
        """Run the first pass of `plan`, which is of the same shape."""
        _copy(self._plan, plan)
        for mine, given, new in zip(
            (self._plan.text, self._plan.negative), self._given, (plan.text, plan.negative),
            strict=True,
        ):  # fmt: skip
            if new is not given:
                for target, source in zip(_tensors(mine), _tensors(new), strict=True):
                    target.copy_(source)
        self._given = plan.text, plan.negative
        self._first()

    def finish(self) -> Tensor:
        """Run the others; gives the clean latents."""
        self._rest()
        return self._latents.clone()


class _Decoder:
    """The decoder as graphs from one of two sets of caches to the other.

    So the caches that a call was given stay as they were, and a chunk can be made once more.
    """

    def __init__(self, runner: Runner, gpu: Gpu, latents: Tensor, caches: ConvCaches) -> None:
        self._gpu = gpu
        self._latents = torch.zeros_like(latents)
        self._sets = [tuple(torch.zeros_like(cache) for cache in caches) for _ in range(2)]

        def decode(old: ConvCaches, new: ConvCaches) -> Tensor:
            decoded, kept = runner.decode(self._latents, old)
            for target, source in zip(new, kept, strict=True):
                target.copy_(source)
            return runner.to_bytes(decoded)[0]

        one, other = self._sets
        self._graphs = [
            gpu.capture(partial(decode, *sets), beside=True)
            for sets in ((one, other), (other, one))
        ]
        self._host = gpu.pinned(self._graphs[0][0])

    def run(
        self, latents: Tensor, caches: ConvCaches, watch: Watch
    ) -> tuple[Callable[[], Frames], ConvCaches]:
        """As `Maker.frames`."""
        at = 1 if caches is self._sets[1] else 0
        if caches is not self._sets[at]:
            for target, source in zip(self._sets[at], caches, strict=True):
                target.copy_(source)
        self._latents.copy_(latents)
        pixels, replay = self._graphs[at]
        out = np.empty(pixels.shape, np.uint8)
        replay()
        watch.lap("vae")
        self._host.copy_(pixels, non_blocking=True)
        watch.lap("convert")
        arrived = self._gpu.arrival()

        def frames() -> Frames:
            arrived()
            out[:] = self._host.numpy()
            return out

        return frames, self._sets[1 - at]


def _passes(plan: ChunkPlan) -> list[StaticPass]:
    passes = [plan.passes] if plan.open is None else [plan.passes, plan.open.both]
    return [cast("StaticPass", one) for one in passes]


def _inputs(plan: ChunkPlan) -> list[Tensor]:
    """What differs from chunk to chunk, beside places and text."""
    given = [x for x in (*plan.noise, plan.told) if x is not None]
    return given if plan.open is None else [*given, plan.open.clean]


def _shape(plan: ChunkPlan) -> Hashable:
    """What is equal for plans that one graph can compute."""
    return (
        tuple(one.shape for one in _passes(plan)),
        tuple(x.shape for x in _inputs(plan)),
        plan.solver.schedule.timesteps,
        plan.negative is None,
    )


def _copy(target: ChunkPlan, source: ChunkPlan) -> None:
    for mine, theirs in zip(_passes(target), _passes(source), strict=True):
        mine.copy_(theirs)
    for x, y in zip(_inputs(target), _inputs(source), strict=True):
        x.copy_(y)


def _clone(kv: KV) -> KV:
    return [LayerKV(layer.k.clone(), layer.v.clone()) for layer in kv]


def _tensors(kv: KV | None) -> Iterator[Tensor]:
    for layer in kv or ():
        yield layer.k
        yield layer.v
