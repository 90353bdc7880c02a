"""The DiT against diffusers' module, driven as its pipelines drive it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.cogvideox.config import CogVideoXTransformerConfig
from livereel.engine.models.cogvideox.transformer import CogVideoXTransformer

TINY: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=12,
    text_embed_dim=10, num_layers=2, sample_width=12, sample_height=8, sample_frames=9,
    max_text_seq_length=6,
)  # fmt: skip
ROTARY = {"use_rotary_positional_embeddings": True}
SMALL: dict[str, dict[str, Any]] = {
    "2B": TINY,
    "5B": {**TINY, **ROTARY},
    "5B-I2V": {**TINY, **ROTARY, "use_learned_positional_embeddings": True, "in_channels": 8},
    "1.5": {**TINY, **ROTARY, "patch_size_t": 2, "sample_frames": 13, "patch_bias": False},
    "1.5-I2V": {**TINY, **ROTARY, "patch_size_t": 2, "in_channels": 8, "ofs_embed_dim": 12},
    "no bias": {**TINY, "attention_bias": False},
}
FIVE_B: dict[str, Any] = {"num_attention_heads": 48, "num_layers": 42, **ROTARY}
FULL: dict[str, dict[str, Any]] = {
    "2B": {},
    "5B": FIVE_B,
    "5B-I2V": {**FIVE_B, "in_channels": 32, "use_learned_positional_embeddings": True},
    "1.5-5B": {**FIVE_B, "patch_size_t": 2, "patch_bias": False, "sample_width": 300,
               "sample_height": 300, "sample_frames": 81},
    "1.5-5B-I2V": {**FIVE_B, "patch_size_t": 2, "patch_bias": False, "in_channels": 32,
                   "sample_width": 170, "sample_height": 96, "sample_frames": 81,
                   "ofs_embed_dim": 512},
}  # fmt: skip


def pair(name: str, seed: int = 0) -> tuple[CogVideoXTransformer3DModel, CogVideoXTransformer]:
    torch.manual_seed(seed)
    theirs = CogVideoXTransformer3DModel(**SMALL[name]).eval()
    for p in theirs.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, std=0.3)
    if SMALL[name].get("use_learned_positional_embeddings"):
        table = theirs.patch_embed.pos_embedding
        table[:, TINY["max_text_seq_length"] :] = torch.randn_like(
            table[:, TINY["max_text_seq_length"] :]
        )
    ours = CogVideoXTransformer.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


class Parts:
    """What the pipeline's method for positions reads of a pipeline."""

    vae_scale_factor_spatial = 8

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        self.transformer = transformer


def velocity(
    theirs: CogVideoXTransformer3DModel, latents: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    rope = None
    if theirs.config.use_rotary_positional_embeddings:
        frames, height, width = latents.shape[2:]
        rope = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            Parts(theirs), height * 8, width * 8, frames, latents.device
        )
    ofs = None if theirs.config.ofs_embed_dim is None else torch.full((1,), 2.0)
    out = theirs(
        latents.transpose(1, 2), text, t, ofs=ofs, image_rotary_emb=rope, return_dict=False
    )[0]
    return out.transpose(1, 2)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert a.shape == b.shape
    error = (a - b).abs().max() / b.abs().max()
    assert error <= tolerance, float(error)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("frames", ["sample", 2, 6])
@torch.no_grad()
def test_equals_diffusers(name: str, frames: Any) -> None:
    theirs, ours = pair(name)
    if frames == "sample":
        frames = ours.config.sample_latents
        frames += frames % ours.temporal_patch
    latents = torch.randn(2, ours.config.in_channels, frames, 8, 12)
    t, text = torch.tensor([999, 250]), torch.randn(2, 6, 10)
    close(ours(latents, t, text), velocity(theirs, latents, t, text))


@pytest.mark.parametrize("name", ["2B", "5B", "1.5"])
@pytest.mark.parametrize("size", [(4, 12), (8, 6), (6, 10)])
@torch.no_grad()
def test_other_sizes_equal_diffusers(name: str, size: tuple[int, int]) -> None:
    theirs, ours = pair(name)
    latents = torch.randn(1, 4, 4, *size)
    t, text = torch.tensor([500]), torch.randn(1, 6, 10)
    close(ours(latents, t, text), velocity(theirs, latents, t, text))


def test_both_pipelines_place_tokens_alike() -> None:
    theirs, _ = pair("5B")
    a, b = (
        kind._prepare_rotary_positional_embeddings(Parts(theirs), 64, 96, 3, torch.device("cpu"))
        for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["2B", "1.5"])
@torch.no_grad()
def test_one_time_for_all_frames_is_the_clip_s(name: str) -> None:
    _, ours = pair(name)
    latents, text = torch.randn(1, 4, 4, 8, 12), torch.randn(1, 6, 10)
    whole = ours(latents, torch.tensor([700.0]), text)
    close(ours(latents, torch.full((1, 4), 700.0), text), whole, 1e-6)
    mixed = ours(latents, torch.tensor([[0.0, 0.0, 700.0, 700.0]]), text)
    assert (mixed - whole).abs().max() > 1e-3


@torch.no_grad()
def test_text_goes_by_the_time_of_the_last_frame() -> None:
    """What earlier frames are told does not change how the text is read in the first block."""
    _, ours = pair("2B")
    block = ours.transformer_blocks[0].norm1
    from livereel.engine.models.cogvideox.transformer import Stream

    x = Stream(torch.randn(1, 6, 32), torch.randn(1, 2, 4, 32))
    late = ours.time(torch.tensor([[900.0]]))
    mixed = ours.time(torch.tensor([[0.0, 900.0]]))
    one, gate, _ = block(x, late)
    other, gate_too, _ = block(x, mixed)
    close(other.text, one.text, 1e-6)
    close(gate_too, gate, 1e-6)
    close(other.video[:, 1], one.video[:, 1], 1e-6)


def test_what_patches_do_not_tile_is_refused() -> None:
    _, ours = pair("1.5")
    t, text = torch.tensor([1.0]), torch.randn(1, 6, 10)
    for shape in ((1, 4, 3, 8, 12), (1, 4, 2, 7, 12), (1, 3, 2, 8, 12)):
        with pytest.raises(InputError, match="wanted 4 channels, frames a multiple of 2, height"):
            ours(torch.zeros(shape), t, text)
    _, stored = pair("5B-I2V")
    with pytest.raises(InputError, match=r"stores its positions for .* \(8, 12\), got \(8, 8\)"):
        stored(torch.zeros(1, 8, 2, 8, 8), t, text)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos=False is not supported"),
        ({"num_layers": 10**6}, "num_layers must be a whole number from 1 to 256"),
        ({"attention_head_dim": 24}, "attention_head_dim must be a multiple of 16"),
        ({"patch_size_t": 0}, "patch_size_t must be"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"ofs_embed_dim": 7}, "ofs_embed_dim must be time_embed_dim"),
        ({"use_learned_positional_embeddings": True}, "wants rotary ones as well"),
        ({"norm_eps": -1}, "norm_eps must be"),
        ({"sample_frames": 10**9}, "sample_frames must be"),
    ],
)
def test_a_config_of_another_family_or_size_is_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        CogVideoXTransformerConfig.from_dict(values)
    assert len(str(refusal.value)) < 150


@pytest.mark.parametrize("name", FULL)
def test_full_size_equals_diffusers_in_keys_shapes_and_count(name: str) -> None:
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel(**FULL[name])
        ours = CogVideoXTransformer.from_config(dict(theirs.config))
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == shapes
