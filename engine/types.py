"""The values that cross the library's boundary and the protocols its parts meet at.

Shape legend: B batch, T latent frames, F pixel frames, H W space, C channels, L text tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Frames: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ChunkStats:
    """Where a chunk's time went, in seconds, and what it cost.

    `text_s` is zero unless the prompt was encoded for this chunk; `cache_s` is the pass that writes
    clean K/V into the ring, unless it is one with the chunk's first; `convert_s` is the way from
    floats to uint8. `passes` counts forwards of the DiT (cache pass included) and `decoder_calls`
    those of the VAE decoder. `fps` is frames of this chunk over the seconds it took.

    `lead_s` is how long before it was due the chunk was ready, negative when it came late, and
    `deadline_met` whether it came in time; `jitter_s` is the smoothed change, from chunk to chunk,
    in the time to spare. A chunk is due when those before it have been played, and not before it
    has had as long as it plays itself (`csrc/pacer.h` has the rules).

    `steps` is how many of the model's passes the chunk was given, `rate` how many of its frames are
    due a second, and `skipped` what was left out for want of time ("recache"): a session that keeps
    pace does with less when it falls behind.
    """

    text_s: float
    dit_s: float
    cache_s: float
    vae_s: float
    convert_s: float
    passes: int
    decoder_calls: int
    fps: float
    lead_s: float
    deadline_met: bool
    jitter_s: float
    steps: int
    rate: float
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Frames that leave a session together.

    `frames` is uint8 `[F, H, W, 3]`; `index` counts chunks from 0; `pts` is the stream's frame
    number of `frames[0]`; `applied` lists the controls that took hold at this chunk's edge.
    """

    frames: Frames
    index: int
    pts: int
    stats: ChunkStats
    applied: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Video:
    """A finished clip: uint8 `frames` of shape `[F, H, W, 3]` at `fps` frames a second."""

    frames: Frames
    fps: float
    stats: tuple[ChunkStats, ...] = field(default=())

    def save(self, path: str | Path) -> Path:
        """Write the clip; the ending (.mp4, .webm, .gif, or a trailing slash for PNGs) decides how.

        Raises `InputError` for an unknown ending or a place that cannot be written.
        """
        from .media.writer import open_sink

        sink = open_sink(path, fps=self.fps)
        try:
            sink.write(self.frames)
        except BaseException:
            sink.abort()
            raise
        return sink.close()


class FrameSink(Protocol):
    """Where frames go: a file, a folder of pictures, a socket."""

    def write(self, frames: Frames) -> None:
        """Take uint8 frames `[F, H, W, 3]` in order; every call has the same H and W."""

    def close(self) -> Path:
        """Finish what was written so that it can be played, and say where it is."""

    def abort(self) -> None:
        """Drop what was written; leave nothing behind."""


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one attention layer: `[B, tokens, h, d]` each, h heads of width d."""

    k: Tensor
    v: Tensor


KV: TypeAlias = Sequence[LayerKV]
"""Keys and values of all layers of a DiT."""


@dataclass(frozen=True)
class Past:
    """What a chunk attends to besides itself: `frames` latent frames' rotated keys, and values."""

    frames: int
    layers: KV


class Denoiser(Protocol):
    """A DiT that predicts flow, or velocity, for a whole clip."""

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Latents `[B, C, T, H, W]`, timestep `[B]` or `[B, T]` on 0..1000, text `[B, L, D]`;
        gives flow (noise minus data) of the latents' shape."""


