"""bfloat16 layers on the C++ core's AVX512-BF16 kernels (`csrc/cpu`), for small models on a CPU.

oneDNN multiplies nearly as fast, but around its products a small model loses more time than in
them: weights put in order anew in each call, passes of their own for bias, gate, residual, norm and
padding, and torch's dispatch. Here weights are packed once, what surrounds a product is done while
its rows are at hand, and a call costs some microseconds.

Packed weights are copies, so large models stay with torch (`affordable`).

Shapes: R rows, D width, T frames, H W space, C channels; batch 1, dense, channels last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from livereel.kernels.upsample2x_conv import fold_upsampled

from .. import native

if TYPE_CHECKING:
    from .causal_conv import CacheTape, CausalConv3d
    from .norm import ChannelRMSNorm
    from .rope import RopeTable
    from .upsample import Upsample2xConv

LIMIT = 256 << 20
"""Bytes of weights above which packed copies are too dear."""


_team = threading.local()


@contextmanager
def torch_in_one_thread() -> Iterator[None]:
    """Keep torch's own small operations in this thread, and the cores for the kernels here: behind
    each one that it shares out, torch's threads stay on their cores for milliseconds, waiting for
    the next."""
    if hasattr(_team, "threads"):
        yield
        return
    _team.threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_team.threads)
        del _team.threads


def _threads() -> int:
    """How many threads share a kernel's work."""
    count: int = getattr(_team, "threads", 0)
    return count or torch.get_num_threads()


def affordable(module: nn.Module) -> bool:
    """Whether `module` can run here as it was loaded: on a CPU with these kernels, its matrices in
    bfloat16, none in fp8, and not too large to be copied."""
    weights = [p for p in module.parameters() if p.dtype == torch.bfloat16]
    size = sum(p.numel() * p.element_size() for p in weights)
    return (
        native.dot_supported()
        and 0 < size <= LIMIT
        and all(p.device.type == "cpu" for p in module.parameters())
        and all(b.dtype != torch.float8_e4m3fn for b in module.buffers())
    )


def pack(weight: Tensor) -> native.PackedMatrix:
    """`[outputs, depth, ...]`, the rest being a kernel's places, made ready to be multiplied by."""
    taps = weight.detach().to(torch.bfloat16).reshape(*weight.shape[:2], -1)
    return native.PackedMatrix(to_dlpack(taps))


def floats(x: Tensor) -> Tensor:
    """Dense fp32 that nothing is recorded of: gains, biases and tables."""
    return x.detach().float().contiguous()


