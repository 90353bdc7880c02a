"""A tiny CogVideoX that streams, its VAE of two sizes and 2 frames a latent frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

RECIPE: dict[str, Any] = {
    "chunk_latents": 2,
    "first_chunk_latents": 1,
    "window": 5,
    "timesteps": [999.0, 749.0, 499.0],
    "solver": "ddim",
    "shift": 3.0,
    "guidance_scale": 3.0,
    "fps": 8,
    "max_sequence_length": 9,
    "width": 16,
    "height": 8,
}


@pytest.fixture(scope="session")
def windowed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("windowed") / "model"
    tokenizer = build_tokenizer(["a", "red", "blue", "ball", "moving", "left"])
    text = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
                 feed_forward_proj="gated-gelu")
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=12, text_embed_dim=12, num_layers=1, sample_width=8, sample_height=4,
        sample_frames=9, max_text_seq_length=9, temporal_compression_ratio=2,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(4, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=2, scaling_factor=0.7,
    )  # fmt: skip
    for p in (*transformer.parameters(), *vae.parameters()):
        if p.ndim == 1:
            torch.nn.init.normal_(p, std=0.3)
    CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=text, vae=vae, transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    save_tokenizer(tokenizer, folder / "tokenizer")
    (folder / "livereel.json").write_text(json.dumps(RECIPE))
    return folder
