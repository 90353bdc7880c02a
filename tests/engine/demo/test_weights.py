"""The model that ships: whole, small enough, and the same in diffusers as here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from livereel.engine.checkpoint.folder import DEMO
from livereel.engine.demo.pack import LIMIT, checksums, read_manifest
from livereel.engine.demo.scenes import Scene, held_out_captions
from livereel.engine.engine import Engine
from livereel.engine.layers.pixels import to_float

CAPTION = "a large red circle moving left on a white background"


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.load("demo", device="cpu", dtype="float32")


def test_every_file_is_the_one_in_the_manifest() -> None:
    files = checksums(DEMO)
    assert files == read_manifest(DEMO)
    assert sum(entry["bytes"] for entry in files.values()) <= LIMIT


def test_diffusers_encodes_and_decodes_to_the_same_frames(demo: Engine) -> None:
    theirs = AutoencoderKLWan.from_pretrained(DEMO / "vae", torch_dtype=torch.float32).eval()
    scene = Scene.sample(held_out_captions()[0], np.random.default_rng(0))
    frames = to_float(scene.render(0, 9))
    with torch.no_grad():
        latents = theirs.encode(frames).latent_dist.mode()
        decoded = theirs.decode(latents).sample
    assert torch.allclose(demo.encode(frames), latents, atol=1e-4 * float(latents.abs().max()))
    assert torch.allclose(demo.decode(latents), decoded, atol=1e-4)


def test_diffusers_predicts_the_same_flow(demo: Engine) -> None:
    theirs = WanTransformer3DModel.from_pretrained(
        DEMO / "transformer", torch_dtype=torch.float32
    ).eval()
    channels = theirs.config.in_channels
    x = torch.randn(1, channels, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    text = demo.runner.encode_text(CAPTION, demo.config.max_sequence_length)
    t = torch.tensor([700.0])
    with torch.no_grad():
        expected = theirs(x, t, text, return_dict=False)[0]
        ours = demo.runner.transformer(x, t, text)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_word_it_does_not_know_is_named(demo: Engine) -> None:
    with pytest.warns(UserWarning, match="zebra"):
        demo.generate("a zebra moving left on a white background", frames=1)
