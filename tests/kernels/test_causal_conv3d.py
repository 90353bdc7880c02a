"""Causal convolution: the kernel against its reference in fp64, which `test_vae_blocks` holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.kernels.causal_conv3d import (
    SHIPPED,
    _causal_conv3d_kernel,
    add_gutter,
    causal_conv3d,
    causal_conv3d_reference,
)
from livereel.kernels.compile import compile_for
from livereel.kernels.conv_call import ConvCall, conv_config
from livereel.kernels.conv_tile import block_for
from livereel.kernels.tuning import forced

Outputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A call by its sizes; `road` says how the kernel is launched."""

    shape: tuple[int, int, int, int, int]  # B, T, H, W, C
    out: int = 24
    kernel: tuple[int, int, int] = (3, 3, 3)
    stride_t: int = 1
    stride: int = 1
    frames_out: int = 1
    gutter: bool = True
    cache: bool = True
    bias: bool = True
    residual: bool = False
    norm: bool = False
    keep_y: bool = True
    tma: int = 0
    frames: int = 1
    channels: int = 0
    depth: int = 32
    pixels: int = 16
    tiles: int = 1


@dataclass
class Call:
    """Its tensors, and what is asked of it."""

    tensors: list[Tensor | None]
    options: dict[str, Any]

    @classmethod
    def draw(cls, case: Case, dtype: torch.dtype, device: torch.device) -> Call:
        rng = torch.Generator(device).manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=rng, device=device)

        def frames(*sizes: int) -> Tensor:
            drawn = normal(*sizes).to(dtype)
            return add_gutter(drawn) if case.gutter else drawn

        b, _, h, w, c = case.shape
        x = frames(*case.shape)
        past = frames(b, case.kernel[0] - case.stride_t, h, w, c) if case.cache else None
        taps = c * case.kernel[0] * case.kernel[1] * case.kernel[2]
        weight = normal(case.out, c, *case.kernel).to(dtype) / taps**0.5
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
        bias = normal(case.out).to(dtype) if case.bias else None
        gain = normal(case.out).to(dtype) if case.norm else None
        options = dict(
            stride_t=case.stride_t, stride=case.stride, frames_out=case.frames_out,
            gutter=case.gutter, keep_y=case.keep_y,
        )  # fmt: skip
        like = ConvCall.of(
            x, weight, None, None, case.stride_t, case.stride, case.frames_out, case.gutter
        )
        rows, columns = like.h_out, like.w_out
        channels = case.out // case.frames_out
        residual = None
        if case.residual:
            residual = frames(b, like.t_out * case.frames_out, rows, columns, channels)
        return cls([x, past, weight, bias, residual, gain], options)

    def run(self, op: Callable[..., Outputs]) -> Outputs:
        return op(*self.tensors, **self.options)

    def truth(self) -> Outputs:
        wide = [None if tensor is None else tensor.double() for tensor in self.tensors]
        return causal_conv3d_reference(*wide, **self.options)