class PackedLinear:
    """Linear layers that share an input, their outputs side by side; convolutions of one place or
    of patches side by side are such, too."""

    def __init__(self, *layers: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
        weights, biases = zip(*((x.weight.flatten(1), x.bias) for x in layers), strict=True)
        self.weights = pack(torch.cat(weights))
        self._bias = to_dlpack(floats(torch.cat(biases)))

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """`[R, D]` to `[R, outputs]`, through GELU where asked for."""
        y = x.new_empty(len(x), self.weights.outputs)
        self._run(x, y, gelu, None, None)
        return y

    def add_to(self, residual: Tensor, x: Tensor, gate: Tensor | None = None) -> None:
        """`residual += gate * layer(x)` in place; `gate` fp32 `[groups, outputs]`."""
        self._run(x, residual, False, to_dlpack(residual), gate)

    def _run(
        self, x: Tensor, y: Tensor, gelu: bool, residual: object | None, gate: Tensor | None
    ) -> None:
        gates = None if gate is None else to_dlpack(gate)
        native.linear(
            to_dlpack(x), self.weights, to_dlpack(y), self._bias, gelu, residual, gates, _threads()
        )


def norm_modulate(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, *, offset: float = 1.0
) -> Tensor:
    """`LayerNorm(x) (offset + scale) + shift` of `[R, D]`; gains fp32 `[groups, D]`."""
    y = torch.empty_like(x)
    native.layer_norm(
        to_dlpack(x), to_dlpack(scale), to_dlpack(shift), to_dlpack(y), offset, eps, _threads()
    )
    return y


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMS norm of `[R, D]`, gain fp32 `[D]`."""
    y = torch.empty_like(x)
    native.rms_norm(to_dlpack(x), to_dlpack(gain), eps, to_dlpack(y), _threads())
    return y


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """`[B, N, h, d]` rotated."""
    x = x.contiguous()
    y = torch.empty_like(x)
    native.rotate(
        to_dlpack(x), to_dlpack(table.cos), to_dlpack(table.sin), to_dlpack(y), _threads()
    )
    return y


def qk_norm_rotate(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, eps: float, table: RopeTable
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `[R, 3 D]` the queries, normed and rotated, the keys, normed, and those rotated; gains
    fp32 `[D]`, R a multiple of the table's positions."""
    q, k, rotated = qkv.new_empty(3, len(qkv), qkv.shape[1] // 3).unbind()
    native.qk_norm_rotate(
        to_dlpack(qkv), to_dlpack(q_gain), to_dlpack(k_gain), eps, to_dlpack(table.cos),
        to_dlpack(table.sin), to_dlpack(q), to_dlpack(k), to_dlpack(rotated), _threads(),
    )  # fmt: skip
    return q, k, rotated


def attention(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], out: Tensor) -> None:
    """Unmasked attention of `[N, h, d]` over all pieces of keys, into `out` of q's shape; any
    strides but the last."""
    native.attention(
        to_dlpack(q), [to_dlpack(k) for k in keys], [to_dlpack(v) for v in values],
        to_dlpack(out), _threads(),
    )  # fmt: skip


class PackedConv:
    """A convolution over frames laid out with all that its kernel sees."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, corner: tuple[int, int] = (0, 0)
    ) -> None:
        """`weight` `[out, in, kt, kh, kw]`; its first place sees row and column `corner` first."""
        self.outputs = len(weight)
        self._weights = pack(weight)
        sizes, (down, right) = weight.shape[2:], corner
        self._taps = [(t, down + h, right + w) for t, h, w in product(*map(range, sizes))]
        self._bias = None if bias is None else to_dlpack(floats(bias))

    def __call__(self, x: Tensor, out: Tensor, residual: Tensor | None = None) -> None:
        """From `x`, at least `[T + kt - 1, H + kh - 1, W + kw - 1, C]`, to `out` `[T, H, W, out]`,
        plus `residual`, which is laid out as `out` is."""
        added = None if residual is None else to_dlpack(residual)
        native.convolve(
            to_dlpack(x), self._weights, self._taps, self._bias, added, to_dlpack(out), _threads()
        )


def after_past(
    x: Tensor,
    tape: CacheTape,
    history: int,
    border: tuple[int, int] = (0, 0),
    gain: Tensor | None = None,
) -> Tensor:
    """`[T, H, W, C]` behind the `history` frames that the tape has of its past, each within a
    border of zeros; with `gain`, fp32 `[C]`, through norm and SiLU before. The newest go there."""
    (t, h, w, c), (rows, columns) = x.shape, border
    past = tape.take()
    past = None if past is None else past[0].permute(1, 2, 3, 0).contiguous()
    kept = x.new_empty(history, h, w, c)
    out = x.new_empty(history + t, h + 2 * rows, w + 2 * columns, c)
    _pad(x, past, gain, out, kept)
    tape.put(kept.permute(3, 0, 1, 2).unsqueeze(0))
    return out


class PackedCausalConv:
    """A `CausalConv3d`, with the norm and SiLU before it where there are any."""

    def __init__(self, conv: CausalConv3d, norm: ChannelRMSNorm | None = None) -> None:
        self._conv = PackedConv(conv.weight, conv.bias)
        self._history, self._border = (
            conv.history,
            (conv.kernel_size[1] // 2, conv.kernel_size[2] // 2),
        )
        self._gain = None if norm is None else floats(norm.gamma.flatten() * norm.scale)

    def step(self, x: Tensor, tape: CacheTape, residual: Tensor | None = None) -> Tensor:
        """Convolve `[T, H, W, C]` after what the tape holds of its past, plus `residual`."""
        out = x.new_empty(*x.shape[:3], self._conv.outputs)
        seen = after_past(x, tape, self._history, self._border, self._gain)
        self._conv(seen, out, residual)
        return out


class PackedUpsample2xConv:
    """An `Upsample2xConv`: a convolution of the small picture for each pixel of four."""

    def __init__(self, conv: Upsample2xConv) -> None:
        taps = fold_upsampled(conv.weight.detach()).permute(0, 1, 4, 2, 3).unsqueeze(3)
        corners = product(range(2), range(2))
        self._phases = {
            corner: PackedConv(weight, conv.bias, corner)
            for corner, weight in zip(corners, taps, strict=True)
        }

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        """`[T, H, W, C]` to `[T, 2 H, 2 W, C']`; frame by frame, so the tape is left alone."""
        t, h, w, c = x.shape
        padded = x.new_empty(t, h + 2, w + 2, c)
        _pad(x, None, None, padded, None)
        out = x.new_empty(t, 2 * h, 2 * w, self._phases[0, 0].outputs)
        for (down, right), conv in self._phases.items():
            conv(padded, out[:, down::2, right::2])
        return out


def unfold(x: Tensor, patch: int) -> Tensor:
    """`[T, H, W, 3 p p]`, channels in the order (color, column, row), to `[T, p H, p W, 3]`, each
    clamped to [-1, 1]."""
    t, h, w, _ = x.shape
    y = x.new_empty(t, patch * h, patch * w, 3)
    native.unfold(to_dlpack(x), to_dlpack(y), _threads())
    return y


@torch_in_one_thread()
def to_bytes(x: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to uint8 `[B, F, H, W, 3]`, rounded to nearest."""
    pictures = x.permute(0, 2, 3, 4, 1).to(torch.bfloat16).contiguous()
    y = torch.empty(pictures.shape, dtype=torch.uint8)
    native.to_bytes(to_dlpack(pictures), y.view(-1).numpy(), _threads())
    return y


def _pad(
    x: Tensor, past: Tensor | None, gain: Tensor | None, out: Tensor, kept: Tensor | None
) -> None:
    native.pad(
        to_dlpack(x),
        None if past is None else to_dlpack(past),
        None if gain is None else to_dlpack(gain),
        to_dlpack(out),
        None if kept is None else to_dlpack(kept),
        _threads(),
    )
