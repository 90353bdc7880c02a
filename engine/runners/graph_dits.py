"""DiTs that are step graphs: over the keys and values of the past, or over past latents themselves.

Shapes: B batch, C channels, T latent frames, H W space, L tokens, D text width, S latent frames of
the past, n tokens a latent frame, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sampling.windowed import Windowed
from ..types import KV, LayerKV

if TYPE_CHECKING:
    from ..manifest import Manifest
    from ..types import ClipTransformer, Place, Ring, StreamDenoiser
    from .graphs import StepGraph
    from .runner import Reader


class StackedKV(Sequence[LayerKV]):
    """Keys and values of all layers in two tensors `[layers, N, h, d]`."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def __len__(self) -> int:
        return len(self.k)

    @overload
    def __getitem__(self, at: int) -> LayerKV: ...
    @overload
    def __getitem__(self, at: slice) -> StackedKV: ...
    def __getitem__(self, at: int | slice) -> LayerKV | StackedKV:
        if isinstance(at, slice):
            return StackedKV(self.k[at], self.v[at])
        return LayerKV(self.k[at].unsqueeze(0), self.v[at].unsqueeze(0))


@dataclass(frozen=True)
class GraphPass:
    """Passes of one chunk: which graph, and what it is given beside latents and time."""

    graph: StepGraph
    ring: Ring
    first: int
    room: int
    given: Mapping[str, Tensor]

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """The chunk's flow `[1, C, T, H, W]`."""
        return self._run(latents, timestep, text)["flow"][:, :, : latents.shape[2]]

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """Write the chunk's keys, not rotated, and values to the ring."""
        made = self._run(latents, timestep, text)
        k, v = (made[name][:, : latents.shape[2]].flatten(1, 2) for name in ("k", "v"))
        self.ring.write(self.first, StackedKV(k, v))

    def _run(self, latents: Tensor, timestep: Tensor, text: KV) -> dict[str, Tensor]:
        assert isinstance(text, StackedKV)
        missing = self.room - latents.shape[2]
        latent = F.pad(latents.float(), (0, 0, 0, 0, 0, missing)) if missing else latents.float()
        return self.graph(
            {
                "latent": latent.contiguous(), "timestep": timestep.float(), "text_k": text.k,
                "text_v": text.v, **self.given,
            }
        )  # fmt: skip


@dataclass(frozen=True)
class GraphDenoiser:
    """The DiT as `text_kv`, `denoise_first` and `denoise`."""

    manifest: Manifest
    graphs: Mapping[str, StepGraph]
    in_place: ClassVar[bool] = False

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of one latent frame's keys."""
        (keys,) = (x for x in self.manifest.graphs["denoise"].outputs if x.name == "k")
        layers, _, tokens, heads, head_dim = keys.shape
        return layers, tokens, heads, head_dim

    def text_kv(self, text: Tensor) -> KV:
        """The text's keys and values."""
        made = self.graphs["text_kv"]({"text": text.contiguous()})
        return StackedKV(made["text_k"], made["text_v"])

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent are multiples of this."""
        return self.manifest.latent.patch

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> GraphPass:
        """Passes over one chunk; its past is gathered from the ring once."""
        (place,) = places
        stream = self.manifest.stream
        if not place.seen and place.count == stream.first_chunk_latents:
            return GraphPass(self.graphs["denoise_first"], ring, place.first, place.count, {})
        room, seen = self.manifest.latent.past, len(place.seen)
        slots = [ring.slot(frame) for frame in place.seen] + [0] * (room - seen)
        index = torch.tensor(slots, device=ring.k.device)
        own = [seen + i if i < place.count else -1 for i in range(stream.chunk_latents)]
        positions = [*range(seen), *([-1] * (room - seen)), *own]
        given = {
            "past_k": ring.k.index_select(1, index),
            "past_v": ring.v.index_select(1, index),
            "positions": torch.tensor(positions, device=ring.k.device),
        }
        graph = self.graphs["denoise"]
        return GraphPass(graph, ring, place.first, stream.chunk_latents, given)


@dataclass(frozen=True)
class GraphClip:
    """The DiT as `denoise_first` and `denoise` that take past latents: one for clips of `past` and
    a chunk, or of a chunk alone."""

    manifest: Manifest
    graphs: Mapping[str, StepGraph]

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """What is predicted for a chunk at the end of `latents` `[1, C, S + T, H, W]`, and zeros
        for its past; `timestep` is the chunk's, `[1]`, or ends with it, `[1, S + T]`."""
        stream, total = self.manifest.stream, latents.shape[2]
        given = {"timestep": timestep.reshape(-1)[-1:].float(), "text": text.contiguous()}
        if timestep.ndim == 1 and total == stream.first_chunk_latents:
            made = self.graphs["denoise_first"]({**given, "latent": _ready(latents)})
            return made["flow"]
        count, room = stream.chunk_latents, self.manifest.latent.past
        seen = total - count
        # Those that are missing come first: what patches in time join stays side by side.
        past = F.pad(latents[:, :, :seen], (0, 0, 0, 0, room - seen, 0))
        places = [*([-1] * (room - seen)), *range(total)]
        made = self.graphs["denoise"](
            {
                **given, "latent": _ready(latents[:, :, seen:]), "past": _ready(past),
                "positions": torch.tensor(places, device=latents.device),
            }
        )  # fmt: skip
        return F.pad(made["flow"], (0, 0, 0, 0, seen, 0))

    def text_kv(self, text: Tensor) -> KV:
        """The text as it is."""
        words = text.unsqueeze(2)
        return [LayerKV(words, words)]

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.manifest.latent.channels

    @property
    def condition_channels(self) -> int:
        """Channels of control and goal behind them."""
        return self.manifest.stream.told_channels

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent are multiples of this."""
        return self.manifest.latent.patch

    @property
    def temporal_patch(self) -> int:
        """Chunk and past together are a multiple of this."""
        return self.manifest.latent.temporal_patch


def load_dit(manifest: Manifest, graphs: Mapping[str, StepGraph]) -> tuple[StreamDenoiser, Reader]:
    """A package's DiT as streams run it, and as far as prompts and sizes go."""
    if looks_at_latents(manifest):
        clip = GraphClip(manifest, graphs)
        return Windowed(cast("ClipTransformer", clip)), clip
    denoiser = GraphDenoiser(manifest, graphs)
    return denoiser, denoiser


def looks_at_latents(manifest: Manifest) -> bool:
    """Whether the DiT sees past latents rather than the keys and values that it made of them."""
    graph = manifest.graphs.get("denoise")
    return graph is not None and any(x.name == "past" for x in graph.inputs)


def _ready(latents: Tensor) -> Tensor:
    return latents.float().contiguous()