def launch(case: Case) -> dict[str, int]:
    return dict(
        conv_config(
            case.channels or block_for(case.out // case.frames_out), pixels=case.pixels,
            depth=case.depth, frames=case.frames, tma=case.tma, tiles=case.tiles,
        )
    )  # fmt: skip


SMALL = (2, 3, 3, 5, 20)
CASES = {
    "pixels": Case(SMALL, gutter=False, cache=False),
    "pixels, gutter": Case(SMALL, residual=True, norm=True),
    "pixels, parts": Case((1, 1, 3, 7, 16), 40, gutter=False, norm=True, depth=16, keep_y=False),
    "pixels, tiles": Case((1, 2, 3, 11, 20), 40, (3, 1, 1), gutter=False, tiles=2, channels=32),
    "runs": Case(SMALL, tma=1, residual=True, norm=True),
    "runs, pairs": Case((2, 4, 3, 5, 20), tma=1, frames=2, norm=True),
    "runs, pairs, parts": Case((1, 2, 3, 5, 20), 40, tma=1, frames=2, residual=True, norm=True),
    "runs, pairs, tiles": Case((1, 4, 3, 11, 20), 40, (3, 1, 3), tma=1, frames=2, tiles=2),
    "runs, halves": Case((1, 1, 1, 20, 8), 152, (1, 3, 3), tma=1, residual=True, norm=True),
    "runs, deep": Case((1, 2, 2, 7, 72), 20, tma=1, cache=False, bias=False),
    "norm apart": Case((1, 2, 3, 3, 12), 40, (3, 1, 1), channels=32, norm=True, keep_y=False),
    "two frames of one, runs": Case((1, 2, 3, 5, 20), 40, (3, 1, 1), frames_out=2, tma=1, frames=2),
    "two frames of one, pixels": Case((2, 3, 3, 5, 20), 40, (3, 1, 1), frames_out=2, gutter=False),
    "half the frames": Case((1, 4, 3, 5, 20), 20, (3, 1, 1), stride_t=2, gutter=False),
    "half the pixels": Case((1, 2, 5, 6, 20), 24, (1, 3, 3), stride=2, gutter=False),
    "half the pixels, gutter": Case((1, 2, 4, 7, 20), 24, (1, 3, 3), stride=2),
    "one tap": Case((2, 1, 3, 7, 20), 24, (1, 1, 1), gutter=False),
    "one tap, runs": Case((1, 2, 3, 7, 36), 24, (1, 1, 1), tma=1),
    "one pixel": Case((1, 1, 1, 1, 3), 1, gutter=False, cache=False, depth=16),
}  # fmt: skip
WAN = [
    Case((1, 4, 121, 209, 96), 96, residual=True, norm=True),
    Case((1, 2, 240, 416, 192), 192, norm=True, keep_y=False),
    Case((1, 2, 120, 208, 384), 384, residual=True),
    Case((1, 3, 61, 105, 384), 768, (3, 1, 1), frames_out=2),
    Case((1, 2, 60, 104, 16), 384, gutter=False),
    Case((1, 2, 97, 131, 96), 3, gutter=False),
    Case((1, 2, 97, 131, 96), 96, (1, 3, 3), stride=2),
    Case((2, 4, 97, 131, 192), 192, (3, 1, 1), stride_t=2),
]
"""Layers of Wan's VAE."""
LARGE = [
    Case((1, 4, 480, 832, 96), 96, residual=True, norm=True),
    Case((1, 3, 720, 1280, 96), 96, norm=True, keep_y=False),
    Case((1, 4, 240, 416, 192), 192, residual=True, norm=True),
]


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str, assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    case = CASES[name]
    call = Call.draw(case, torch.float32, torch.device("cpu"))
    with forced("causal_conv3d", launch(case)):
        results = call.run(causal_conv3d)
    for result, expected in zip(results, call.truth(), strict=True):
        assert_rounded(result, expected)
    if case.gutter and case.keep_y:
        assert not results[0][..., -1, :].any()
    if case.gutter and case.norm:
        assert not results[1][..., -1, :].any()


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tma", [0, 1])
def test_half_precision(
    tma: int, dtype: torch.dtype, assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    case = Case((1, 1, 2, 5, 24), 40, (3, 1, 3), tma=tma, residual=True, norm=True)
    call = Call.draw(case, dtype, torch.device("cpu"))
    with forced("causal_conv3d", launch(case)):
        results = call.run(causal_conv3d)
    for result, expected in zip(results, call.truth(), strict=True):
        assert result.dtype == dtype
        assert_rounded(result, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", WAN, ids=str)
def test_real_layers(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    call = Call.draw(case, dtype, device)
    results = call.run(causal_conv3d)  # with what the chip takes by default
    for result, expected in zip(results, call.truth(), strict=True):
        assert result.dtype == dtype
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), expected, atol=5e-5, rtol=0.6 * rounding)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_both_roads_agree(case: Case, device: torch.device) -> None:
    call = Call.draw(case, torch.bfloat16, device)
    by_default = call.run(causal_conv3d)
    with forced("causal_conv3d", launch(replace(case, pixels=64))):
        by_pixels = call.run(causal_conv3d)
    for one, other in zip(by_default, by_pixels, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [96, 192])
def test_streams_on_a_gpu_as_it_runs_whole(channels: int, device: torch.device) -> None:
    case = Case((1, 6, 61, 105, channels), channels, norm=True)
    call = Call.draw(case, torch.bfloat16, device)
    whole = call.run(causal_conv3d)
    for sizes in ([1] * 6, [2] * 3, [3, 3], [5, 1]):
        for one, other in zip(whole, in_chunks(call, causal_conv3d, sizes), strict=True):
            torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


def in_chunks(call: Call, op: Callable[..., Outputs], sizes: Sequence[int]) -> Outputs:
    """Feeds the cache that each call gives to the next."""
    x, cache, *rest = call.tensors
    assert x is not None
    outs: list[Outputs] = []
    for chunk in x.split(list(sizes), dim=1):
        outs.append(op(chunk, cache, *rest, **call.options))
        cache = outs[-1][2]
    return torch.cat([o[0] for o in outs], 1), torch.cat([o[1] for o in outs], 1), outs[-1][2]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_reference_streams_as_it_runs_whole(size: int) -> None:
    call = Call.draw(Case((1, 6, 3, 5, 20), 24, norm=True), torch.float64, torch.device("cpu"))
    sizes = [size] * (6 // size) + ([6 % size] if 6 % size else [])
    whole = call.run(causal_conv3d_reference)
    for one, other in zip(whole, in_chunks(call, causal_conv3d_reference, sizes), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.interpreter
@pytest.mark.parametrize(("tma", "frames"), [(0, 1), (1, 1), (1, 2)])
def test_streams_as_it_runs_whole(tma: int, frames: int) -> None:
    """Bit for bit, unless some chunks have frames that pair and others not."""
    case = Case((1, 6, 1, 4, 16), 16, (3, 1, 3), tma=tma, frames=frames, norm=True, cache=False)
    call = Call.draw(case, torch.float32, torch.device("cpu"))
    off = 0.0 if frames == 1 else 1e-6
    with forced("causal_conv3d", launch(case)):
        whole = call.run(causal_conv3d)
        for sizes in ([1] * 6, [2] * 3, [3, 3], [5, 1]):
            for one, other in zip(whole, in_chunks(call, causal_conv3d, sizes), strict=True):
                torch.testing.assert_close(one, other, atol=off, rtol=off)


@pytest.mark.interpreter
def test_takes_frames_that_are_strided(assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    case = Case((2, 3, 2, 4, 16), 16, (3, 1, 3), gutter=False)
    call = Call.draw(case, torch.float32, torch.device("cpu"))
    x = call.tensors[0]
    assert x is not None
    call.tensors[:2] = [x[:, 1:], x[:, :1].expand(-1, 2, -1, -1, -1)]  # CogVideoX's first past
    with forced("causal_conv3d", launch(case)):
        for result, expected in zip(call.run(causal_conv3d), call.truth(), strict=True):
            assert_rounded(result, expected)


@pytest.mark.interpreter
def test_one_frame_a_program_where_frames_do_not_pair() -> None:
    case = Case((1, 3, 1, 3, 16), 16, (3, 1, 1), tma=1)
    call = Call.draw(case, torch.float32, torch.device("cpu"))
    with forced("causal_conv3d", launch(case)):
        one = call.run(causal_conv3d)[0]
    with forced("causal_conv3d", launch(replace(case, frames=2))):
        assert torch.equal(call.run(causal_conv3d)[0], one)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    case = Case((1, 1, 2, 3, 16), 16, (3, 1, 1), norm=True, keep_y=False)
    call = Call.draw(case, torch.float32, torch.device("cpu"))
    with forced("causal_conv3d", launch(case)):
        torch.library.opcheck(causal_conv3d, call.tensors, call.options)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("road", "dtype"), [("runs", "bf16"), ("pixels", "bf16"), ("exact", "fp32")]
)
def test_compiles_where_sizes_are_one(road: str, dtype: str) -> None:
    """A size of 1 is a constant to Triton, where others are numbers."""
    layer = ConvCall(
        batch=1, t=1, h=1, w=1, c_in=32, c_out=32, kernel=(3, 3, 3), gutter=True, residual=False
    )  # fmt: skip
    pointers = ("p_x", "p_cache", "p_weight", "p_bias", "p_y")
    compiled = compile_for(
        _causal_conv3d_kernel,
        {
            **dict.fromkeys(pointers, f"*{dtype}:16"),
            **dict.fromkeys(("x_batch", "x_frame", "cache_batch", "cache_frame", "y_frame"), "i32"),
        },
        {
            **dict.fromkeys(("p_residual", "p_gain", "p_activated")),
            **dict.fromkeys(("T", "H", "W", "H_out", "W_out"), 1),
            **layer.constants(layer.fitting(getattr(layer, road)())),
        },
        sm=90,
        num_stages=2,
    )
    assert compiled.spills == 0
    assert dtype == "fp32" or compiled.instructions["HGMMA"] > 0


@pytest.mark.compile
def test_two_programs_of_narrow_layers_share_a_hopper_multiprocessor() -> None:
    narrow = [s for s in SHIPPED if s.name.startswith("C96-96") and 90 in s.sms]
    assert len(narrow) == 2
    for compiled in (shipped.compile(90) for shipped in narrow):
        assert compiled.registers * compiled.warps * 32 <= 65536 // 2
        assert compiled.shared_bytes + 1024 <= 233_472 // 2


@pytest.mark.compile
@pytest.mark.parametrize("channels", [96, 192])
def test_blackwells_sums_fit_its_tensor_memory(channels: int) -> None:
    """Where they don't, Triton compiles a kernel that does nothing but trap."""
    named = f"C{channels}-{channels}"
    (shipped,) = (s for s in SHIPPED if s.name.startswith(named) and 100 in s.sms)
    assert shipped.compile(100).instructions["UTCHMMA"] > 0


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    call = Call.draw(Case(SMALL), torch.float32, torch.device("cpu"))
    x, cache, weight, bias, _, _ = call.tensors
    assert x is not None and cache is not None and weight is not None and bias is not None
    with pytest.raises(ValueError, match=r"wants cache \[2, 2, 3, 6, 20\].*got float32 \[2, 1"):
        causal_conv3d(x, cache[:, 1:], weight, gutter=True)
    with pytest.raises(ValueError, match=r"wants x .*each frame contiguous.*strides"):
        causal_conv3d(x.transpose(2, 3), None, weight)
    with pytest.raises(ValueError, match=r"wants x .*bf16, fp16 or fp32.*got float64"):
        causal_conv3d(x.double(), None, weight.double())
    with pytest.raises(ValueError, match=r"wants weight channels last .* in the dtype of x"):
        causal_conv3d(x, None, weight.contiguous())
    with pytest.raises(ValueError, match=r"wants weight channels last .*got bfloat16"):
        causal_conv3d(x, None, weight.bfloat16())
    with pytest.raises(ValueError, match=r"wants bias contiguous \[24\]"):
        causal_conv3d(x, None, weight, bias[1:])
    with pytest.raises(ValueError, match=r"wants gain contiguous \[24\]"):
        causal_conv3d(x, None, weight, gain=bias[1:])
    with pytest.raises(ValueError, match=r"wants residual contiguous, as float32 \[2, 3, 3, 6, 24"):
        causal_conv3d(x, None, weight, residual=x)
    refused = pytest.raises(ValueError, match=r"runs \(tma\) only with a gutter")
    with forced("causal_conv3d", conv_config(32, tma=1)), refused:
        causal_conv3d(x, None, weight)
