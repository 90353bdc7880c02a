"""Blocks of video VAEs made of the convolution ops' launches, against diffusers' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from livereel.kernels.causal_conv3d import add_gutter, causal_conv3d, causal_conv3d_reference
from livereel.kernels.conv_call import conv_config
from livereel.kernels.tuning import forced
from livereel.kernels.upsample2x_conv import (
    fold_upsampled,
    upsample2x_conv,
    upsample2x_conv_reference,
)


class Steps:
    """Wan's layers as launches, as the module says, streaming: by reference or by kernel."""

    def __init__(self, conv: Callable[..., Any], upsample: Callable[..., Any]) -> None:
        self.conv, self.upsample = conv, upsample
        self.caches: list[Tensor | None] = []
        self.at = 0

    def call(self, x: Tensor, layer: nn.Conv3d, **options: Any) -> tuple[Tensor, Tensor]:
        if self.at == len(self.caches):
            self.caches.append(None)
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last_3d)
        y, a, cache = self.conv(
            x, self.caches[self.at], weight, layer.bias.detach(), gutter=True, **options
        )
        self.caches[self.at] = cache if cache.shape[1] else None
        self.at += 1
        return y, a

    def residual(
        self, x: Tensor, a: Tensor, block: Any, gain: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shortcut = x
        if isinstance(block.conv_shortcut, nn.Conv3d):
            shortcut, _ = self.call(x, block.conv_shortcut)
        _, h = self.call(a, block.conv1, gain=gamma(block.norm2), keep_y=False)
        return self.call(h, block.conv2, residual=shortcut, gain=gain)

    def up_block(self, x: Tensor, a: Tensor, block: Any) -> Tensor:
        self.at = 0
        gains = [*(gamma(resnet.norm1) for resnet in block.resnets[1:]), None]
        for resnet, gain in zip(block.resnets, gains, strict=True):
            x, a = self.residual(x, a, resnet, gain)
        (up,) = block.upsamplers
        lone = len(self.caches) == self.at
        head, tail = (x[:, :1], x[:, 1:]) if lone else (x[:, :0], x)
        if tail.shape[1]:
            tail, _ = self.call(tail, up.time_conv, frames_out=2)
            head = torch.cat([head, tail], dim=1)
        elif lone:
            self.caches.append(None)
        conv = up.resample[1]
        return self.upsample(head, fold_upsampled(conv.weight), conv.bias, gutter=True)[0]


def gamma(norm: Any) -> Tensor:
    return norm.gamma.detach().flatten()


def check_up_block(
    steps: Steps, in_dim: int, out_dim: int, blocks: int, size: tuple[int, int]
) -> None:
    """Chunks of 1, 2 and 1 frames, against diffusers frame by frame."""
    wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    torch.manual_seed(0)
    block = wan.WanUpBlock(in_dim, out_dim, blocks, upsample_mode="upsample3d").requires_grad_(
        False
    )
    for module in block.modules():
        if hasattr(module, "gamma"):
            module.gamma.copy_(torch.rand_like(module.gamma) + 0.5)
    frames = torch.randn(1, in_dim, 4, *size)
    caches = [None] * 20
    expected = torch.cat([block(f, caches, [0]) for f in frames.split(1, dim=2)], dim=2)

    first = block.resnets[0]
    outs = []
    for chunk in frames.split([1, 2, 1], dim=2):
        a = first.nonlinearity(first.norm1(chunk))
        x, a = (add_gutter(z.permute(0, 2, 3, 4, 1)) for z in (chunk, a))
        outs.append(steps.up_block(x, a, block))
    y = torch.cat(outs, dim=1)
    assert not y[..., -1, :].any()
    torch.testing.assert_close(
        y[..., :-1, :].permute(0, 4, 1, 2, 3), expected, atol=2e-5, rtol=2e-5
    )


def test_references_run_wans_blocks() -> None:
    steps = Steps(causal_conv3d_reference, upsample2x_conv_reference)
    check_up_block(steps, 16, 24, 2, (3, 5))


@pytest.mark.interpreter
def test_kernels_run_wans_blocks() -> None:
    config = conv_config(16, pixels=16, depth=16, tma=1)
    with forced("causal_conv3d", config), forced("upsample2x_conv", config):
        check_up_block(Steps(causal_conv3d, upsample2x_conv), 8, 16, 0, (1, 2))


@pytest.mark.parametrize("gutter", [False, True])
def test_reference_halves_as_wan_does(gutter: bool) -> None:
    wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    torch.manual_seed(0)
    down = wan.WanResample(8, "downsample3d").requires_grad_(False)
    frames = torch.randn(2, 8, 5, 6, 7)
    caches: list[Any] = [None]
    expected = [down(frames[:, :, :1], caches, [0]), down(frames[:, :, 1:], caches, [0])]

    conv = down.resample[1]
    x = frames.permute(0, 2, 3, 4, 1).contiguous()
    x = add_gutter(x) if gutter else x
    x, _, _ = causal_conv3d_reference(
        x, None, conv.weight.unsqueeze(2), conv.bias, stride=2, gutter=gutter
    )
    time = down.time_conv
    y, _, kept = causal_conv3d_reference(
        x[:, 1:], x[:, :1], time.weight, time.bias, stride_t=2, gutter=gutter
    )
    assert torch.equal(kept, x[:, -1:])
    results = torch.cat([x[:, :1], y], dim=1)
    results = results[..., :-1, :] if gutter else results
    torch.testing.assert_close(results.permute(0, 4, 1, 2, 3), torch.cat(expected, dim=2))


def test_reference_takes_cogvideox_past() -> None:
    cog = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_cogvideox")
    torch.manual_seed(0)
    layer = cog.CogVideoXCausalConv3d(8, 12, 3, pad_mode="constant").requires_grad_(False)
    frames = torch.randn(1, 8, 5, 4, 3)
    first, cache = layer(frames[:, :, :3])
    second, _ = layer(frames[:, :, 3:], cache)

    x = frames.permute(0, 2, 3, 4, 1)
    conv = layer.conv
    past = x[:, :1].expand(-1, 2, -1, -1, -1)
    y, _, kept = causal_conv3d_reference(x[:, :3], past, conv.weight, conv.bias)
    z, _, _ = causal_conv3d_reference(x[:, 3:], kept, conv.weight, conv.bias)
    expected = torch.cat([first, second], dim=2)
    torch.testing.assert_close(torch.cat([y, z], dim=1).permute(0, 4, 1, 2, 3), expected)
