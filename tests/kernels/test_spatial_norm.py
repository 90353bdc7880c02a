"""CogVideoX's spatial norm: the reference against diffusers', the kernel against fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.spatial_norm import spatial_norm, spatial_norm_reference
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COGVIDEOX = [
    pytest.param((1, 8, 480, 720, 128), (2, 60, 90), 32, marks=pytest.mark.gpu),
    pytest.param((1, 9, 240, 360, 256), (3, 60, 90), 32, marks=pytest.mark.gpu),
    pytest.param((1, 2, 60, 90, 512), (2, 60, 90), 32, marks=pytest.mark.gpu),
]
SHAPES = [
    ((1, 1, 2, 3, 8), (1, 2, 3), 2),  # nothing to resize
    ((2, 4, 4, 6, 12), (2, 2, 3), 4),  # a later chunk
    ((1, 5, 4, 18, 8), (3, 1, 9), 2),  # the first chunk: its first frame stands alone
    ((1, 2, 1, 3, 520), (1, 1, 1), 8),  # more channels than a block
    *COGVIDEOX,
]


def formula(
    x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> Tensor:
    """As the paper and diffusers have it: resize, group norm, gain and shift."""
    z = modulation.double().movedim(-1, 1)
    size = x.shape[1:4]
    if size[0] > 1 and size[0] % 2:
        rest = F.interpolate(z[:, :, 1:], (size[0] - 1, *size[1:]))
        z = torch.cat([F.interpolate(z[:, :, :1], (1, *size[1:])), rest], dim=2)
    else:
        z = F.interpolate(z, tuple(size))
    gain, shift = z.movedim(1, -1).chunk(2, dim=-1)
    normed = F.group_norm(x.double().movedim(-1, 1), groups, weight.double(), bias.double(), eps)
    return F.silu(normed.movedim(1, -1) * gain + shift)


def make(
    shape: tuple[int, ...], latent: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=rng, device=device)

    batch, channels = shape[0], shape[-1]
    x = draw(*shape) * 2 + 3
    modulation = draw(batch, *latent, 2 * channels)
    weight, bias = draw(2, channels).to(dtype)
    return x.to(dtype), modulation.to(dtype), weight, bias


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("shape", "latent", "groups"), SHAPES[:4])
def test_reference(
    shape: tuple[int, ...], latent: tuple[int, ...], groups: int, dtype: torch.dtype,
    assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    arguments = make(shape, latent, dtype, torch.device("cpu"))
    out = spatial_norm_reference(*arguments, groups, 1e-6)
    assert out.is_contiguous()
    assert_rounded(out, formula(*arguments, groups, 1e-6))


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 3), (9, 3), (2, 2), (8, 2)])
def test_equals_diffusers_on_its_own_weights(frames: int, latents: int) -> None:
    autoencoder: Any = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_cogvideox")
    torch.manual_seed(0)
    theirs = autoencoder.CogVideoXSpatialNorm3D(8, 4, groups=2)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    x, z = torch.randn(2, 8, frames, 4, 6), torch.randn(2, 4, latents, 2, 3)
    with torch.no_grad():
        wanted = F.silu(theirs(x, z)[0]).movedim(1, -1)
        convolutions = (theirs.conv_y.conv, theirs.conv_b.conv)
        matrix = torch.cat([convolution.weight.flatten(1) for convolution in convolutions])
        offset = torch.cat([convolution.bias for convolution in convolutions])
        modulation = F.linear(z.movedim(1, -1), matrix, offset)
        norm = theirs.norm_layer
        out = spatial_norm_reference(
            x.movedim(1, -1), modulation, norm.weight, norm.bias, 2, norm.eps
        )
    assert torch.allclose(out, wanted, atol=1e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "latent", "groups"), SHAPES)
def test_kernel(
    shape: tuple[int, ...], latent: tuple[int, ...], groups: int, dtype: torch.dtype,
    device: torch.device, assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    arguments = make(shape, latent, dtype, device)
    out = spatial_norm(*arguments, groups, 1e-6)
    assert out.dtype == dtype
    assert_rounded(out, formula(*arguments, groups, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("config", [(4, 2), (16, 16)])
def test_other_configurations(
    config: tuple[int, int], assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    arguments = make((1, 3, 2, 6, 12), (2, 1, 3), torch.float32, torch.device("cpu"))
    block, rows = config
    with forced("spatial_norm", {"block": block, "rows": rows, "num_warps": 4}):
        assert_rounded(spatial_norm(*arguments, 2, 1e-6), formula(*arguments, 2, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("rows", [2, 16])
def test_a_gutter_does_not_count_and_stays_zero(
    rows: int, assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, *others = make((2, 3, 4, 6, 12), (2, 2, 3), torch.float32, torch.device("cpu"))
    truth = formula(x, *others, 2, 1e-6)
    x = F.pad(x, (0, 0, 0, 1), value=100.0)
    outs = [spatial_norm_reference(x, *others, 2, 1e-6, gutter=True)]
    with forced("spatial_norm", {"block": 4, "rows": rows, "num_warps": 4}):
        outs.append(spatial_norm(x, *others, 2, 1e-6, gutter=True))
    for out in outs:
        assert out.shape == x.shape and not out[..., -1, :].any()
        assert_rounded(out[..., :-1, :], truth)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    arguments = make((1, 3, 2, 2, 8), (2, 1, 1), torch.float32, torch.device("cpu"))
    torch.library.opcheck(spatial_norm, (*arguments, 2, 1e-6))


@pytest.mark.parametrize(
    ("shape", "latent"),
    [
        ((1, 3, 4, 4, 8), (2, 3, 4)),  # 3 rows do not go into 4
        ((1, 4, 4, 4, 8), (3, 4, 4)),
        ((1, 5, 4, 4, 8), (1, 4, 4)),  # nothing for the frames after the first
        ((1, 5, 4, 4, 8), (4, 4, 4)),
        ((1, 1, 4, 4, 8), (2, 4, 4)),
        ((1, 0, 4, 4, 8), (1, 4, 4)),
    ],
)
def test_refuses_sizes_that_do_not_go_into_another(
    shape: tuple[int, ...], latent: tuple[int, ...]
) -> None:
    arguments = make(shape, latent, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"modulation \[B, t, h, w, 2 C\].*got float32 \[1, "):
        spatial_norm_reference(*arguments, 2, 1e-6)


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, modulation, weight, bias = make(
        (1, 3, 2, 2, 8), (2, 1, 1), torch.float32, torch.device("cpu")
    )
    with pytest.raises(ValueError, match=r"modulation \[B, t, h, w, 2 C\].*got float32 \[1, 2, 1"):
        spatial_norm(x, modulation[..., :8], weight, bias, 2, 1e-6)
    with pytest.raises(ValueError, match=r"modulation contiguous in torch.float32; got bfloat16"):
        spatial_norm(x, modulation.bfloat16(), weight, bias, 2, 1e-6)
    with pytest.raises(ValueError, match=r"groups that divide 8 channels; got 3"):
        spatial_norm(x, modulation, weight, bias, 3, 1e-6)
    with pytest.raises(ValueError, match=r"x contiguous"):
        spatial_norm(x.transpose(2, 3), modulation, weight, bias, 2, 1e-6)
