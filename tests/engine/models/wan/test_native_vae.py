"""The VAE's decoder on the C++ core's kernels against the modules in fp32, and in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from livereel.engine import native
from livereel.engine.errors import InputError
from livereel.engine.models.wan.native_vae import NativeVAE
from livereel.engine.models.wan.vae import WanVAE

pytestmark = pytest.mark.skipif(not native.dot_supported(), reason="no AVX512-BF16 here")

COMMON: dict[str, Any] = dict(
    base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4
)
CONFIGS: dict[str, dict[str, Any]] = {
    "wan": dict(dim_mult=[1, 2, 2, 2], temperal_downsample=[False, True, True]),
    "folded": dict(
        dim_mult=[1, 1, 2], temperal_downsample=[True, True], in_channels=12, out_channels=12,
        patch_size=2,
    ),
}  # fmt: skip


def pair(name: str) -> tuple[WanVAE, NativeVAE]:
    """In fp32, and the same weights on the kernels; they are such as bfloat16 has."""
    torch.manual_seed(0)
    wide = WanVAE.from_config(COMMON | CONFIGS[name]).eval().requires_grad_(False)
    for key, p in wide.named_parameters():
        if key.endswith("gamma"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("bias"):
            torch.nn.init.normal_(p, std=0.2)
        p.copy_(p.bfloat16())
    half = WanVAE.from_config(COMMON | CONFIGS[name]).eval().requires_grad_(False)
    half.load_state_dict(wide.state_dict())
    fast = half.bfloat16().native()
    assert fast is not None
    return wide, fast


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
@torch.inference_mode()
def test_decoded_as_in_fp32(name: str, size: tuple[int, int]) -> None:
    wide, fast = pair(name)
    latents = torch.randn(1, 4, 4, *size).bfloat16()
    wanted, caches = wide.decode(latents.float())
    frames, kept = fast.decode(latents)
    assert frames.shape == wanted.shape and frames.dtype == torch.bfloat16
    assert (frames.float() - wanted).norm() <= 3e-2 * wanted.norm()
    for got, cache in zip(kept, caches, strict=True):
        assert got.shape == cache.shape
        assert (got.float() - cache).norm() <= 3e-2 * cache.norm()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [[1, 6], [1, 1, 2, 3], [2, 5], [7]])
@torch.inference_mode()
def test_in_parts_bitwise_as_in_one(name: str, cuts: list[int]) -> None:
    _, fast = pair(name)
    latents, parts, caches = torch.randn(1, 4, 7, 5, 3).bfloat16(), [], None
    for part in latents.split(cuts, dim=2):
        before = [] if caches is None else [cache.clone() for cache in caches]
        given = caches or ()
        frames, caches = fast.decode(part, caches)
        parts.append(frames)
        # A call leaves the caches it was given as they were; a snapshot may hold them.
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        caches = tuple(cache.clone(memory_format=torch.contiguous_format) for cache in caches)
    assert torch.equal(torch.cat(parts, dim=2), fast.decode(latents)[0])


@torch.inference_mode()
def test_a_clip_alone_and_in_a_batch() -> None:
    _, fast = pair("folded")
    latents = torch.randn(2, 4, 3, 5, 3).bfloat16()
    caches = fast.decode(latents[:, :, :1])[1]
    both, kept = fast.decode(latents[:, :, 1:], caches)
    for i in range(2):
        lone = slice(i, i + 1)
        alone, own = fast.decode(latents[lone, :, 1:], tuple(cache[lone] for cache in caches))
        assert torch.equal(both[lone], alone)
        assert all(torch.equal(a[lone], b) for a, b in zip(kept, own, strict=True))


@torch.inference_mode()
def test_everything_else_is_the_model_s() -> None:
    wide, fast = pair("folded")
    frames = torch.rand(1, 3, 5, 8, 8).bfloat16()
    assert torch.equal(fast.encode(frames)[0], fast.model.encode(frames)[0])
    assert (fast.channels, fast.temporal_factor, fast.spatial_factor, fast.decoder_memory) == (
        wide.channels, wide.temporal_factor, wide.spatial_factor, wide.decoder_memory,
    )  # fmt: skip
    latents = torch.randn(1, 4, 1, 2, 2)
    assert torch.equal(fast.normalize(latents), wide.normalize(latents))
    assert torch.equal(fast.denormalize(latents), wide.denormalize(latents))
    with pytest.raises(InputError, match=r"wanted \[B, 4, T, h, w"):
        fast.decode(torch.zeros(1, 3, 1, 2, 2))


def test_what_the_kernels_cannot_run_is_left_to_torch() -> None:
    assert WanVAE.from_config(COMMON | CONFIGS["wan"]).native() is None
    odd = COMMON | CONFIGS["wan"] | dict(z_dim=3, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    assert WanVAE.from_config(odd).bfloat16().native() is None
