"""A model whose parts are step graphs of a package, executed by whatever loaded them.

`livereel.export` documents the graphs. What executes them (onnxruntime, TensorRT, AOTInductor) is
behind `StepGraph`; all else, which graph a chunk takes and what state goes where, is here.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space, L tokens, D text width, S
latent frames of the past, n tokens a latent frame, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.to_pixels import to_pixels_reference

from ..errors import CheckpointError, InputError
from ..sampling.stream import StreamSampler
from ..text.encoder import TextEncoder, load_tokenizer
from ..types import KV, LayerKV
from .makers import Maker

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..manifest import Latent, Manifest
    from ..package import Package
    from ..types import Frames, Place, Ring

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
GRAPHS = (
    "text_encode", "text_kv", "denoise_first", "denoise", "vae_decode_first", "vae_decode",
    "vae_encode_first", "vae_encode",
)  # fmt: skip


class StepGraph(Protocol):
    """A loaded graph."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, in memory of their own. Inputs have the manifest's shapes and dtypes,
        lie on the runner's device without gaps, and stay as they are."""


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
class GraphVAE:
    """The VAE as `vae_decode*` and `vae_encode*`, which take calls of some lengths alone."""

    manifest: Manifest
    graphs: Mapping[str, StepGraph]

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self._latent.channels

    @property
    def chunk(self) -> None:
        """Calls have the lengths of the graphs."""

    @property
    def decoder_memory(self) -> int:
        """See `livereel.engine.types.VAE`."""
        return self._latent.decoder_memory

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a stream's first stands for one."""
        return self._latent.temporal_factor

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self._latent.spatial_factor

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents to the DiT's scale."""
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._scale(latents)
        return latents * std + mean

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.decode`; raises `InputError` for another size."""
        return self.decode_normalized(self.normalize(latents.float()), caches)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.encode`; raises `InputError` for another size."""
        latents, caches = self.encode_normalized(frames, caches)
        return self.denormalize(latents), caches

    def decode_normalized(
        self, latents: Tensor, caches: ConvCaches | None
    ) -> tuple[Tensor, ConvCaches]:
        """`decode` of latents in the DiT's scale."""
        latent = self._latent
        _check("latents", latents, (1, latent.channels, None, latent.height, latent.width))
        chunk = self.manifest.stream.chunk_latents
        return self._calls("vae_decode", latents, caches, [("vae_decode", chunk), *self._lone])

    def encode_normalized(
        self, frames: Tensor, caches: ConvCaches | None
    ) -> tuple[Tensor, ConvCaches]:
        """`encode` to latents in the DiT's scale."""
        stream, factor = self.manifest.stream, self.temporal_factor
        _check("frames", frames, (1, 3, None, stream.height, stream.width))
        if (frames.shape[2] - (caches is None)) % factor:
            rule = "1 + " * (caches is None) + f"a multiple of {factor}"
            raise InputError(f"the encoder was given {frames.shape[2]} frames; it wants {rule}")
        return self._calls("vae_encode", frames, caches, [("vae_encode", factor)])

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches."""
        graph = self.manifest.graphs["vae_decode"]
        return [x.shape for x in graph.inputs if x.name in graph.state.values()]

    @property
    def _latent(self) -> Latent:
        return self.manifest.latent

    @property
    def _lone(self) -> list[tuple[str, int]]:
        """What decodes latent frames that are too few for a chunk, one by one."""
        return [("vae_decode_one", 1)] if "vae_decode_one" in self.graphs else []

    def _calls(
        self, name: str, x: Tensor, caches: ConvCaches | None, graphs: list[tuple[str, int]]
    ) -> tuple[Tensor, ConvCaches]:
        """Go through `x` by the graphs that are given with the frames each takes, longest first."""
        parts: list[Tensor] = []
        if caches is None:
            made, caches = self._call(f"{name}_first", x[:, :, :1], ())
            parts.append(made)
            x = x[:, :, 1:]
        for graph, frames in graphs:
            while x.shape[2] >= frames:
                made, caches = self._call(graph, x[:, :, :frames], caches)
                parts.append(made)
                x = x[:, :, frames:]
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], caches

    def _call(self, name: str, x: Tensor, caches: ConvCaches) -> tuple[Tensor, ConvCaches]:
        spec = self.manifest.graphs[name]
        names = [given.name for given in spec.inputs]
        given = dict(zip(names, (x.float().contiguous(), *caches), strict=True))
        made = self.graphs[name](given)
        result, *kept = (made[output.name] for output in spec.outputs)
        return result, tuple(kept)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)
            for values in (self._latent.mean, self._latent.std)
        )
        return mean, std


class _TextModel:
    """`text_encode` with the face of transformers' encoder."""

    def __init__(self, manifest: Manifest, graph: StepGraph, device: torch.device) -> None:
        self._graph, self.device = graph, device
        self._length = manifest.stream.max_sequence_length
        self.config = SimpleNamespace(d_model=manifest.latent.text_width)

    def __call__(self, tokens: Tensor, mask: Tensor) -> Any:
        length = tokens.shape[1]
        if length > self._length:
            raise InputError(f"the text has {length} tokens; this package takes {self._length}")
        padded = (F.pad(x, (0, self._length - length)) for x in (tokens, mask))
        text = self._graph(dict(zip(("tokens", "mask"), padded, strict=True)))["text"]
        return SimpleNamespace(last_hidden_state=text[:, :length])


