"""A pass with its places as data equals one whose past is gathered in the order of time."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.models.wan.transformer import WanTransformer
from livereel.engine.types import LayerKV

CONFIG = dict(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=32, ffn_dim=64, num_layers=2,
)  # fmt: skip
HEIGHT, WIDTH, TOKENS = 4, 6, 6


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    torch.manual_seed(3)
    return WanTransformer.from_config(CONFIG).eval()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [None, 1, 0], [None, None, None]])
@pytest.mark.parametrize("frames", [2, 1])
@torch.inference_mode()
def test_equals_a_chunk_over_the_frames_that_are_there(
    model: WanTransformer, order: list[int | None], frames: int
) -> None:
    latents = torch.randn(1, 4, frames, HEIGHT, WIDTH)
    timestep = torch.tensor([600.0])
    text = model.text_kv(torch.randn(1, 5, 12))
    there = sorted(frame for frame in order if frame is not None)
    cached = torch.randn(2, 2, 3, TOKENS, 2, 24)  # keys and values, by layer and frame
    past = None
    if there:
        gathered = cached[:, :, there].flatten(2, 3).unsqueeze(2)
        layers = [LayerKV(*pair) for pair in zip(*gathered, strict=True)]
        past = model.past(len(there), HEIGHT, WIDTH, layers)
    flow, own = model.chunk(latents, timestep, text, past)

    step = model.step(3, 2, HEIGHT, WIDTH)
    places = [-1 if frame is None else there.index(frame) for frame in order]
    places += [len(there) + i if i < frames else -1 for i in range(2)]
    in_order = cached[:, :, [0 if frame is None else frame for frame in order]]
    padded = torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, 2 - frames))
    got, k, v = step(
        padded, timestep, *(torch.cat([getattr(kv, n) for kv in text]) for n in "kv"),
        *in_order, torch.tensor(places),
    )  # fmt: skip
    torch.testing.assert_close(got[:, :, :frames], flow, atol=1e-5, rtol=1e-5)
    for layer, kv in enumerate(own):
        for found, wanted in ((k, kv.k), (v, kv.v)):
            torch.testing.assert_close(
                found[layer, :frames].flatten(0, 1), wanted[0], atol=1e-5, rtol=1e-5
            )
