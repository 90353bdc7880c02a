"""A plain KV-cached loop in torch, as the recipe of Self-Forcing streams: an honest reference.

diffusers' modules, the DiT with attention that caches, run eagerly. Keys are cached rotated, at
positions that count from the stream's beginning, in a buffer of the window's length; when that is
full its content is shifted. Every pass writes the chunk's keys and values, and a last one, over the
clean latents, leaves those that stay. Keys and values of the text are computed once. The VAE
decodes one latent frame at a time with the features it cached of the frame before.

Huang et al., "Self Forcing" (2025, arXiv 2506.08009). Written from the paper's description of its
inference; `tests/benchmarks/test_baseline_loop.py` has its frames equal LiveReel's.

Shapes: B batch, T latent frames, n tokens a frame, N = T n tokens, h heads, d head width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livereel.engine.errors import InputError
from livereel.engine.layers.layout import channels_last
from livereel.engine.models.taehv.decoder import TinyVAE
from livereel.engine.runners.watch import STAGES, Watch
from livereel.engine.sampling import schedule

from .baseline_diffusers import dit_of, part
from .report import Contents

if TYPE_CHECKING:
    from livereel.engine.types import Frames

    from .subject import Subject

_SOLVERS = ("renoise", "euler")


class Noise(Protocol):
    """Where noise comes from."""

    def __call__(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """Normal numbers of that shape, fp32, on the device."""


@dataclass
class Cache:
    """One layer's keys and values `[1, capacity, h, d]`, of which `used` tokens are filled."""

    k: Tensor
    v: Tensor
    used: int = 0

    def make_room(self, tokens: int) -> None:
        """Drop the oldest where `tokens` more would not fit."""
        over = self.used + tokens - self.k.shape[1]
        if over > 0:
            for buffer in (self.k, self.v):
                buffer[:, : self.used - over] = buffer[:, over : self.used].clone()
            self.used -= over


