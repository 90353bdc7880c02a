"""A VAE on Triton's kernels as a module: all that it computes with is the module's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from livereel.engine.models.cogvideox.config import CogVideoXVAEConfig
from livereel.engine.models.cogvideox.vae import CogVideoXVAE
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import WanVAEConfig
from livereel.export.held import HeldVAE

VAES: dict[str, Any] = {
    "wan": lambda: WanVAE(
        WanVAEConfig(
            base_dim=8, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,),
            latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4,
        )
    ),
    "cogvideox": lambda: CogVideoXVAE(
        CogVideoXVAEConfig(
            block_out_channels=(8, 12), latent_channels=4, layers_per_block=1, norm_num_groups=4,
            temporal_compression_ratio=2,
        )
    ),
}  # fmt: skip
OPS = (
    "causal_conv3d", "upsample2x_conv", "rms_norm_silu", "group_norm_silu", "spatial_norm",
)  # fmt: skip


@pytest.mark.parametrize("family", VAES)
@torch.no_grad()
def test_computes_the_same_with_its_own_tensors(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = import_module(f"livereel.engine.models.{family}.fused_vae")
    for op in OPS:
        if hasattr(fused, op):
            kernel = import_module(f"livereel.kernels.{op}")
            monkeypatch.setattr(fused, op, getattr(kernel, f"{op}_reference"))
    torch.manual_seed(0)
    vae = VAES[family]().eval()
    held, latents = HeldVAE(vae.fused()), torch.randn(1, 4, 2, 2, 3)
    made, _ = held.decode(latents)
    torch.testing.assert_close(made, vae.decode(latents)[0], rtol=1e-4, atol=1e-4)
    frames = made[:, :, :1]
    torch.testing.assert_close(held.encode(frames)[0], vae.encode(frames)[0], rtol=1e-4, atol=1e-4)
    assert all(x.is_contiguous() for x in (*held.parameters(), *held.buffers()))
    held.double()  # all that it computes with, then, or dtypes would not fit
    twice, caches = held.decode(latents.double())
    again, _ = held.decode(latents.double(), caches)
    assert held.encode(twice)[0].dtype == again.dtype == torch.float64
