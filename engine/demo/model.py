"""What the demo is made of, and its text encoder and DiT as they are trained together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ..models.wan.transformer import WanTransformer
from ..sampling import goal
from ..text.vocabulary import build_tokenizer
from .clips import words
from .steering import CONTROL_CHANNELS

GOAL_CHANNELS = goal.channels(16, CONTROL_CHANNELS)
"""By which the DiT is told of a picture to arrive at."""
VAE_CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
DIT_CONFIG: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16 + CONTROL_CHANNELS + GOAL_CHANNELS,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 4,
    "cross_attn_norm": True,
}
TEXT_CONFIG: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
MAX_TEXT = 16
"""Tokens that every caption is zero-padded to; the longest has 12 with its end mark."""

TIME_SHIFT = 3.0
"""Warp of the noise levels, in training and in the steps of sampling."""


class TextToVideo(nn.Module):
    """What the DiT stage trains: a word-level UMT5 encoder and the transformer, together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(words())
        config = UMT5Config(vocab_size=len(self.tokenizer), **TEXT_CONFIG)
        self.text_encoder = UMT5EncoderModel(config)
        self.transformer = WanTransformer.from_config(DIT_CONFIG)
        for name, weight in self.transformer.named_parameters():
            # Small outputs at first, but not zero, so that the text is heard from the start.
            if name.endswith("attn1.to_out.0.weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("attn2.to_out.0.weight"):
                nn.init.normal_(weight, std=0.04)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions to zero-padded states `[B, MAX_TEXT, text_dim]`, as the engine pads them."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=MAX_TEXT, return_tensors="pt"
        ).to(self.transformer.proj_out.weight.device)
        states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        padded: Tensor = states * tokens.attention_mask.unsqueeze(-1)
        return padded
