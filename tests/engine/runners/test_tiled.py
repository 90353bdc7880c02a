"""Tiles against diffusers' tiles, and against the whole picture."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from livereel.engine.models.cogvideox.vae import CogVideoXVAE
from livereel.engine.runners.tiled import Tile, decode_tiled, encode_tiled

TILE = Tile(height=48, width=40)


@pytest.fixture(scope="module")
def pair() -> tuple[AutoencoderKLCogVideoX, CogVideoXVAE]:
    torch.manual_seed(0)
    theirs = AutoencoderKLCogVideoX(
        block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()
    with torch.no_grad():
        theirs.decoder.conv_out.conv.weight.mul_(0.1)  # so that nothing is clamped, tile by tile
    theirs.enable_tiling(48, 40, 1 / 6, 1 / 5)
    ours = CogVideoXVAE.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def test_decoded_tiles_equal_diffusers(pair: tuple[AutoencoderKLCogVideoX, CogVideoXVAE]) -> None:
    theirs, ours = pair
    latents = torch.randn(1, 4, 5, 12, 7)
    wanted = theirs.decode(latents).sample
    assert wanted.abs().max() < 1
    got = decode_tiled(ours.decode, latents, [3, 2], factor=8, tile=TILE)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_encoded_tiles_equal_diffusers(pair: tuple[AutoencoderKLCogVideoX, CogVideoXVAE]) -> None:
    theirs, ours = pair
    frames = torch.rand(1, 3, 9, 88, 64) * 2 - 1
    wanted = theirs.encode(frames).latent_dist.mean
    got = encode_tiled(ours.encode, frames, [9], factor=8, tile=TILE)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_tile_is_the_picture(pair: tuple[AutoencoderKLCogVideoX, CogVideoXVAE]) -> None:
    _, ours = pair
    latents = torch.randn(1, 4, 3, 5, 4)
    whole, _ = ours.decode(latents)
    assert torch.equal(decode_tiled(ours.decode, latents, [3], factor=8, tile=TILE), whole)


def test_tiles_of_a_constant_have_no_seams() -> None:
    """Every pixel is a mixture whose parts make one, whatever the size."""
    for size in ((1, 1), (7, 9), (13, 23), (60, 91)):
        x = torch.full((1, 1, 2, *size), 3.0)
        grown = decode_tiled(
            lambda part, caches: (part.repeat_interleave(8, 3).repeat_interleave(8, 4), ()),
            x, [1, 1], factor=8, tile=Tile(),
        )  # fmt: skip
        assert grown.shape == (1, 1, 2, 8 * size[0], 8 * size[1])
        torch.testing.assert_close(grown, torch.full_like(grown, 3.0))
