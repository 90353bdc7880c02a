"""The DiT against diffusers' module: whole clip, and cached chunks under a block-causal mask."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.layers.rope import rope_table, rotate
from livereel.engine.models.wan.blocks import Attention
from livereel.engine.models.wan.transformer import WanTransformer
from livereel.engine.types import LayerKV

TINY: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=32, ffn_dim=64, num_layers=3,
)  # fmt: skip


def pair(**changes: Any) -> tuple[WanTransformer3DModel, WanTransformer]:
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(**(TINY | changes)).eval()
    for name, p in theirs.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
    ours = WanTransformer.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 2, 2), (5, 6, 10), (2, 10, 6)])
@pytest.mark.parametrize("cross_attn_norm", [True, False])
@torch.no_grad()
def test_whole_clip_equals_diffusers(
    frames: int, height: int, width: int, cross_attn_norm: bool
) -> None:
    theirs, ours = pair(cross_attn_norm=cross_attn_norm)
    x, text = torch.randn(2, 4, frames, height, width), torch.randn(2, 7, 12)
    t = torch.tensor([999.0, 250.5])
    expected = theirs(x, t, text, return_dict=False)[0]
    assert relative_error(ours(x, t, text), expected) <= 1e-4


IMAGE: dict[str, Any] = dict(in_channels=12, image_dim=10, added_kv_proj_dim=48)


@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_a_clip_with_an_image_s_tokens_equals_diffusers(images: int) -> None:
    """diffusers takes the last 512 tokens for the text; two images' come as a batch."""
    places = {} if images == 1 else {"pos_embed_seq_len": 10}
    theirs, ours = pair(**IMAGE, **places)
    x, text, tokens = (
        torch.randn(1, 12, 3, 4, 6),
        torch.randn(1, 512, 12),
        torch.randn(images, 5, 10),
    )
    t = torch.tensor([700.0])
    expected = theirs(x, t, text, tokens, return_dict=False)[0]
    assert relative_error(ours(x, t, text, tokens.reshape(1, -1, 10)), expected) <= 1e-4
    assert relative_error(ours(x, t, text), expected) > 1e-3
    assert ours.condition_channels == 8 and ours.image_width == 10


def test_image_tokens_that_the_model_does_not_take_are_refused() -> None:
    x, text, t = torch.randn(1, 4, 1, 4, 4), torch.randn(1, 5, 12), torch.zeros(1)
    with pytest.raises(InputError, match="10 wide; the model takes None"):
        pair()[1](x, t, text, torch.randn(1, 5, 10))
    flf = pair(**IMAGE, pos_embed_seq_len=10)[1]
    with pytest.raises(InputError, match="takes 10 tokens of a first and a last image"):
        flf(torch.randn(1, 12, 1, 4, 4), t, text, torch.randn(1, 5, 10))


@torch.no_grad()
def test_a_whole_clip_keeps_no_layer_s_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair()
    layers = {block.attn1 for block in ours.blocks}
    made: list[weakref.ref[LayerKV]] = []
    alive: list[int] = []
    plain = Attention.key_value

    def watched(self: Attention, x: torch.Tensor) -> LayerKV:
        kv = plain(self, x)
        if self in layers:
            made.append(weakref.ref(kv))
            alive.append(sum(one() is not None for one in made))
        return kv

    monkeypatch.setattr(Attention, "key_value", watched)
    x, text, t = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 5, 12), torch.tensor([500.0])
    ours(x, t, text)
    assert alive == [1, 1, 1]
    made.clear()
    _, kept = ours.chunk(x, t, ours.text_kv(text), None)
    assert alive[3:] == [1, 2, 3] and len(kept) == 3


@pytest.mark.parametrize("chunks", [[1, 1, 1], [3, 3], [2, 3, 1], [1, 5]])
@torch.no_grad()
def test_cached_chunks_equal_diffusers_under_a_block_causal_mask(
    block_causal: Callable[..., None], chunks: list[int]
) -> None:
    theirs, ours = pair()
    height, width, tokens = 6, 4, 6
    x, text = torch.randn(1, 4, sum(chunks), height, width), torch.randn(1, 5, 12)
    kv, cached, first = ours.text_kv(text), [], 0
    for index, length in enumerate(chunks):
        frames = slice(first, first + length)
        past = None
        if first:
            layers = [
                LayerKV(torch.cat([kv.k for kv in layer], 1), torch.cat([kv.v for kv in layer], 1))
                for layer in zip(*cached, strict=True)
            ]
            past = ours.past(first, height, width, layers)
        flow, _ = ours.chunk(x[:, :, frames], torch.tensor([700.0]), kv, past)

        # The same in one forward of diffusers: the past at t=0, this chunk at t=700.
        times = torch.zeros(1, first + length)
        times[:, first:] = 700.0
        block_causal(theirs, chunks[: index + 1], tokens)
        oracle = theirs(
            x[:, :, : first + length], times.repeat_interleave(tokens, 1), text, return_dict=False
        )[0]
        assert relative_error(flow, oracle[:, :, frames]) <= 1e-4

        _, clean = ours.chunk(x[:, :, frames], torch.zeros(1), kv, past)
        cached.append(clean)
        first += length


