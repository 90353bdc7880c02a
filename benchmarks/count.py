"""How many FLOPs and bytes a model's parts take, counted from what they run on the meta device.

No weights are needed and nothing is computed. Counted are the products, where the time of a video
model goes: linear layers, attention and convolutions. A multiplication and its addition are two
FLOPs. Bytes are what each product reads and writes once, as if all between the products were fused
into them; attention reads queries, keys and values and writes its result, never its scores.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from livereel.engine.checkpoint.load import build
from livereel.engine.config import MAX_SIDE
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.layers.upsample import Upsample2xConv
from livereel.engine.models.taehv.decoder import TinyDecoder, TinyVAE
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.sampling.window import KVRing, window_of
from livereel.engine.sampling.windowed import Windowed
from livereel.engine.types import VAE, ClipTransformer, Decoder, Place

from .random_weights import TAEHV_SPACE, TAEHV_WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from livereel.engine.config import StreamConfig

    from .models import Model, Part

META = torch.device("meta")
DECODE, DIRECT, TINY = "VAE decode", "VAE decode, upsampling plainly", "tiny decoder instead"
"""Stages of which each stands for the others. Plainly means as other engines do it, by convolutions
of the larger picture; the first leaves out what these do twice."""
MOST_TOKENS = 1 << 18
"""Of a pass: tables of positions are the one thing that takes memory here."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs, and bytes read and written, by the kind of product."""

    flops: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)

    @property
    def tflop(self) -> float:
        """All FLOPs, in 10^12."""
        return sum(self.flops.values()) / 1e12

    @property
    def gigabytes(self) -> float:
        """All bytes, in 10^9."""
        return sum(self.moved.values()) / 1e9


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage of the work and how often it runs."""

    name: str
    work: Work
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a model takes. `clip` and `chunk` are the stages of a whole clip, each once, and of a
    stream's chunk in its steady state; bytes of weights are by component."""

    frames: int
    latents: int
    clip: tuple[Step, ...]
    chunk: tuple[Step, ...]
    weights: Mapping[str, int]
    ring: int

    def __str__(self) -> str:
        """A table with a line for each stage."""
        weights = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in self.weights.items())
        lines = [
            f"weights: {weights}; a stream's ring: {self.ring / 1e9:.2f} GB",
            f"{'':35}{'TFLOP':>9}{'of it attention':>17}{'GB':>9}{'FLOP a byte':>13}",
        ]
        for title, steps in (
            (f"clip of {self.frames} frames ({self.latents} latent)", self.clip),
            ("chunk of a stream", self.chunk),
        ):
            lines.append(title)
            for step in steps:
                each = f", each of {step.times}" if step.times > 1 else ""
                lines.append(_line(step.name + each, step.work))
        own = total(step for step in self.chunk if step.name != TINY)
        return "\n".join([*lines, _line("chunk in all, with the VAE", own)])


