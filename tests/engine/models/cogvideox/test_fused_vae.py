"""The VAE on Triton's kernels against the reference road, and which ops it ran."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
import torch

from livereel.engine.models.cogvideox import fused_vae
from livereel.engine.models.cogvideox.config import CogVideoXVAEConfig
from livereel.engine.models.cogvideox.vae import CogVideoXVAE

if TYPE_CHECKING:
    from ...conftest import Ran

CONFIGS = {
    "two levels": CogVideoXVAEConfig(
        block_out_channels=(8, 12), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=2,
    ),
    "three levels": CogVideoXVAEConfig(
        block_out_channels=(4, 8, 8), latent_channels=3, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    ),
}  # fmt: skip


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel's reference in its place: fast, on any machine."""
    for name in ("causal_conv3d", "upsample2x_conv", "group_norm_silu", "spatial_norm"):
        kernel = import_module(f"livereel.kernels.{name}")
        monkeypatch.setattr(fused_vae, name, getattr(kernel, f"{name}_reference"))


def make(name: str) -> CogVideoXVAE:
    torch.manual_seed(0)
    vae = CogVideoXVAE(CONFIGS[name]).eval()
    for p in vae.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, std=0.3)
    return vae


@torch.inference_mode()
def check_decoder(name: str, cuts: list[int], size: tuple[int, int], batch: int = 1) -> None:
    vae = make(name)
    fused, caches, state = vae.fused(), None, None
    for part in torch.randn(batch, vae.channels, sum(cuts), *size).split(cuts, dim=2):
        wanted, state = vae.decode(part, state)
        before = [] if caches is None else [cache.clone() for cache in caches]
        given = caches or ()
        frames, caches = fused.decode(part, caches)
        torch.testing.assert_close(frames, wanted, rtol=0, atol=1e-5)
        # A call leaves the caches it was given as they were, and new ones have their shapes.
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        assert not given or [c.shape for c in caches] == [c.shape for c in given]


@torch.inference_mode()
def check_encoder(name: str, cuts: list[int], size: tuple[int, int]) -> None:
    vae = make(name)
    fused, caches, state = vae.fused(), None, None
    for part in (torch.rand(1, 3, sum(cuts), *size) * 2 - 1).split(cuts, dim=2):
        wanted, state = vae.encode(part, state)
        latents, caches = fused.encode(part, caches)
        torch.testing.assert_close(latents, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [[3, 2], [1, 1, 3], [4]])
def test_a_streamed_decoder_equals_the_reference(name: str, cuts: list[int]) -> None:
    check_decoder(name, cuts, (3, 2), batch=2)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [[1, 4], [9, 8]])
def test_a_streamed_encoder_equals_the_reference(name: str, cuts: list[int]) -> None:
    check_encoder(name, cuts, (8, 12))


@pytest.mark.interpreter
def test_the_kernels_do_the_same_and_nothing_else_convolves(ran: Callable[[], Ran]) -> None:
    # Two residual blocks in the middle, and on each level two in the decoder, one in the encoder.
    with ran() as steps:
        check_decoder("two levels", [1], (1, 1))
    assert steps.ops == {"spatial_norm": 13, "causal_conv3d": 14, "upsample2x_conv": 1}
    with ran() as steps:
        check_encoder("two levels", [1], (2, 2))
    assert steps.ops == {"group_norm_silu": 9, "causal_conv3d": 11}
