"""The VAE against diffusers' module, and streamed against whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import LATENTS_MEAN_2_2, LATENTS_STD_2_2

SMALL = {
    "wan": dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
                temperal_downsample=[False, True, True]),
    "folded": dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1,
                   temperal_downsample=[True, True], in_channels=12, out_channels=12, patch_size=2),
    "wan 2.2": dict(base_dim=4, decoder_base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
                    temperal_downsample=[False, True], in_channels=12, out_channels=12,
                    patch_size=2, is_residual=True),
    "wan 2.2 in time": dict(base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=2,
                            temperal_downsample=[True, True], is_residual=True),
}  # fmt: skip


def pair(name: str, seed: int = 0) -> tuple[AutoencoderKLWan, WanVAE]:
    torch.manual_seed(seed)
    config = SMALL[name] | {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    theirs = AutoencoderKLWan(**config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2) if p.ndim == 1 else None
    ours = WanVAE.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    error = (a - b).abs().max() / b.abs().max()
    assert error <= tolerance, float(error)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@torch.no_grad()
def test_encode_and_decode_equal_diffusers(name: str, frames: int) -> None:
    theirs, ours = pair(name)
    video = torch.rand(1, 3, frames, 40, 24) * 2 - 1
    expected = theirs.encode(video).latent_dist
    mean, _ = ours.encode(video)
    close(mean, expected.mean, 1e-4)
    close(ours.moments(video)[0], expected.parameters, 1e-4)
    close(ours.decode(expected.mean)[0], theirs.decode(expected.mean).sample, 1e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [1, 2])
@torch.no_grad()
def test_streamed_equals_whole_on_odd_sizes(name: str, chunk: int, first: int) -> None:
    _, ours = pair(name)
    latents = torch.randn(2, 4, 7, 5, 3)
    whole, _ = ours.decode(latents)
    parts, state = [], None
    for part in (latents[:, :, :first], *latents[:, :, first:].split(chunk, dim=2)):
        frames, state = ours.decode(part, state)
        parts.append(frames)
    assert (torch.cat(parts, dim=2) - whole).abs().max() <= 1e-5

    encoded, _ = ours.encode(whole)
    parts, state = [], None
    for part in (whole[:, :, :1], *whole[:, :, 1:].split(4 * chunk, dim=2)):
        part_latents, state = ours.encode(part, state)
        parts.append(part_latents)
    assert (torch.cat(parts, dim=2) - encoded).abs().max() <= 1e-5


@torch.no_grad()
def test_caches_keep_their_shapes_from_the_first_call_on() -> None:
    _, ours = pair("wan")
    _, first = ours.decode(torch.randn(1, 4, 1, 4, 4))
    _, later = ours.decode(torch.randn(1, 4, 3, 4, 4), first)
    assert [c.shape for c in first] == [c.shape for c in later]


@torch.no_grad()
def test_a_call_leaves_the_caches_it_was_given_as_they_were() -> None:
    _, ours = pair("folded")
    _, caches = ours.decode(torch.randn(1, 4, 2, 4, 4))
    before = [c.clone() for c in caches]
    ours.decode(torch.randn(1, 4, 2, 4, 4), caches)
    assert all(torch.equal(a, b) for a, b in zip(before, caches, strict=True))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_decoder_that_starts_anew_forgets_that_it_did(name: str) -> None:
    """What the last latent frame shows is off by less than a level of brightness."""
    _, vae = pair(name)
    latents = torch.randn(1, vae.channels, vae.decoder_memory + 9, 2, 3)
    whole, _ = vae.decode(latents)
    cut, _ = vae.decode(latents[:, :, -vae.decoder_memory :])
    last = -vae.temporal_factor
    assert (whole[:, :, last:] - cut[:, :, last:]).abs().max() < 1 / 255


def test_wan_s_decoder_remembers_24_latent_frames() -> None:
    with torch.device("meta"):
        assert WanVAE.from_config({}).decoder_memory == 24


def test_normalize_is_undone_by_denormalize() -> None:
    _, ours = pair("wan")
    latents = torch.randn(1, 4, 2, 3, 3)
    assert torch.allclose(ours.denormalize(ours.normalize(latents)), latents, atol=1e-6)
    assert torch.allclose(ours.normalize(latents), (latents - 0.1) / 1.5, atol=1e-6)


def test_a_wrong_number_of_frames_is_refused() -> None:
    _, ours = pair("wan")
    with pytest.raises(InputError, match="given 4 frames; it wants 1 \\+ a multiple of 4"):
        ours.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(InputError, match="wanted \\[B, 3, F, H, W\\]"):
        ours.encode(torch.zeros(1, 4, 5, 16, 16))
    with pytest.raises(InputError, match="wanted \\[B, 4, T, h, w\\]"):
        ours.decode(torch.zeros(1, 3, 1, 4, 4))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"is_residual": 1}, "is_residual must be true or false"),
        ({"dim_mult": [1, 3, 4, 4], "is_residual": True}, "split 768 numbers into 288 groups"),
        ({"attn_scales": [1.0]}, "attn_scales=.1.0. is not supported"),
        ({"base_dim": 10**12}, "base_dim must be a whole number from 1 to 1024"),
        ({"base_dim": None}, "base_dim must be"),
        ({"decoder_base_dim": 0}, "decoder_base_dim must be"),
        ({"num_res_blocks": 1000}, "num_res_blocks must be a whole number from 1 to 16, got 1000"),
        ({"dim_mult": [1] * 10**5}, "dim_mult must be a list of 1 to 8 whole numbers"),
        ({"dim_mult": [1, 2, 4, 10**6]}, "dim_mult must be"),
        ({"dim_mult": 4}, "dim_mult must be"),
        ({"temperal_downsample": [True, True]}, "temperal_downsample must be a list of 3"),
        ({"temperal_downsample": [0, 1, 1]}, "temperal_downsample must be"),
        ({"patch_size": 2}, "in_channels and out_channels must be 12"),
        ({"z_dim": 4}, "latents_mean must be a list of 4 numbers"),
        ({"latents_std": [0.0] * 16}, "latents_std must be a list of 16 numbers above 0"),
        ({"latents_mean": [float("inf")] * 16}, "latents_mean must be"),
        ({"latents_mean": ["1"] * 16}, "latents_mean must be"),
    ],
)
def test_a_config_of_another_family_or_size_is_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        WanVAE.from_config(values)
    assert len(str(refusal.value)) < 150


FULL: dict[str, tuple[dict[str, Any], int]] = {
    "2.1": ({}, 126_892_531),
    "2.2": (
        dict(
            base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12,
            out_channels=12, patch_size=2, latents_mean=LATENTS_MEAN_2_2,
            latents_std=LATENTS_STD_2_2,
        ),
        704_688_668,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_equal_diffusers_in_keys_shapes_and_count(name: str) -> None:
    config, count = FULL[name]
    with torch.device("meta"):
        theirs = AutoencoderKLWan(**config)
        ours = WanVAE.from_config(dict(theirs.config))
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == shapes
