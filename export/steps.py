"""A model as step modules: tensors in, tensors out, all state among them, shapes fixed.

What `livereel.export` documents, graph by graph, is what these compute. They run the plain torch
road, or, to be compiled for a GPU, that of Triton's kernels.

Shapes: B batch (1), C latent channels, T latent frames, H W latent space, F pixel frames, L text
tokens, n tokens a latent frame, S latent frames of the past, h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from livereel.engine.checkpoint.load import build, load_component
from livereel.engine.errors import InputError
from livereel.engine.layers.chunks import cut
from livereel.engine.layers.upsample import Upsample2xConv, phase_kernels
from livereel.engine.manifest import Latent
from livereel.engine.text.encoder import TextEncoder
from livereel.engine.types import VAE, ClipTransformer, LoadedVAE, Transformer

from .held import HeldVAE

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from livereel.engine.checkpoint.folder import ModelFolder
    from livereel.engine.config import StreamConfig
    from livereel.engine.layers.road import Road


@runtime_checkable
class Exportable(Protocol):
    """A DiT that can be exported."""

    def step(self, past: int, frames: int, height: int, width: int) -> nn.Module:
        """A pass over `frames` latent frames and `past` earlier ones: of their keys and values, see
        `WanStep`, or, where `cached` is None, of themselves, see `CogVideoXStep`."""


@dataclass(frozen=True)
class Step:
    """A module and what it is called with: `inputs` and `outputs` by name, `inputs` as examples.

    `weights` names the file that its weights go to, with those of its siblings. `state` maps
    outputs to the inputs of the next call, perhaps of another graph.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    weights: str
    state: Mapping[str, str] = field(default_factory=dict)


class TextEncode(nn.Module):
    """Tokens `[1, L]` and their mask to the prompt's embedding `[1, L, D]`, zero where masked; all
    tokens count where there is no mask."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.model(tokens, mask).last_hidden_state.to(self.dtype)
        return hidden if mask is None else hidden * mask.unsqueeze(-1).to(self.dtype)


class TextKV(nn.Module):
    """A prompt's embedding to the keys and values `[layers, L, h, d]` of cross-attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        layers = cast(Transformer, self.model).text_kv(text)
        return torch.cat([kv.k for kv in layers]), torch.cat([kv.v for kv in layers])


