"""LayerNorm with a timestep's gains: the reference and the kernel against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from livereel.kernels.norm_modulate import MOST_WIDTH, norm_modulate, norm_modulate_reference
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAN = [pytest.param(1, 3, 1560, width, marks=pytest.mark.gpu) for width in (1536, 3072, 5120)]
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 24), (1, 2, 17, 96), (1, 2, 3, 520), *WAN]


def formula(x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0) -> Tensor:
    x = x.double()
    centered = x - x.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * (base + scale.double()) + shift.double()


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, each: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations far from zero mean, and gains sliced from a table as blocks do."""
    batch, frames, tokens, width = shape
    rng = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=rng, device=device)

    x = (draw(batch, frames, tokens, width) * 2 + 5).to(dtype)
    table = draw(batch if each else 1, frames if each else 1, 6, width) * 0.5
    shift, scale = table.unsqueeze(3).unbind(2)[:2]
    return x, scale, shift


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reference(
    dtype: torch.dtype, each: bool, assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, scale, shift = make((2, 3, 5, 24), dtype, torch.device("cpu"), each=each)
    if dtype == torch.float64:
        scale, shift = scale.double(), shift.double()
    assert_rounded(norm_modulate_reference(x, scale, shift, 1e-6), formula(x, scale, shift, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "frames", "tokens", "width"), SHAPES)
def test_kernel(
    batch: int, frames: int, tokens: int, width: int, dtype: torch.dtype, each: bool,
    device: torch.device, assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    x, scale, shift = make((batch, frames, tokens, width), dtype, device, each=each)
    out = norm_modulate(x, scale, shift, 1e-6)
    assert out.dtype == dtype
    assert_rounded(out, formula(x, scale, shift, 1e-6))


@pytest.mark.interpreter
def test_an_ordinary_layer_norm_and_other_configurations(
    assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:
    x, scale, shift = make((1, 2, 5, 40), torch.float32, torch.device("cpu"), each=False)
    expected = formula(x, scale, shift, 1e-5, base=0.0)
    assert_rounded(norm_modulate(x, scale, shift, 1e-5, 0.0), expected)
    for rows in (1, 2, 8):
        with forced("norm_modulate", {"rows": rows, "num_warps": 4}):
            assert_rounded(norm_modulate(x, scale, shift, 1e-5, 0.0), expected)


@pytest.mark.interpreter
def test_nothing_in_nothing_out() -> None:
    x, scale, shift = make((1, 2, 0, 24), torch.float32, torch.device("cpu"))
    assert norm_modulate(x, scale, shift, 1e-6).shape == (1, 2, 0, 24)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    arguments = (*make((1, 2, 3, 24), torch.float32, torch.device("cpu")), 1e-6)
    torch.library.opcheck(norm_modulate, arguments)


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, scale, shift = make((2, 3, 5, 24), torch.float32, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"x contiguous \[B, T, n, D\].*got float32 \[2, 3, 24, 5\]"
    ):
        norm_modulate(x.transpose(2, 3), scale, shift, 1e-6)
    with pytest.raises(ValueError, match=r"got float64"):
        norm_modulate(x.double(), scale, shift, 1e-6)
    with pytest.raises(ValueError, match=r"scale fp32 \[2 or 1, 3 or 1, 1, 24\].*got bfloat16"):
        norm_modulate(x, scale.bfloat16(), shift, 1e-6)
    with pytest.raises(ValueError, match=r"shift fp32 .*got float32 \[2, 2, 1, 24\]"):
        norm_modulate(x, scale, shift[:, :2], 1e-6)
    wide = torch.zeros(1, 1, 1, MOST_WIDTH + 1)
    with pytest.raises(ValueError, match=rf"up to {MOST_WIDTH}; got {MOST_WIDTH + 1}"):
        norm_modulate(wide, wide, wide, 1e-6)