def text_encoder(
    folder: Path, manifest: Manifest, graph: StepGraph, device: torch.device
) -> TextEncoder:
    """The package's `text_encode` and tokenizer. Raises `CheckpointError` for a tokenizer that
    cannot be read."""
    model = _TextModel(manifest, graph, device)
    return TextEncoder(cast(Any, model), load_tokenizer(folder / "tokenizer"))


@dataclass(frozen=True)
class GraphRunner:
    """A loaded package; a `Runner`."""

    manifest: Manifest
    denoiser: GraphDenoiser
    vae: GraphVAE
    text_encoder: TextEncoder
    device: torch.device
    layout: ClassVar[str] = "torch"

    @classmethod
    def of(
        cls, package: Package, graphs: Mapping[str, StepGraph], device: torch.device
    ) -> GraphRunner:
        """A package's graphs, loaded on `device`. Raises `CheckpointError` where one is missing or
        the tokenizer cannot be read."""
        manifest = package.manifest
        for name in GRAPHS:
            if name not in graphs:
                raise CheckpointError(f"{package.path} has no graph {name}: export it anew")
        return cls(
            manifest=manifest,
            denoiser=GraphDenoiser(manifest, graphs),
            vae=GraphVAE(manifest, graphs),
            text_encoder=text_encoder(package.path, manifest, graphs["text_encode"], device),
            device=device,
        )

    @property
    def dtype(self) -> torch.dtype:
        """That of the state."""
        return DTYPES[self.manifest.dtype]

    @property
    def transformer(self) -> GraphDenoiser:
        """The DiT."""
        return self.denoiser

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """The streaming loop, for pictures of the package's own size."""
        latent = self.manifest.latent
        return StreamSampler(
            denoiser=self.denoiser,
            config=config,
            channels=latent.channels,
            size=(latent.height, latent.width),
            device=self.device,
            dtype=self.dtype,
            warm_up=latent.decoder_memory,
        )

    def maker(self, sampler: StreamSampler) -> Maker:
        """What makes a session's chunks."""
        return Maker(self, sampler)

    def encode_text(self, prompt: str, length: int) -> Tensor:
        """The prompt's embedding `[1, L, D]`, zero-padded to L = `length`."""
        return self.text_encoder.encode([prompt], length)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[1, 3, F, H, W]` in [-1, 1] to normalized fp32 latents, and the conv caches."""
        return self.vae.encode_normalized(self.ready(frames), caches)

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Normalized latents `[1, C, T, H, W]` to frames `[1, 3, F, H, W]` in [-1, 1]."""
        return self.vae.decode_normalized(self.ready(latents), caches)

    def to_bytes(self, decoded: Tensor) -> Tensor:
        """Floats `[B, 3, F, H, W]` to bytes `[B, F, H, W, 3]`."""
        return to_pixels_reference(decoded)

    def frames(self, decoded: Tensor) -> Frames:
        """What `decode` gave, as uint8 `[F, H, W, 3]` on the host."""
        pixels: Frames = self.to_bytes(decoded)[0].cpu().numpy()
        return pixels

    def cache_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches."""
        return self.vae.cache_shapes()

    def ready(self, x: Tensor) -> Tensor:
        """Frames or latents on the device, fp32.

        Raises `InputError` for a tensor of other than five dimensions.
        """
        if x.ndim != 5:
            raise InputError(f"frames or latents have five dimensions, got {tuple(x.shape)}")
        return x.to(self.device, torch.float32)


def _check(what: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise `InputError` unless `x` has `shape`, of which None is any number from 1 on."""
    fits = all(wanted in (None, found) for wanted, found in zip(shape, x.shape, strict=True))
    if not fits or 0 in x.shape:
        wanted = ", ".join("T" if n is None else str(n) for n in shape)
        raise InputError(f"this package takes {what} of shape ({wanted}), got {tuple(x.shape)}")