class DenoiseFirst(nn.Module):
    """A pass over a stream's first chunk, which has no past."""

    def __init__(self, step: nn.Module, frames: int) -> None:
        super().__init__()
        self.step = step
        self.positions: Tensor
        self.register_buffer("positions", torch.arange(frames))

    def forward(
        self, latent: Tensor, timestep: Tensor, text_k: Tensor, text_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        nothing = text_k[:, :0]
        flow, k, v = self.step(latent, timestep, text_k, text_v, nothing, nothing, self.positions)
        return flow, k, v


class DenoiseAlone(nn.Module):
    """`DenoiseFirst` for a DiT that looks at past latents themselves."""

    def __init__(self, step: nn.Module, frames: int) -> None:
        super().__init__()
        self.step = step
        self.positions: Tensor
        self.register_buffer("positions", torch.arange(frames))

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        flow: Tensor = self.step(latent, timestep, text, latent[:, :, :0], self.positions)
        return flow


class _Scaled(nn.Module):
    """A VAE with the DiT's scale of its latents, as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("mean", mean.view(1, -1, 1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype


class VaeDecode(_Scaled):
    """Normalized latents `[1, C, T, H, W]` to frames `[1, 3, F, ...]` in [-1, 1], and caches."""

    names = ("latent", "frames")

    def forward(self, latent: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        x = (latent * self.std + self.mean).to(self.dtype)
        frames, kept = cast(VAE, self.vae).decode(x, caches or None)
        return (frames.float(), *kept)


class VaeEncode(_Scaled):
    """Frames `[1, 3, F, ...]` in [-1, 1] to normalized latents, and caches."""

    names = ("frames", "latent")

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        latents, kept = cast(VAE, self.vae).encode(frames.to(self.dtype), caches or None)
        return ((latents.float() - self.mean) / self.std, *kept)


class FoldedUpsample(nn.Module):
    """`Upsample2xConv` with its four kernels worked out beforehand."""

    def __init__(self, conv: Upsample2xConv) -> None:
        super().__init__()
        self.bias = conv.bias
        for phase, kernel in enumerate(phase_kernels(conv.weight)):
            self.register_buffer(f"kernel_{phase}", kernel.to(conv.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', 2H, 2W]`."""
        b, _, h, w = x.shape
        parts = []
        for phase in range(4):
            down, right = divmod(phase, 2)
            kernel = getattr(self, f"kernel_{phase}")
            y = nn.functional.conv2d(x, kernel, self.bias, padding=1)
            parts.append(y[:, :, down : down + h, right : right + w])
        rows = [torch.stack(parts[i : i + 2], dim=-1).flatten(-2) for i in (0, 2)]
        return torch.stack(rows, dim=-2).reshape(b, -1, 2 * h, 2 * w)


def fold_upsamples(module: nn.Module) -> None:
    """Put `FoldedUpsample` in place of each `Upsample2xConv` in `module`."""
    for name, child in module.named_children():
        if isinstance(child, Upsample2xConv):
            setattr(module, name, FoldedUpsample(child))
        else:
            fold_upsamples(child)


@dataclass(frozen=True)
class Plan:
    """What is exported: a model at the picture size of `stream`, in a dtype, for the GPUs
    `targets` ("sm_89") where the format is compiled for some, on the `road` of its steps."""

    folder: ModelFolder
    stream: StreamConfig
    dtype: torch.dtype
    targets: tuple[str, ...] = ()
    road: Road = "reference"

    @cached_property
    def latent(self) -> Latent:
        """The manifest's description of latents; no weights are read.

        Raises `InputError` for a picture size that the model does not fit, and for a model that is
        shown pictures in each pass.
        """
        stream = self.stream
        dit = cast(ClipTransformer, self._described("transformer"))
        vae = cast(VAE, self._described("vae"))
        grain = vae.spatial_factor * dit.spatial_patch
        if stream.width % grain or stream.height % grain:
            raise InputError(
                f"size {stream.width}x{stream.height} does not fit this model: width and height "
                f"must be multiples of {grain}"
            )
        if dit.condition_channels != stream.told_channels or dit.image_width is not None:
            raise InputError(
                f"{self.folder.path} is shown pictures in each pass, which no stream has"
            )
        past = stream.sinks + stream.anchors + stream.window - stream.chunk_latents
        zeros = torch.zeros(1, vae.channels, 1, 1, 1, dtype=torch.float64)
        mean = vae.denormalize(zeros)
        std = vae.denormalize(zeros + 1) - mean
        return Latent(
            channels=dit.channels,
            height=stream.height // vae.spatial_factor,
            width=stream.width // vae.spatial_factor,
            temporal_factor=vae.temporal_factor,
            spatial_factor=vae.spatial_factor,
            patch=dit.spatial_patch,
            past=past - (past + stream.chunk_latents) % dit.temporal_patch,
            temporal_patch=dit.temporal_patch,
            vae_chunk=vae.chunk,
            decoder_memory=vae.decoder_memory,
            text_width=dit.text_width,
            mean=tuple(mean.flatten().tolist()),
            std=tuple(std.flatten().tolist()),
        )

    def parts(self) -> Iterator[tuple[str, dict[str, Step]]]:
        """All graphs by component and name, the weights of one component in memory at a time."""
        for make in (self.text, self.dit, self.vae):
            steps = dict(make())
            yield next(iter(steps.values())).weights, steps
            del steps

    def text(self) -> Iterator[tuple[str, Step]]:
        """`text_encode`."""
        encoder = TextEncoder.load(self.folder.path, dtype=self.dtype)
        tokens = torch.zeros(1, self.stream.max_sequence_length, dtype=torch.long)
        inputs = {"tokens": tokens}
        if not encoder.as_typed:
            inputs["mask"] = torch.ones_like(tokens)
        module = TextEncode(encoder.model, self.dtype)
        yield "text_encode", Step(module.eval(), inputs, ("text",), "text_encoder")

    def dit(self) -> Iterator[tuple[str, Step]]:
        """`text_kv`, `denoise_first` and `denoise`; no `text_kv` for a DiT that looks at past
        latents themselves."""
        model = load_component(self.folder, "transformer", dtype=self.dtype)
        if not isinstance(model, Exportable):
            raise InputError(f"a {type(model).__name__} cannot be exported yet")
        if cast(ClipTransformer, model).cached() is None:
            return self._windowed(model)
        return self._cached(model)

    def _cached(self, model: Exportable) -> Iterator[tuple[str, Step]]:
        latent, stream = self.latent, self.stream
        size, length = (latent.height, latent.width), stream.max_sequence_length
        layers, tokens, heads, head_dim = cast(Transformer, model).kv_shape(*size)
        fused = cast(Transformer, model).in_ring() if self.road == "triton" else None
        steps = fused if isinstance(fused, Exportable) else model

        def inputs(frames: int) -> dict[str, Tensor]:
            text = torch.zeros(layers, length, heads, head_dim, dtype=self.dtype)
            return {**self._noisy(frames), "text_k": text, "text_v": text.clone()}

        text = {"text": torch.zeros(1, length, latent.text_width, dtype=self.dtype)}
        module = TextKV(cast(nn.Module, model))
        yield "text_kv", Step(module.eval(), text, ("text_k", "text_v"), "transformer")
        outputs, first, later = ("flow", "k", "v"), stream.first_chunk_latents, stream.chunk_latents
        alone = DenoiseFirst(steps.step(0, first, *size), first)
        yield "denoise_first", Step(alone.eval(), inputs(first), outputs, "transformer")
        past = (layers, latent.past, tokens, heads, head_dim)
        full = {
            **inputs(later),
            "past_k": _lazy_zeros(past, self.dtype),
            "past_v": _lazy_zeros(past, self.dtype),
            "positions": torch.arange(latent.past + later),
        }
        step = steps.step(latent.past, later, *size)
        yield "denoise", Step(step.eval(), full, outputs, "transformer")

    def _windowed(self, model: Exportable) -> Iterator[tuple[str, Step]]:
        latent, stream = self.latent, self.stream
        size, outputs = (latent.height, latent.width), ("flow",)
        first, later = stream.first_chunk_latents, stream.chunk_latents
        shape = (1, stream.max_sequence_length, latent.text_width)
        text = {"text": torch.zeros(shape, dtype=self.dtype)}
        alone = DenoiseAlone(model.step(0, first, *size), first)
        inputs = {**self._noisy(first), **text}
        yield "denoise_first", Step(alone.eval(), inputs, outputs, "transformer")
        inputs = {
            **self._noisy(later), **text, "past": self._noisy(latent.past)["latent"],
            "positions": torch.arange(latent.past + later),
        }  # fmt: skip
        step = model.step(latent.past, later, *size)
        yield "denoise", Step(step.eval(), inputs, outputs, "transformer")

    def _noisy(self, frames: int) -> dict[str, Tensor]:
        """A chunk's latents, with what the DiT is told behind them, and a timestep."""
        latent, stream = self.latent, self.stream
        channels = latent.channels + stream.told_channels
        noisy = torch.zeros(1, channels, frames, latent.height, latent.width)
        return {"latent": noisy, "timestep": torch.full((1,), stream.timesteps[0])}

    def vae(self) -> Iterator[tuple[str, Step]]:
        """`vae_decode_first`, `vae_decode`, `vae_encode_first`, `vae_encode`, and more of each for
        calls of other lengths."""
        latent, stream = self.latent, self.stream
        module = load_component(self.folder, "vae", dtype=self.dtype)
        if self.road == "triton":
            module = HeldVAE(cast(LoadedVAE, module).fused())
        else:
            fold_upsamples(module)
        scale = (torch.tensor(latent.mean), torch.tensor(latent.std))
        lone = torch.zeros(1, latent.channels, 1, latent.height, latent.width)
        decode = VaeDecode(module, *scale).eval()
        encode = VaeEncode(module, *scale).eval()
        calls = vae_calls(stream, latent)
        yield from with_state(decode, lone, calls["vae_decode_first"], calls["vae_decode"])
        lone = torch.zeros(1, 3, 1, stream.height, stream.width)
        yield from with_state(encode, lone, calls["vae_encode_first"], calls["vae_encode"])

    def _described(self, name: str) -> nn.Module:
        part = self.folder.component(name)
        return build(part.class_name, part.config, part.path / "config.json")


def check_stateless(program: ExportedProgram) -> None:
    """Raise `RuntimeError` for a step that writes into what it is given or holds: ONNX would lose
    that without a word, and a compiled graph would change its caller's tensors."""
    signature = program.graph_signature
    written = [*signature.user_inputs_to_mutate.values(), *signature.buffers_to_mutate.values()]
    if written:
        raise RuntimeError(f"a step keeps state: it writes into {', '.join(written):.200}")


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take up no memory until they are read, which tracing does not do: the state of a
    large model is as large as its weights."""
    content = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(content).view(dtype).reshape(shape)


def vae_calls(stream: StreamConfig, latent: Latent) -> dict[str, dict[str, int]]:
    """The VAE's graphs with the frames (latent or pixel) each takes, by what they are for: those of
    a stream's first call and of later ones, decoding and encoding.

    Of each the last has the plain name and is what a stream from noise begins or goes on with; the
    others are for streams that start from a picture or a clip.
    """
    factor, chunk, size = latent.temporal_factor, stream.chunk_latents, latent.vae_chunk
    if size is None:
        later = {"vae_decode": chunk} if chunk == 1 else {"vae_decode_one": 1, "vae_decode": chunk}
        return {
            "vae_decode_first": {"vae_decode_first": 1},
            "vae_decode": later,
            "vae_encode_first": {"vae_encode_first": 1},
            "vae_encode": {"vae_encode": factor},
        }

    def named(name: str, own: int, others: Iterable[int]) -> dict[str, int]:
        return {**{f"{name}_{n}": n for n in sorted(set(others)) if n != own}, name: own}

    frames, pixels = factor * chunk, factor * size
    start = stream.first_chunk_latents
    return {
        "vae_decode_first": named("vae_decode_first", cut(start, size)[0], range(1, 2 * size)),
        "vae_decode": named("vae_decode", cut(chunk, size)[-1], [size, *cut(chunk, size)]),
        "vae_encode_first": named(
            "vae_encode_first",
            cut(1 + factor * (start - 1), pixels)[0],
            range(1, 2 * pixels, factor),
        ),
        "vae_encode": named("vae_encode", cut(frames, pixels)[-1], [pixels, *cut(frames, pixels)]),
    }


def with_state(
    module: VaeDecode | VaeEncode, lone: Tensor, first: Mapping[str, int], later: Mapping[str, int]
) -> Iterator[tuple[str, Step]]:
    """A stream's `first` call, and `later` ones, by name with so many frames like `lone` each."""
    given, made = module.names

    def example(frames: int) -> dict[str, Tensor]:
        return {given: lone.expand(-1, -1, frames, -1, -1).contiguous()}

    inputs = example(next(iter(first.values())))
    traced = torch.export.export(module, tuple(inputs.values()), strict=False)  # for shapes alone
    (results,) = traced.graph.find_nodes(op="output")[0].args
    caches = [node.meta["val"] for node in results[1:]]
    names = [f"cache_{i:02}" for i in range(len(caches))]
    outputs = (made, *(f"next_{cache}" for cache in names))
    state = {f"next_{cache}": cache for cache in names}
    for name, frames in first.items():
        yield name, Step(module, example(frames), outputs, "vae", state)
    zeros = {
        cache: _lazy_zeros(tuple(x.shape), x.dtype) for cache, x in zip(names, caches, strict=True)
    }
    for name, frames in later.items():
        yield name, Step(module, {**example(frames), **zeros}, outputs, "vae", state)