@torch.no_grad()
def test_a_timestep_for_each_frame_equals_diffusers_tokens() -> None:
    theirs, ours = pair()
    x, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 12)
    t = torch.tensor([[0.0, 500.0, 999.0]])
    expected = theirs(x, t.repeat_interleave(4, 1), text, return_dict=False)[0]
    assert relative_error(ours(x, t, text), expected) <= 1e-4


def test_attention_depends_on_distances_alone() -> None:
    q, k = torch.randn(1, 4, 2, 48), torch.randn(1, 4, 2, 48)
    cpu = torch.device("cpu")

    def logits(first: int) -> torch.Tensor:
        table = rope_table(first, 1, 2, 2, 48, device=cpu)
        past = rope_table(first - 3, 1, 2, 2, 48, device=cpu)
        return torch.einsum("bnhd,bmhd->bhnm", rotate(q, table), rotate(k, past))

    assert torch.allclose(logits(3), logits(2**20), atol=1e-4)


@torch.no_grad()
def test_the_shape_of_keys_is_known_beforehand() -> None:
    _, ours = pair()
    text = ours.text_kv(torch.randn(1, 5, 12))
    _, own = ours.chunk(torch.randn(1, 4, 1, 6, 10), torch.zeros(1), text, None)
    assert ours.kv_shape(6, 10) == (len(own), *own[0].k.shape[1:]) == (3, 15, 2, 24)


SIZES = {
    "1.3B": (dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), 1_418_996_800),
    "14B": (dict(num_attention_heads=40, ffn_dim=13824, num_layers=40), 14_288_491_584),
    "TI2V-5B": (
        dict(num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48),
        4_999_787_712,
    ),
    "I2V-14B": (dict(in_channels=36, image_dim=1280, added_kv_proj_dim=5120), 16_394_878_784),
    "FLF2V-14B": (
        dict(in_channels=36, image_dim=1280, added_kv_proj_dim=5120, pos_embed_seq_len=514),
        16_395_536_704,
    ),
    "I2V-A14B, each": (dict(in_channels=36), 14_288_901_184),
}


@pytest.mark.parametrize("size", SIZES)
def test_full_sizes_equal_diffusers_in_keys_shapes_and_count(size: str) -> None:
    config, count = SIZES[size]
    with torch.device("meta"):
        theirs = WanTransformer3DModel(**config)
        ours = WanTransformer.from_config(dict(theirs.config))
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == count


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"image_dim": 1280}, "image_dim and added_kv_proj_dim must both"),
        ({"image_dim": 8, "added_kv_proj_dim": 8}, "added_kv_proj_dim must be the width, 5120"),
        ({"image_dim": 0, "added_kv_proj_dim": 5120}, "image_dim must be a whole number"),
        ({"qk_norm": None}, "qk_norm=None is not supported"),
        ({"num_layers": 10**9}, "num_layers must be a whole number from 1 to 256, got 1000000000"),
        ({"num_layers": 0}, "num_layers must be"),
        ({"num_layers": True}, "num_layers must be"),
        ({"num_attention_heads": 1e3}, "num_attention_heads must be"),
        ({"attention_head_dim": 7}, "must be even, got 7 and 256"),
        ({"ffn_dim": "64"}, "ffn_dim must be"),
        ({"patch_size": [1, 2]}, "patch_size must be"),
        ({"patch_size": [2, 2, 2]}, "patch_size must be"),
        ({"patch_size": [1, 2, 4]}, r"patch_size must be \[1, n, n\], got \(1, 2, 4\)"),
        ({"patch_size": [1] * 10**6}, "patch_size must be"),
        ({"cross_attn_norm": "yes"}, "cross_attn_norm must be"),
        ({"eps": float("nan")}, "eps must be"),
    ],
)
def test_a_config_of_another_family_or_size_is_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        WanTransformer.from_config(values)
    assert len(str(refusal.value)) < 150


def test_a_size_that_patches_do_not_tile_is_refused() -> None:
    _, ours = pair()
    with pytest.raises(InputError, match="multiples of 2 and 2"):
        ours(torch.zeros(1, 4, 1, 5, 4), torch.zeros(1), torch.zeros(1, 2, 12))
