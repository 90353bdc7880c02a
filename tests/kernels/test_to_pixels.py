"""Floats to bytes: the references and the kernels against the formulas in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from livereel.kernels.to_pixels import (
    to_pixels,
    to_pixels_reference,
    to_yuv420,
    to_yuv420_reference,
)
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BIG = pytest.param((1, 3, 12, 480, 832), marks=pytest.mark.gpu)
SHAPES = [(1, 3, 1, 2, 2), (2, 3, 2, 4, 14), (1, 3, 1, 2, 400), BIG]
CPU = torch.device("cpu")


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pictures that reach somewhat beyond [-1, 1]."""
    rng = torch.Generator(device).manual_seed(0)
    return (torch.rand(shape, generator=rng, device=device) * 2.4 - 1.2).to(dtype)


def layouts(x: Tensor) -> list[Tensor]:
    """The same picture in planes, channels last, and cut out of a larger one."""
    larger = x.new_zeros(*x.shape[:3], x.shape[3] + 1, x.shape[4] + 3)
    larger[..., 1:, 2:-1] = x
    last = x.contiguous(memory_format=torch.channels_last_3d)
    return [x, last, larger[..., 1:, 2:-1]]


def rgb(x: Tensor) -> Tensor:
    return ((x.double() + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 4, 1)


def yuv(x: Tensor) -> Tensor:
    r, g, b = ((x.double() + 1) / 2).clamp(0, 1).unbind(1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * y]
    for chroma in ((b - y) / (2 * (1 - 0.0722)), (r - y) / (2 * (1 - 0.2126))):
        quarter = torch.nn.functional.avg_pool2d(chroma.flatten(0, 1), 2)
        planes.append(128 + 224 * quarter.reshape(*x.shape[:1], x.shape[2], *quarter.shape[1:]))
    flat = torch.cat([plane.flatten(2) for plane in planes], dim=2)
    return flat.reshape(x.shape[0], x.shape[2], -1, x.shape[4])


def assert_nearest(out: Tensor, truth: Tensor) -> None:
    """Each byte is the whole number nearest to the truth; at a tie either neighbor."""
    assert out.dtype == torch.uint8 and out.shape == truth.shape and out.is_contiguous()
    assert (out.double() - truth).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_references(dtype: torch.dtype) -> None:
    for x in layouts(make((2, 3, 3, 4, 14), dtype, CPU)):
        assert_nearest(to_pixels_reference(x), rgb(x))
        assert_nearest(to_yuv420_reference(x), yuv(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    for x in layouts(make(shape, dtype, device)):
        assert_nearest(to_pixels(x), rgb(x))
        assert_nearest(to_yuv420(x), yuv(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("block", [16, 1024])
def test_other_configurations(block: int) -> None:
    config = {"block": block, "num_warps": 4}
    with forced("to_pixels", config), forced("to_yuv420", config):
        for x in layouts(make((1, 3, 1, 2, 36), torch.float32, CPU)):
            assert_nearest(to_pixels(x), rgb(x))
            assert_nearest(to_yuv420(x), yuv(x))


@pytest.mark.interpreter
def test_every_level_comes_back_and_halves_go_to_the_even_neighbor() -> None:
    levels = torch.arange(256.0)
    for values in (levels / 127.5 - 1, (levels[:254] + 0.5) / 127.5 - 1):
        x = values.reshape(1, 1, 1, 2, -1).expand(1, 3, 1, 2, -1)
        assert torch.equal(to_pixels(x), to_pixels_reference(x))
    x = (levels / 127.5 - 1).reshape(1, 1, 1, 1, 256).expand(1, 3, 1, 1, 256)
    assert torch.equal(to_pixels(x)[0, 0, 0, :, 0], levels.byte())


def test_planes_are_those_of_ffmpeg() -> None:
    """On pictures of one color, where it does not matter which pixels share their chroma."""
    av = pytest.importorskip("av")
    torch.manual_seed(0)
    for color in torch.randint(0, 256, (16, 3), dtype=torch.uint8):
        picture = color.expand(8, 16, 3).contiguous()
        frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=av.video.reformatter.Colorspace.ITU709,
            dst_color_range=av.video.reformatter.ColorRange.MPEG,
        )
        x = picture.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
        wanted = torch.from_numpy(frame.to_ndarray()).int()
        assert (to_yuv420_reference(x)[0, 0].int() - wanted).abs().max() <= 1


def test_black_white_and_primaries_have_their_values() -> None:
    colors = torch.tensor([[-1, -1, -1], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    for color, wanted in zip(
        colors,
        [(16, 128, 128), (235, 128, 128), (63, 102, 240), (173, 42, 26), (32, 240, 118)],
        strict=True,
    ):
        x = color.reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
        assert to_yuv420_reference(x).flatten().tolist() == [wanted[0]] * 4 + list(wanted[1:])


@pytest.mark.interpreter
def test_nothing_in_nothing_out() -> None:
    x = torch.zeros(1, 3, 0, 2, 4)
    assert to_pixels(x).shape == (1, 0, 2, 4, 3)
    assert to_yuv420(x).shape == (1, 0, 3, 4)


@pytest.mark.interpreter
@pytest.mark.parametrize("op", [to_pixels, to_yuv420])
def test_passes_torchs_checks_of_custom_ops(op: torch.library.CustomOpDef) -> None:
    torch.library.opcheck(op, (make((1, 3, 2, 2, 4), torch.float32, CPU),))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    for op in (to_pixels, to_yuv420):
        for wrong in (
            torch.zeros(3, 1, 2, 2),
            torch.zeros(1, 4, 1, 2, 2),
            torch.zeros(1, 3, 1, 2, 2).int(),
        ):
            with pytest.raises(ValueError, match=r"x \[B, 3, F, H, W\] in bf16, fp16 or fp32; got"):
                op(wrong)
    with pytest.raises(ValueError, match="wants H and W even; got 2 and 3"):
        to_yuv420(torch.zeros(1, 3, 1, 2, 3))
