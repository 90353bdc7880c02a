"""The VAE against diffusers' module, and streamed against whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.cogvideox.vae import CogVideoXVAE

SMALL: dict[str, dict[str, Any]] = {
    "published": dict(block_out_channels=[8, 16, 16, 24], latent_channels=4, layers_per_block=2,
                      norm_num_groups=4),
    "shallow": dict(block_out_channels=[4, 8, 8], latent_channels=3, layers_per_block=1,
                    norm_num_groups=2, temporal_compression_ratio=4,
                    down_block_types=["CogVideoXDownBlock3D"] * 3,
                    up_block_types=["CogVideoXUpBlock3D"] * 3),
    "half the time": dict(block_out_channels=[4, 8, 8], latent_channels=3, layers_per_block=1,
                          norm_num_groups=2, temporal_compression_ratio=2,
                          down_block_types=["CogVideoXDownBlock3D"] * 3,
                          up_block_types=["CogVideoXUpBlock3D"] * 3),
}  # fmt: skip


def pair(name: str, seed: int = 0) -> tuple[AutoencoderKLCogVideoX, CogVideoXVAE]:
    torch.manual_seed(seed)
    theirs = AutoencoderKLCogVideoX(**SMALL[name], scaling_factor=0.7).eval()
    for p in theirs.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, std=0.3)
    ours = CogVideoXVAE.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert a.shape == b.shape
    error = (a - b).abs().max() / b.abs().max()
    assert error <= tolerance, float(error)


@pytest.mark.parametrize("name", ["published", "shallow"])
@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 29])
@torch.no_grad()
def test_encode_equals_diffusers(name: str, frames: int) -> None:
    theirs, ours = pair(name)
    video = torch.rand(1, 3, frames, 24, 32) * 2 - 1
    expected = theirs.encode(video).latent_dist
    close(ours.encode(video)[0], expected.mean)
    close(ours.moments(video)[0], expected.parameters)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("latents", [1, 3, 5, 7])
@torch.no_grad()
def test_decode_equals_diffusers(name: str, latents: int) -> None:
    theirs, ours = pair(name)
    z = torch.randn(2, ours.channels, latents, 3, 4)
    close(ours.decode(z)[0], theirs.decode(z).sample.clamp(-1, 1))


@torch.no_grad()
def test_an_even_number_of_latents_has_a_lone_first_frame_too() -> None:
    """diffusers shows it four times; later chunks are the same."""
    theirs, ours = pair("shallow")
    z = torch.randn(1, 3, 4, 3, 4)
    assert theirs.decode(z).sample.shape[2] == 16
    frames, caches = ours.decode(z)
    assert frames.shape[2] == 13
    first, later = ours.decode(z[:, :, :3])
    close(ours.decode(z[:, :, 3:], later)[0], ours.decode(z[:, :, 3:], later)[0], 0)
    assert [c.shape for c in later] == [c.shape for c in caches]
    assert ours.decode(z[:, :, 3:], later)[0].shape[2] == 4
    assert first.shape[2] == 9


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_streamed_in_its_chunks_equals_whole(name: str) -> None:
    _, ours = pair(name)
    latents = torch.randn(1, ours.channels, 7, 3, 5)
    whole, _ = ours.decode(latents)
    parts, state = [], None
    for part in latents.split([3, 2, 2], dim=2):
        frames, state = ours.decode(part, state)
        parts.append(frames)
    assert (torch.cat(parts, dim=2) - whole).abs().max() <= 1e-5

    factor = ours.temporal_factor
    encoded, _ = ours.encode(whole)
    parts, state = [], None
    for part in whole.split([1 + 2 * factor, 2 * factor, 2 * factor], dim=2):
        part_latents, state = ours.encode(part, state)
        parts.append(part_latents)
    assert (torch.cat(parts, dim=2) - encoded).abs().max() <= 1e-5


@torch.no_grad()
def test_a_call_leaves_the_caches_it_was_given_as_they_were() -> None:
    _, ours = pair("shallow")
    _, caches = ours.decode(torch.randn(1, 3, 1, 4, 4))
    before = [c.clone() for c in caches]
    _, later = ours.decode(torch.randn(1, 3, 3, 4, 4), caches)
    assert all(torch.equal(a, b) for a, b in zip(before, caches, strict=True))
    assert [c.shape for c in caches] == [c.shape for c in later]


@torch.no_grad()
def test_half_precision_stays_near() -> None:
    _, ours = pair("published")
    z = torch.randn(1, 4, 3, 3, 4)
    exact, _ = ours.decode(z)
    rough, _ = ours.bfloat16().decode(z.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.03


def test_normalize_is_undone_by_denormalize() -> None:
    _, ours = pair("shallow")
    latents = torch.randn(1, 3, 2, 3, 3)
    assert torch.allclose(ours.denormalize(ours.normalize(latents)), latents, atol=1e-6)
    assert torch.allclose(ours.normalize(latents), latents * 0.7)


def test_a_wrong_number_of_frames_is_refused() -> None:
    _, ours = pair("shallow")
    with pytest.raises(InputError, match="given 4 frames; it wants 1 \\+ a multiple of 4"):
        ours.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(InputError, match="wanted \\[B, 3, F, H, W\\]"):
        ours.encode(torch.zeros(1, 4, 5, 16, 16))
    with pytest.raises(InputError, match="wanted \\[B, 3, T, h, w\\]"):
        ours.decode(torch.zeros(1, 4, 1, 4, 4))
    with pytest.raises(InputError, match="wanted \\[B, 3, T, h, w\\]"):
        ours.decode(torch.zeros(1, 3, 0, 4, 4))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"use_quant_conv": True}, "use_quant_conv=True is not supported"),
        ({"act_fn": "relu"}, "act_fn='relu' is not supported"),
        ({"down_block_types": ["Other"] * 4}, "down_block_types=.* is not supported"),
        ({"layers_per_block": 1000}, "layers_per_block must be a whole number from 1 to 16"),
        ({"in_channels": 1}, "in_channels and out_channels must be 3"),
        ({"block_out_channels": [128] * 100}, "block_out_channels must be a list of 1 to 8"),
        ({"block_out_channels": [100, 200]}, "must be multiples of norm_num_groups"),
        ({"block_out_channels": 4}, "block_out_channels must be"),
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio must be one of"),
        ({"temporal_compression_ratio": 64}, "temporal_compression_ratio must be one of"),
        ({"latent_channels": 10**9}, "latent_channels must be"),
        ({"scaling_factor": 0}, "scaling_factor must be a list of 1 numbers above 0"),
        ({"latents_mean": [0.0] * 16}, "latents_mean=.* is not supported"),
    ],
)
def test_a_config_of_another_family_or_size_is_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        CogVideoXVAE.from_config(values)
    assert len(str(refusal.value)) < 180


def test_full_size_equals_diffusers_in_keys_shapes_and_count() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKLCogVideoX()
        ours = CogVideoXVAE.from_config(dict(theirs.config))
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == shapes
    assert ours.decoder_memory == 26
