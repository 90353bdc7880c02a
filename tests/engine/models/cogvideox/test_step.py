"""A pass at a fixed shape is the model's own over what is there of the past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from livereel.engine.errors import InputError
from livereel.engine.models.cogvideox.transformer import CogVideoXTransformer

PAST, CHUNK, SIZE = 4, 2, (4, 6)
KINDS: dict[str, dict[str, Any]] = {
    "waves": {},
    "rotary": {"use_rotary_positional_embeddings": True},
    "patches in time": {"use_rotary_positional_embeddings": True, "patch_size_t": 2},
}


def model(kind: str) -> CogVideoXTransformer:
    torch.manual_seed(2)
    config = dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=12, text_embed_dim=12, num_layers=2, sample_width=12, sample_height=8,
        sample_frames=9, max_text_seq_length=9,
    )  # fmt: skip
    dit = CogVideoXTransformer.from_config({**config, **KINDS[kind]}).eval().requires_grad_(False)
    for p in dit.parameters():
        p.normal_(std=0.3)
    return dit


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_it_sees_what_is_there_of_the_past_and_no_more(kind: str) -> None:
    dit = model(kind)
    step = dit.step(PAST, CHUNK, *SIZE)
    text, time = torch.randn(1, 9, 12), torch.tensor([500.0])
    chunk, past = (torch.randn(1, 4, frames, *SIZE) for frames in (CHUNK, PAST))
    for seen in (0, 2, PAST):
        missing = PAST - seen
        times = torch.cat([torch.zeros(1, seen), time.expand(1, CHUNK)], dim=1)
        clip = torch.cat([past[:, :, missing:], chunk], dim=2)
        wanted = dit(clip, times, text)[:, :, seen:]
        places = torch.tensor([-1] * missing + list(range(seen + CHUNK)))
        torch.testing.assert_close(step(chunk, time, text, past, places), wanted, atol=1e-5, rtol=0)
        if dit.temporal_patch == 1:  # in any order
            order = torch.tensor([2, 0, 3, 1])
            mixed = torch.cat([places[order], places[PAST:]])
            found = step(chunk, time, text, past[:, :, order], mixed)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_chunk_that_patches_do_not_tile_is_told() -> None:
    with pytest.raises(InputError, match="a multiple of 2 latent frames, got 5"):
        model("patches in time").step(3, 2, *SIZE)


def test_positions_that_are_stored_are_told() -> None:
    dit = model("rotary")
    dit.config = replace(dit.config, use_learned_positional_embeddings=True)
    with pytest.raises(InputError, match="stores its positions"):
        dit.step(PAST, CHUNK, *SIZE)
