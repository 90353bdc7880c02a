"""A tiny model of the demo's kind with random weights, written by diffusers and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F

from livereel.engine.engine import Engine

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

RECIPE = {
    "chunk_latents": 3,
    "first_chunk_latents": 1,
    "window": 6,
    "sinks": 0,
    "timesteps": [1000.0, 900.0, 600.0],
    "context_noise": 0.0,
    "solver": "renoise",
    "fps": 16,
    "max_sequence_length": 8,
    "width": 48,
    "height": 32,
}


def save_tiny_model(folder: Path, recipe: dict[str, object] | None) -> Path:
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

    torch.manual_seed(7)
    tokenizer = build_tokenizer(["a", "red", "blue", "ball", "moving", "left"])
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=32, ffn_dim=64, num_layers=2,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[True, True],
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=8,
        latents_mean=[0.1] * 4, latents_std=[1.2] * 4,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder)
    save_tokenizer(tokenizer, folder / "tokenizer")
    if recipe is not None:
        (folder / "livereel.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model's folder."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", RECIPE)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights without livereel.json: a model that makes whole clips."""
    return save_tiny_model(tmp_path_factory.mktemp("clip") / "model", None)


@pytest.fixture(scope="session")
def engine(tiny_folder: Path) -> Engine:
    """The causal model in fp32 on the CPU."""
    return Engine.load(tiny_folder, device="cpu", dtype="float32")


class BlockCausalAttention:
    """An attention processor for diffusers' attn1: each token sees its own chunk and earlier ones.

    Written from the definition: all keys, a mask, complex rotation. `chunks` are latent frames of
    `tokens` each; `past` is how many frames before its own a chunk sees (None: all).
    """

    def __init__(self, chunks: Sequence[int], tokens: int, past: int | None) -> None:
        lengths = torch.tensor(chunks)
        first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths * tokens)
        frame = torch.arange(sum(chunks)).repeat_interleave(tokens)
        oldest = torch.zeros_like(first) if past is None else first - past
        self.mask = (first[:, None] >= first[None, :]) & (oldest[:, None] <= frame[None, :])

    def __call__(
        self, attn: Any, hidden: torch.Tensor, encoder_hidden_states: Any = None,
        attention_mask: Any = None, rotary_emb: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (attn.heads, -1))

        def turn(x: torch.Tensor) -> torch.Tensor:
            pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
            cos, sin = rotary_emb[0][..., 0::2].double(), rotary_emb[1][..., 1::2].double()
            angle = torch.complex(cos, sin)
            return torch.view_as_real(pairs * angle).flatten(-2).to(x.dtype)

        q = turn(heads(attn.norm_q(attn.to_q(hidden))))
        k = turn(heads(attn.norm_k(attn.to_k(hidden))))
        v = heads(attn.to_v(hidden))
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=self.mask
        )
        return attn.to_out[0](y.transpose(1, 2).flatten(2))


@pytest.fixture(scope="session")
def block_causal() -> Callable[..., None]:
    """Makes a diffusers transformer block-causal; arguments as of `BlockCausalAttention`."""

    def change(
        model: WanTransformer3DModel, chunks: Sequence[int], tokens: int, past: int | None = None
    ) -> None:
        for block in model.blocks:
            block.attn1.set_processor(BlockCausalAttention(chunks, tokens, past))

    return change