class _Meter(TorchDispatchMode):
    """Adds up the work of every product that runs under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        count = _FORMULAS.get(func)
        if count is None:
            with self:
                taken = func.decompose(*args, **kwargs)
            if taken is not NotImplemented:
                return taken
        result = func(*args, **kwargs)
        if count is not None:
            kind, flops = count(result, *args)
            self.flops[kind] += flops
            tensors = [x for x in (result, *args) if isinstance(x, Tensor)]
            self.moved[kind] += sum(x.numel() * x.element_size() for x in tensors)
        return result


def _product(out: Tensor, a: Tensor, b: Tensor) -> tuple[str, int]:
    return "linear", 2 * out.numel() * a.shape[-1]


def _sum_of_product(out: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> tuple[str, int]:
    return _product(out, a, b)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *_: object) -> tuple[str, int]:
    return "convolution", 2 * out.numel() * weight[0].numel()


def _attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[str, int]:
    keys, width = k.shape[-2:]
    return "attention", 2 * math.prod(q.shape[:-1]) * keys * (width + v.shape[-1])


_ATEN = torch.ops.aten
_FORMULAS: Mapping[Any, Callable[..., tuple[str, int]]] = {
    _ATEN.mm.default: _product,
    _ATEN.bmm.default: _product,
    _ATEN.addmm.default: _sum_of_product,
    _ATEN.baddbmm.default: _sum_of_product,
    _ATEN.convolution.default: _convolution,
    _ATEN.scaled_dot_product_attention.default: _attention,
}


def work_of(job: Callable[[], object]) -> Work:
    """The work of what `job` runs with torch, on any device."""
    meter = _Meter()
    # Under inference mode an attention comes whole, and not in the pieces of a device's choosing.
    with torch.inference_mode(), meter:
        job()
    return Work(flops=dict(meter.flops), moved=dict(meter.moved))


def count(
    model: Model, *, size: tuple[int, int], frames: int, stream: StreamConfig, steps: int,
    dtype: torch.dtype,
) -> Counted:  # fmt: skip
    """Of a clip of so many frames of pixels, and of a chunk by the recipe `stream` in so many
    `steps`, at `size`.

    Raises `InputError` for a size or length that the model does not make.
    """
    dit = cast(ClipTransformer, built(model.transformer, dtype))
    vae_module = built(model.vae, dtype)
    vae = cast(VAE, vae_module)
    height, width = latent_size(dit, vae, size)
    latents = _latent_frames(dit, vae, frames)
    longest = max(latents, stream.window + stream.sinks + stream.anchors)
    tokens = longest * (height // dit.spatial_patch) * (width // dit.spatial_patch)
    if tokens > MOST_TOKENS:
        raise InputError(
            f"{size[0]}x{size[1]} and {longest} latent frames are {tokens} tokens; at most "
            f"{MOST_TOKENS} are counted"
        )
    plain = cast(VAE, plainly_upsampling(built(model.vae, dtype)))
    tiny = _tiny(vae, dtype)

    def empty(channels: int, length: int) -> Tensor:
        return torch.empty(1, channels, length, height, width, dtype=dtype, device=META)

    taken = dit.channels + dit.condition_channels
    text = torch.empty(1, stream.max_sequence_length, dit.text_width, dtype=dtype, device=META)
    time = torch.empty(1, device=META)
    whole, z = empty(taken, latents), empty(vae.channels, latents)
    clip = [
        Step(name="DiT pass", work=work_of(lambda: dit(whole, time, text))),
        Step(name=DECODE, work=work_of(lambda: vae.decode(z))),
        Step(name=DIRECT, work=work_of(lambda: plain.decode(z))),
    ]
    if tiny is not None:
        clip.append(Step(name=TINY, work=work_of(lambda: tiny.decode(z))))

    denoiser = Windowed(dit) if (cached := dit.cached()) is None else Gathered(cached)
    layout, chunk = window_of(stream), stream.chunk_latents
    layers, *row = denoiser.kv_shape(height, width)
    ring = KVRing.empty(layout, (layers, layout.slots, *row), device=META, dtype=dtype)
    # A chunk that sees all it ever will.
    first = chunk * (stream.sinks + stream.window + stream.anchors * stream.anchor_every)
    place = Place(first, chunk, tuple(layout.visible(first)))
    with torch.inference_mode():
        words = denoiser.text_kv(text)
        at = denoiser.at((place,), ring, height, width)
    x, z_next = empty(taken, chunk), empty(vae.channels, chunk)
    flow, cache = (
        work_of(lambda: at.flow(x, time, words)),
        work_of(lambda: at.cache(x, time, words)),
    )
    steady = [Step(name="DiT pass", work=flow, times=steps)]
    if cache.flops:
        steady.append(Step(name="cache pass", work=cache))
    steady.append(Step(name=DECODE, work=_next_decode(vae, z_next)))
    if tiny is not None:
        steady.append(Step(name=TINY, work=_next_decode(tiny, z_next)))
    return Counted(
        frames=frames,
        latents=latents,
        clip=tuple(clip),
        chunk=tuple(steady),
        weights={"DiT": weight_bytes(cast(nn.Module, dit)), "VAE": weight_bytes(vae_module)},
        ring=2 * ring.k.numel() * ring.k.element_size(),
    )


def latent_size(dit: ClipTransformer, vae: VAE, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the latents of pictures of width and height `size`.

    Raises `InputError` unless both are multiples of what the model takes.
    """
    step = dit.spatial_patch * vae.spatial_factor
    if any(side % step or not 0 < side <= MAX_SIDE for side in size):
        raise InputError(
            f"size {size[0]}x{size[1]} does not fit this model: width and height must be "
            f"multiples of {step}, at most {MAX_SIDE}"
        )
    return size[1] // vae.spatial_factor, size[0] // vae.spatial_factor


def plainly_upsampling(module: nn.Module) -> nn.Module:
    """`module` with every upsampling as other engines run it: a larger picture, then 3x3 taps."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, Upsample2xConv):
            conv = nn.Conv2d(
                layer.in_channels, layer.out_channels, 3, padding=1,
                device=layer.weight.device, dtype=layer.weight.dtype,
            )  # fmt: skip
            module.set_submodule(name, nn.Sequential(nn.Upsample(scale_factor=2), conv))
    return module


def total(steps: Iterable[Step]) -> Work:
    """All of them together, each as often as it runs."""
    flops: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for step in steps:
        flops.update({kind: step.times * n for kind, n in step.work.flops.items()})
        moved.update({kind: step.times * n for kind, n in step.work.moved.items()})
    return Work(flops=dict(flops), moved=dict(moved))


def _latent_frames(dit: ClipTransformer, vae: VAE, frames: int) -> int:
    later, rest = divmod(frames - 1, vae.temporal_factor)
    if frames < 1 or rest or (later + 1) % dit.temporal_patch:
        raise InputError(
            f"a clip of {frames} frames does not fit this model: wanted are 1 + a multiple of "
            f"{vae.temporal_factor} frames, a multiple of {dit.temporal_patch} when latent"
        )
    return later + 1


def _next_decode(decoder: Decoder, z: Tensor) -> Work:
    """Of a chunk that is not the stream's first."""
    with torch.inference_mode():
        _, caches = decoder.decode(z)
    return work_of(lambda: decoder.decode(z, caches))


def _tiny(vae: VAE, dtype: torch.dtype) -> TinyVAE | None:
    """The published tiny decoder of such latents, if there can be one."""
    with META:
        decoder = TinyDecoder(vae.channels, TAEHV_WIDTHS, max(1, vae.spatial_factor // TAEHV_SPACE))
    try:
        return TinyVAE(vae, decoder.to(dtype))
    except CheckpointError:
        return None


def _line(name: str, work: Work) -> str:
    share = work.flops.get("attention", 0) / 1e12 / work.tflop
    return (
        f"  {name:33}{work.tflop:9.4g}{share:17.0%}{work.gigabytes:9.4g}"
        f"{1000 * work.tflop / work.gigabytes:13.0f}"
    )


def built(part: Part, dtype: torch.dtype) -> nn.Module:
    """A component without weights, on the meta device, in `dtype` but for what a class keeps in
    fp32."""
    module = build(part.class_name, part.config, part.class_name)
    kept = getattr(module, "keep_in_fp32", ())
    for name, p in module.named_parameters():
        if not any(piece in name for piece in kept):
            p.data = p.data.to(dtype)
    return module.eval().requires_grad_(False)


def weight_bytes(module: nn.Module) -> int:
    """Of a module's weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