class ImageDenoiser(Protocol):
    """A `Denoiser` that may be shown pictures as well."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None
    ) -> Tensor:
        """As `Denoiser`; `image` are the pictures' tokens `[B, M, D]`. Latents may have further
        channels behind their own, of which flow has none."""


class Encode(Protocol):
    """A VAE's encoder, with its scale."""

    def __call__(
        self, frames: Tensor, caches: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to normalized fp32 latents and the new caches."""


class CausalDenoiser(Protocol):
    """A DiT that predicts flow for one chunk of a stream, given what it has cached of the past."""

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of the keys, and of the values, of one latent frame of that size."""

    def text_kv(self, text: Tensor) -> KV:
        """Text `[B, L, D]` to the keys and values that cross-attention reads."""

    def past(self, frames: int, height: int, width: int, layers: KV) -> Past:
        """Cached keys and values of `frames` latent frames in order, oldest first, made ready."""

    def chunk(
        self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None
    ) -> tuple[Tensor, KV]:
        """Flow of the latents' shape, and the chunk's own keys (not rotated) and values."""

    def keys_values(self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None) -> KV:
        """The second of what `chunk` gives, for less work."""


class Ring(Protocol):
    """A KV ring: keys and values `[layers, S, n, h, d]` of latent frames, each in a slot."""

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...

    def slot(self, frame: int) -> int:
        """Where latent frame number `frame` lies while it is kept."""

    def read(self, frames: Sequence[int]) -> KV:
        """Keys and values of these latent frames, in this order."""

    def write(self, first: int, kv: KV) -> None:
        """Store a chunk's keys and values, its first latent frame being number `first`."""


@dataclass(frozen=True)
class Place:
    """Where a chunk stands in its stream: `count` latent frames from number `first` on, and the
    numbers of the earlier ones that it attends to, oldest first."""

    first: int
    count: int
    seen: tuple[int, ...]


class Pass(Protocol):
    """A DiT at a chunk's place: one forward after another over the same past."""

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """Latents `[B, C, T, H, W]` at `timestep`, `[B]` or `[B, T]` on 0..1000; flow of their
        shape. What later chunks see is not changed."""

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """Leave the keys and values of clean latents in the ring."""


class StaticPass(Pass, Protocol):
    """A pass whose place is a table on the device, which can be written over with another."""

    @property
    def shape(self) -> Hashable:
        """What is equal for passes that differ in their tables' values alone."""

    def copy_(self, other: StaticPass) -> None:
        """Take over the place of a pass of the same shape over the same ring."""


class StreamDenoiser(Protocol):
    """A DiT that goes through a stream chunk by chunk, over a KV ring that is handed to it."""

    @property
    def in_place(self) -> bool:
        """Whether a pass writes its keys into the ring, rotated, and reads the ring as it lies.

        The ring then has room for one chunk more, and two chunks can share a pass. Otherwise keys
        are kept as they were before rotation, and each chunk's past is gathered from the ring.
        """

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of the keys, and of the values, of one latent frame of that size."""

    def text_kv(self, text: Tensor) -> KV:
        """Text `[B, L, D]` to the keys and values that cross-attention reads."""

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> Pass:
        """Passes over a chunk whose latents are `height` x `width`; if `in_place`, `StaticPass`,
        also over two chunks in a row, each of which gets what it would in a pass of its own."""


class ClipTransformer(ImageDenoiser, Protocol):
    """A DiT that makes whole clips, and can stream."""

    def cached(self) -> CausalDenoiser | None:
        """The same DiT over cached keys and values of the past; None for one that looks at past
        latents as they are."""

    def text_kv(self, text: Tensor) -> KV:
        """Text `[B, L, D]` to what streams read: the keys and values of cross-attention, or, for a
        DiT that takes text and video as one sequence, one pair of the text as it is."""

    def in_ring(self) -> StreamDenoiser | None:
        """The same DiT on Triton's kernels, working in the ring itself; None where they do not
        take its widths."""

    def native(self) -> CausalDenoiser | None:
        """The same DiT on the C++ core's kernels, with the weights as they are now; None where the
        kernels cannot run it."""

    @property
    def keep_in_bf16(self) -> Collection[str]:
        """Layers, or modules with all that is in them, that should not be computed in fp8."""

    @property
    def channels(self) -> int:
        """Latent channels."""

    @property
    def condition_channels(self) -> int:
        """Channels that it takes behind the latents' own."""

    @property
    def image_width(self) -> int | None:
        """D of the pictures' tokens that it reads, if it does."""

    @property
    def images(self) -> int | None:
        """How many pictures it must be shown, if that is fixed."""

    def picture_condition(
        self, encode: Encode, first: Tensor, last: Tensor | None, latents: int, factor: int
    ) -> Tensor:
        """Its `condition_channels` for a clip of so many latent frames, of `factor` frames each,
        that begins with the picture `first` and ends with `last`, `[1, 3, 1, H, W]` in [-1, 1]."""

    @property
    def text_width(self) -> int:
        """D of the text it reads."""

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent must be multiples of this."""

    @property
    def temporal_patch(self) -> int:
        """Latent frames of a clip, or of a chunk with its past, must be a multiple of this."""


class Transformer(ClipTransformer, CausalDenoiser, Protocol):
    """A DiT that runs both ways."""


class Decoder(Protocol):
    """A causal VAE decoder with explicit state."""

    def decode(
        self, latents: Tensor, caches: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Latents `[B, C, T, H, W]` (un-normalized) and conv caches, or None at a stream's start;
        gives frames `[B, 3, F, H, W]` in [-1, 1] and the new caches."""


class VAE(Decoder, Protocol):
    """A causal VAE: encoder, decoder and the scale of its latents."""

    def encode(
        self, frames: Tensor, caches: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to latents (un-normalized) and the new caches."""

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents to the DiT's scale."""

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""

    @property
    def channels(self) -> int:
        """Latent channels."""

    @property
    def chunk(self) -> int | None:
        """Latent frames that encoder and decoder want together, where that is part of the result:
        a clip is `cut` into so many. None where any cut gives the same."""

    @property
    def decoder_memory(self) -> int:
        """Latent frames after which a decoder that starts anew has forgotten that it did."""

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a stream's first stands for one."""

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""


class LoadedVAE(VAE, Protocol):
    """A VAE in plain torch, from which others are made."""

    @property
    def picture_scale(self) -> float:
        """What a picture's normalized latents are multiplied by where a DiT takes them behind its
        own."""

    def fused(self) -> VAE:
        """The same VAE on Triton's kernels, with the weights as they are now."""

    def native(self) -> VAE | None:
        """The same VAE on the C++ core's kernels, bfloat16 alone, with the weights as they are now;
        None where the kernels cannot run it."""
