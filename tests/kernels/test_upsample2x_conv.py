"""Upsampling convolution: reference and kernel against upsampling and then convolving, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.causal_conv3d import add_gutter
from livereel.kernels.conv_call import conv_config
from livereel.kernels.rms_norm_silu import rms_norm_silu_reference
from livereel.kernels.tuning import forced
from livereel.kernels.upsample2x_conv import (
    fold_upsampled,
    upsample2x_conv,
    upsample2x_conv_reference,
)

WAN = [((1, 3, 61, 105, 384), 192), ((1, 2, 240, 416, 192), 96)]


def draw(
    shape: tuple[int, ...], out: int, dtype: torch.dtype, device: torch.device, *, gutter: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, a 3x3 weight, a bias and a gain."""
    rng = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=rng, device=device).to(dtype)

    x = normal(*shape)
    weight = normal(out, shape[-1], 3, 3) / (9 * shape[-1]) ** 0.5
    return add_gutter(x) if gutter else x, weight, normal(out), normal(out)


def truth(x: Tensor, weight: Tensor, bias: Tensor | None, gutter: bool) -> Tensor:
    """Upsample, then convolve, in fp64."""
    x = (x[..., :-1, :] if gutter else x).double()
    pictures = F.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    y = F.conv2d(pictures, weight.double(), None if bias is None else bias.double(), padding=1)
    y = y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return add_gutter(y) if gutter else y


@pytest.mark.parametrize("gutter", [False, True])
def test_reference_is_upsampling_and_convolving(gutter: bool) -> None:
    x, weight, bias, gain = draw(
        (2, 3, 3, 5, 20), 24, torch.float64, torch.device("cpu"), gutter=gutter
    )
    y, activated = upsample2x_conv_reference(x, fold_upsampled(weight), bias, gain, gutter)
    torch.testing.assert_close(y, truth(x, weight, bias, gutter))
    torch.testing.assert_close(activated, rms_norm_silu_reference(y, gain))
    none, again = upsample2x_conv_reference(
        x, fold_upsampled(weight), bias, gain, gutter, keep_y=False
    )
    assert none.shape == (0,) and torch.equal(again, activated)


def test_taps_are_summed_in_fp32_and_rounded_once() -> None:
    weight = torch.randn(3, 4, 3, 3).bfloat16()
    phases = fold_upsampled(weight)
    assert phases.shape == (4, 3, 2, 2, 4) and phases.dtype == torch.bfloat16
    lower_right = weight.double()[:, :, :2, :2].sum((2, 3))  # what odd pixels see at their own
    assert torch.equal(phases[3, :, 0, 0].double(), lower_right.bfloat16().double())
    with pytest.raises(ValueError, match=r"weight \[C', C, 3, 3\]; got float32 \[3, 4, 1, 1\]"):
        fold_upsampled(torch.zeros(3, 4, 1, 1))


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("gutter", "tma", "options"),
    [
        (False, 0, {}),
        (True, 0, dict(keep_y=False)),
        (True, 1, {}),
        (True, 1, dict(keep_y=False, channels=32)),  # the norm apart
    ],
)
def test_kernel(
    gutter: bool, tma: int, options: dict[str, Any],
    assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    keep_y = options.get("keep_y", True)
    x, weight, bias, gain = draw(
        (1, 2, 3, 5, 20), 40, torch.float32, torch.device("cpu"), gutter=gutter
    )
    config = conv_config(options.get("channels", 48), pixels=16, tma=tma)
    with forced("upsample2x_conv", config):
        y, activated = upsample2x_conv(x, fold_upsampled(weight), bias, gain, gutter, keep_y)
    expected = truth(x, weight, bias, gutter)
    assert_rounded(activated, rms_norm_silu_reference(expected, gain.double()))
    if keep_y:
        assert_rounded(y, expected)
        assert not gutter or not y[..., -1, :].any()
    else:
        assert y.shape == (0,)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    dtype: torch.dtype, assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, weight, bias, _ = draw((1, 1, 1, 3, 16), 16, dtype, torch.device("cpu"), gutter=False)
    phases = fold_upsampled(weight)
    with forced("upsample2x_conv", conv_config(16, pixels=16, depth=16)):
        y, activated = upsample2x_conv(x, phases, bias)
    assert y.dtype == dtype and activated.shape == (0,)
    expected, _ = upsample2x_conv_reference(x.double(), phases.double(), bias.double())
    assert_rounded(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("gutter", [False, True])
@pytest.mark.parametrize(("shape", "out"), WAN)
def test_real_layers(shape: tuple[int, ...], out: int, gutter: bool, device: torch.device) -> None:
    x, weight, bias, gain = draw(shape, out, torch.bfloat16, device, gutter=gutter)
    phases = fold_upsampled(weight)
    wide = [tensor.double() for tensor in (x, phases, bias, gain)]
    expected = upsample2x_conv_reference(*wide, gutter)
    for result, right in zip(upsample2x_conv(x, phases, bias, gain, gutter), expected, strict=True):
        torch.testing.assert_close(result.double(), right, atol=5e-5, rtol=0.6 * 2**-7)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    x, weight, bias, gain = draw(
        (1, 1, 1, 2, 16), 16, torch.float32, torch.device("cpu"), gutter=True
    )
    with forced("upsample2x_conv", conv_config(16, pixels=16, depth=16)):
        torch.library.opcheck(upsample2x_conv, (x, fold_upsampled(weight), bias, gain, True))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, weight, bias, gain = draw(
        (1, 1, 1, 2, 16), 16, torch.float32, torch.device("cpu"), gutter=False
    )
    phases = fold_upsampled(weight)
    with pytest.raises(ValueError, match=r"phases \[4, C', 2, 2, C\]; got .* \[16, 16, 3, 3\]"):
        upsample2x_conv(x, weight)
    with pytest.raises(ValueError, match=r"x contiguous \[B, T, H, W, C\]"):
        upsample2x_conv(x.expand(2, 1, 1, 2, 16), phases)
    with pytest.raises(ValueError, match=r"phases contiguous in the dtype of x; got bfloat16"):
        upsample2x_conv(x, phases.bfloat16())
    with pytest.raises(ValueError, match=r"wants bias contiguous \[16\]"):
        upsample2x_conv(x, phases, bias[1:])
    with pytest.raises(ValueError, match=r"wants gain contiguous \[16\]"):
        upsample2x_conv(x, phases, None, gain[1:])
    with pytest.raises(ValueError, match=r"with pixels"):
        upsample2x_conv(x[..., :1, :].contiguous(), phases, gutter=True)
    refused = pytest.raises(ValueError, match=r"runs \(tma\) only with a gutter")
    with forced("upsample2x_conv", conv_config(16, tma=1)), refused:
        upsample2x_conv(x, phases)