class CachedAttention:
    """An attention processor over a `Cache`; `fixed` keys and values are a prompt's."""

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self.fixed: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, attn: Any, hidden: Tensor, text: Tensor | None = None, mask: None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        q = attn.norm_q(attn.to_q(hidden)).unflatten(2, (attn.heads, -1))
        if text is not None:
            if self.fixed is None:
                self.fixed = _keys_values(attn, text)
            k, v = self.fixed
        else:
            assert self.cache is not None and rotary is not None
            cache, new = self.cache, q.shape[1]
            k, v = _keys_values(attn, hidden)
            end = cache.used + new
            cache.k[:, cache.used : end] = _rotate(k, rotary)
            cache.v[:, cache.used : end] = v
            q, k, v = _rotate(q, rotary), cache.k[:, :end], cache.v[:, :end]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class Positions(nn.Module):
    """In place of diffusers' tables, which end: cosines and sines from latent frame `first` on."""

    def __init__(self, head_dim: int, patch: int, device: torch.device) -> None:
        super().__init__()
        side = 2 * (head_dim // 6)
        self._dims, self._patch, self._device = (head_dim - 2 * side, side, side), patch, device
        self.first = 0
        self._made: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Of latents `[B, C, T, H, W]`: `[1, N, 1, d]` each; computed once for a chunk."""
        frames, height, width = latents.shape[2:]
        key = (self.first, frames, height, width)
        if self._made is None or self._made[0] != key:
            self._made = key, self._make(frames, height // self._patch, width // self._patch)
        return self._made[1]

    def _make(self, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        parts = []
        for axis, (start, length) in enumerate(((self.first, frames), (0, rows), (0, columns))):
            dim = self._dims[axis]
            rates = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            angles = torch.arange(start, start + length).double()[:, None] * rates
            shape = [1, 1, 1, -1]
            shape[axis] = length
            parts.append(angles.reshape(shape).expand(frames, rows, columns, -1))
        angles = torch.cat(parts, dim=-1).reshape(1, frames * rows * columns, 1, -1)
        return angles.cos().float().to(self._device), angles.sin().float().to(self._device)


def refusal(subject: Subject) -> str | None:
    """Why there is no such loop for a model or its recipe, if there is none."""
    kind, stream = subject.model.transformer.class_name, subject.stream
    if kind != "WanTransformer3DModel" or stream.solver not in _SOLVERS:
        return (
            f"the loop baseline streams Wan's DiTs by {' or '.join(_SOLVERS)}, not a {kind} by "
            f"{stream.solver}"
        )
    if stream.sinks or stream.anchors:
        return "the loop baseline keeps a window alone, without sinks or anchors"
    return None


class Loop:
    """The loop as a contender. Raises `InputError` for a model or recipe that it does not know."""

    def __init__(self, subject: Subject, noise: Noise | None = None) -> None:
        stream, runner = subject.stream, subject.runner
        if (reason := refusal(subject)) is not None:
            raise InputError(reason)
        self._subject = subject
        self._noise = noise or self._drawn
        self._dit = dit_of(subject)
        self._attention = []
        for block in self._dit.blocks:
            for attn in (block.attn1, block.attn2):
                attn.processor = CachedAttention()
            self._attention.append((block.attn1.processor, block.attn2.processor))
        config = self._dit.config
        self._heads = config.num_attention_heads, config.attention_head_dim
        self._patch = config.patch_size[1]
        self._dit.rope = Positions(config.attention_head_dim, self._patch, runner.device)
        self._tiny = runner.vae if isinstance(runner.vae, TinyVAE) else None
        if self._tiny is None:
            self._vae = part(subject.model.vae, subject.vae())
            channels_last(self._vae)
        timesteps = schedule.subset(stream.timesteps, subject.steps)
        self._sigmas = [*(t / schedule.TRAIN_TIMESTEPS for t in timesteps), 0.0]
        dtype = str(runner.dtype).removeprefix("torch.")
        vae = "tiny decoder" if self._tiny else "channels-last VAE, a latent frame at a time"
        self.name = "KV-cached loop"
        self.settings = f"{dtype} on {runner.device}, eager, {vae}"
        passes = subject.steps * (2 if subject.guided else 1) + 1
        self.contents = Contents(passes=passes, cache_pass=True, vae=subject.decoder)
        self.until_steady = 1 + -(-stream.window // stream.chunk_latents)
        self.stages: dict[str, list[float]] = {}

    @torch.inference_mode()
    def open(self) -> None:
        """See `Contender.open`."""
        subject, stream = self._subject, self._subject.stream
        runner, factor = subject.runner, subject.runner.vae.spatial_factor
        width, height = (side // factor for side in subject.size)
        self._size = height, width
        self._frame_tokens = (height // self._patch) * (width // self._patch)
        prompts = [subject.prompt, *([""] if subject.guided else [])]
        self._texts = [subject.text(prompt) for prompt in prompts]
        # Keys and values of a prompt are computed in its first pass, per layer.
        self._fixed: list[list[tuple[Tensor, Tensor] | None]] = [
            [None] * len(self._attention) for _ in prompts
        ]
        shape = (1, stream.window * self._frame_tokens, *self._heads)
        for own, _ in self._attention:
            k = torch.zeros(shape, device=runner.device, dtype=runner.dtype)
            own.cache = Cache(k, torch.zeros_like(k))
        self._chunk = self._latent = 0
        self._tiny_state: tuple[Tensor, ...] | None = None
        if self._tiny is None:
            self._vae.clear_cache()
        self.stages = defaultdict(list)

    @torch.inference_mode()
    def turn(self) -> int:
        """See `Contender.turn`."""
        return len(self.chunk())

    @torch.inference_mode()
    def chunk(self) -> Frames:
        """The next chunk's frames, uint8 `[F, H, W, 3]`."""
        subject = self._subject
        watch = Watch(subject.runner.device)
        count = subject.stream.chunk_size(self._chunk)
        for own, _ in self._attention:
            assert own.cache is not None
            own.cache.make_room(count * self._frame_tokens)
        self._dit.rope.first = self._latent
        clean = self._denoise(count)
        watch.lap("dit")
        self._forward(clean, subject.stream.context_noise, 0)
        for own, _ in self._attention:
            assert own.cache is not None
            own.cache.used += count * self._frame_tokens
        watch.lap("cache")
        pixels = self._decode(clean)
        watch.lap("vae")
        frames: Frames = _bytes(pixels)[0].cpu().numpy()
        watch.lap("convert")
        watch.stop()
        self._chunk += 1
        self._latent += count
        for stage in STAGES:
            self.stages[stage].append(watch.seconds[stage])
        return frames

    def _denoise(self, count: int) -> Tensor:
        stream, channels = self._subject.stream, self._subject.runner.transformer.channels
        shape = (1, channels, count, *self._size)
        x = self._noise(self._chunk, 0, shape)
        for step, (sigma, lower) in enumerate(
            zip(self._sigmas, self._sigmas[1:], strict=False)
        ):  # fmt: skip
            flow = self._forward(x, 1000 * sigma, 0)
            if len(self._texts) > 1:
                negative = self._forward(x, 1000 * sigma, 1)
                flow = negative + stream.guidance_scale * (flow - negative)
            if stream.solver == "euler":
                x = x + (lower - sigma) * flow
            else:
                x = x - sigma * flow
                if lower > 0:
                    fresh = self._noise(self._chunk, step + 1, shape)
                    x = (1 - lower) * x + lower * fresh
        return x

    def _forward(self, x: Tensor, time: float, which: int) -> Tensor:
        runner = self._subject.runner
        for (_, cross), fixed in zip(self._attention, self._fixed[which], strict=True):
            cross.fixed = fixed
        flow: Tensor = self._dit(
            x.to(runner.dtype), torch.full((1,), time, device=runner.device),
            self._texts[which], return_dict=False,
        )[0]  # fmt: skip
        self._fixed[which] = [cross.fixed for _, cross in self._attention]
        return flow.float()

    def _decode(self, clean: Tensor) -> Tensor:
        runner = self._subject.runner
        z = runner.ready(runner.vae.denormalize(clean))
        if self._tiny is not None:
            frames, self._tiny_state = self._tiny.decode(z, self._tiny_state)
            return frames
        x = self._vae.post_quant_conv(z)
        parts = []
        for i in range(x.shape[2]):
            self._vae._conv_idx = [0]
            first = {"first_chunk": True} if self._latent == 0 and i == 0 else {}
            parts.append(
                self._vae.decoder(
                    x[:, :, i : i + 1], feat_cache=self._vae._feat_map,
                    feat_idx=self._vae._conv_idx, **first,
                )
            )  # fmt: skip
        out = torch.cat(parts, dim=2)
        if (patch := self._vae.config.patch_size) is not None:
            out = import_module(type(self._vae).__module__).unpatchify(out, patch)
        return out

    def _drawn(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), device=self._subject.runner.device)


def _keys_values(attn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    k, v = attn.norm_k(attn.to_k(x)), attn.to_v(x)
    return k.unflatten(2, (attn.heads, -1)), v.unflatten(2, (attn.heads, -1))


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    one, two = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((one * cos - two * sin, one * sin + two * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _bytes(pixels: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to uint8 `[B, F, H, W, 3]`."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 4, 1)
