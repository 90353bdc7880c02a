"""The VAE on Triton's kernels against the reference road, and which ops it ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import WanVAEConfig

if TYPE_CHECKING:
    from ...conftest import Ran

COMMON: dict[str, Any] = dict(
    base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4
)
CONFIGS = {
    "wan": WanVAEConfig(dim_mult=(1, 1, 2), temperal_downsample=(False, True), **COMMON),
    "folded": WanVAEConfig(
        dim_mult=(1, 2), temperal_downsample=(True,), in_channels=12, out_channels=12,
        patch_size=2, **COMMON,
    ),
    "wan 2.2": WanVAEConfig(
        dim_mult=(1, 2, 2), temperal_downsample=(False, True), in_channels=12, out_channels=12,
        patch_size=2, is_residual=True, decoder_base_dim=16, **COMMON,
    ),
}  # fmt: skip


def make(name: str) -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(CONFIGS[name]).eval()
    for key, p in vae.named_parameters():
        if key.endswith("gamma"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("bias"):
            torch.nn.init.normal_(p, std=0.2)
    return vae


@torch.inference_mode()
def check_decoder(name: str, cuts: list[int], size: tuple[int, int], batch: int = 1) -> None:
    vae = make(name)
    latents = torch.randn(batch, 4, sum(cuts), *size)
    whole, _ = vae.decode(latents)
    fused, parts, caches = vae.fused(), [], None
    for part in latents.split(cuts, dim=2):
        before = [] if caches is None else [cache.clone() for cache in caches]
        given = caches or ()
        frames, caches = fused.decode(part, caches)
        parts.append(frames)
        # A call leaves the caches it was given as they were, and new ones have their shapes.
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        assert not given or [c.shape for c in caches] == [c.shape for c in given]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-5)


@torch.inference_mode()
def check_encoder(name: str, cuts: list[int], size: tuple[int, int]) -> None:
    vae = make(name)
    frames = torch.rand(1, 3, sum(cuts), *size) * 2 - 1
    whole, _ = vae.encode(frames)
    fused, parts, caches = vae.fused(), [], None
    for part in frames.split(cuts, dim=2):
        latents, caches = fused.encode(part, caches)
        parts.append(latents)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [[1, 1, 3], [2, 1, 1], [4]])
def test_a_streamed_decoder_equals_the_reference(name: str, cuts: list[int]) -> None:
    check_decoder(name, cuts, (3, 2), batch=2)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [[1, 4, 2], [5, 2], [7]])
def test_a_streamed_encoder_equals_the_reference(name: str, cuts: list[int]) -> None:
    check_encoder(name, cuts, (8, 24))


@pytest.mark.interpreter
def test_the_kernels_do_the_same() -> None:
    check_decoder("wan", [1, 1], (1, 1))
    check_encoder("folded", [3, 2], (4, 4))


@pytest.mark.interpreter
@torch.inference_mode()
def test_each_op_runs_in_the_kernels(ran: Callable[[], Ran]) -> None:
    fused = make("folded").fused()
    with ran() as steps:
        fused.decode(torch.randn(1, 4, 2, 1, 1))
    # Two residual blocks in the middle and two on each level.
    blocks, ends, time = 6, 3, 1
    assert steps.ops == {
        "causal_conv3d": 2 * blocks + ends + time,
        "upsample2x_conv": 1,
        "rms_norm_silu": 1,  # behind the attention
    }
    assert steps.convolutions == 2  # of the attention
