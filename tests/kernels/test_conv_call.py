"""What a convolution may look like, and how it is cut."""

from __future__ import annotations

import pytest
import torch

from livereel.kernels.conv_call import ConvCall, conv_config, depth_for, launch_options


def call(
    shape: tuple[int, ...] = (1, 4, 6, 9, 32), weight: tuple[int, ...] = (48, 32, 3, 3, 3), *,
    stride_t: int = 1, stride: int = 1, frames_out: int = 1, gutter: bool = True,
    residual: bool = False, normed: bool = False,
) -> ConvCall:  # fmt: skip
    some = torch.empty(1)
    return ConvCall.of(
        torch.empty(shape, device="meta"), torch.empty(weight, device="meta"),
        some if residual else None, some if normed else None, stride_t, stride, frames_out, gutter,
    )  # fmt: skip


def test_reckons_what_comes_out() -> None:
    x = torch.empty(1, 4, 6, 9, 32)
    y, activated = call().results(x)
    assert y.shape == (1, 4, 6, 9, 48) and activated.shape == (0,) and call().history == 2
    _, activated = call(normed=True).results(x)
    assert activated.shape == (1, 4, 6, 9, 48)
    y, _ = call(weight=(48, 32, 3, 1, 1), frames_out=2).results(x)
    assert y.shape == (1, 8, 6, 9, 24)
    halved = call(weight=(48, 32, 3, 1, 1), stride_t=2)
    y, _ = halved.results(x)
    assert y.shape == (1, 2, 6, 9, 48) and halved.history == 1
    for columns, gutter, wide in ((9, False, 4), (9, True, 5), (8, True, 4)):
        shape = (1, 4, 7, columns, 32)
        halved = call(shape, (48, 32, 1, 3, 3), stride=2, gutter=gutter)
        y, _ = halved.results(torch.empty(shape))
        assert y.shape == (1, 4, 3, wide, 48) and halved.history == 0


def test_wide_convolutions_are_cut_into_blocks_that_fit_registers() -> None:
    def wide(channels: int, **options: bool) -> ConvCall:
        return call((1, 4, 6, 9, channels), (channels, channels, 3, 3, 3), **options)

    pairs = conv_config(96, frames=2, tma=1, stages=2, maxnreg=128)
    assert wide(96, normed=True).runs() == pairs
    lone = call((1, 1, 6, 9, 96), (96, 96, 3, 3, 3))
    assert lone.odd and lone.runs() == conv_config(96, tma=1, stages=4)
    assert wide(192, residual=True, normed=True).key == "C192-192_k333_gutter_residual_fused"
    small = conv_config(192, depth=64, tma=1, stages=4)
    assert wide(192, normed=True).runs() == small
    large = ((1, 4, 240, 417, 192), (192, 192, 3, 3, 3))
    assert call(*large).runs() == conv_config(192, pixels=256, depth=64, tma=1)
    assert call(*large, residual=True, normed=True).runs() == small  # their sums would spill
    apart = wide(384, residual=True, normed=True)  # its norm is a launch of its own
    assert apart.runs() == small and apart.key == "C384-384_k333_gutter_residual"
    assert call(weight=(48, 32, 1, 3, 3)).runs()["frames"] == 1
    assert [depth_for(*c) for c in ((3, 96), (48, 96), (128, 128), (384, 192))] == [16, 32, 64, 32]


def test_fits_frames_to_a_program() -> None:
    pairs = conv_config(48, frames=2, tma=1)
    assert call().fitting(pairs) == pairs
    assert call((1, 3, 6, 9, 32)).fitting(pairs)["frames"] == 1
    assert call().fitting(conv_config(48, frames=2))["frames"] == 1
    with pytest.raises(ValueError, match=r"runs \(tma\) only with a gutter and strides of 1"):
        call(gutter=False).fitting(pairs)


def test_tells_triton_how_to_compile() -> None:
    options = dict(num_warps=8, num_stages=3, maxnreg=None)
    assert launch_options(conv_config(96, tma=1)) == options
    assert launch_options(conv_config(96, tma=1, maxnreg=128)) == {**options, "maxnreg": 128}


def test_counts_programs() -> None:
    assert call().programs(conv_config(48, pixels=16)) == 4  # 54 pixels with the gutter
    assert call().programs(conv_config(32, pixels=64)) == 2
    assert call().programs(conv_config(48, pixels=16, tiles=3)) == 2
    doubled = call(weight=(48, 32, 3, 1, 1), frames_out=2)
    assert doubled.programs(conv_config(16, pixels=64)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(4, 6, 9, 32)), r"x \[B, T, H, W, C\] .*got float32 \[4, 6, 9, 32\]"),
        (dict(weight=(48, 16, 3, 3, 3)), r"weight \[C', C, k_t, k_h, k_w\]"),
        (dict(weight=(48, 32, 3, 2, 3)), r"odd height and width.*got kernel \[3, 2, 3\]"),
        (dict(weight=(48, 32, 1, 3, 3), stride_t=2), r"no shorter than stride_t"),
        (dict(stride=2), r"stride 2 only where there is no history"),
        (dict(weight=(48, 32, 1, 3, 3), stride=3), r"stride 3"),
        (dict(shape=(1, 0, 6, 9, 32)), r"wants pixels"),
        (dict(shape=(1, 4, 6, 1, 32)), r"wants pixels"),  # nothing but a gutter
        (dict(shape=(1, 3, 6, 9, 32), stride_t=2), r"T a multiple of 2"),
        (dict(frames_out=5), r"channels of 5"),
        (dict(frames_out=2, normed=True), r"no residual and no gain with frames_out 2"),
    ],
)
def test_refuses_sizes_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**options)  # type: ignore[arg-type]
