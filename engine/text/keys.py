"""Names of the UMT5 encoder's weights: as the Wan repository writes them and as transformers does.

The pairs were taken from both projects' module definitions (`wan/modules/t5.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import CheckpointError
from ..registry import Layout

TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "shared.weight": "encoder.embed_tokens.weight",
}
"""The embedding goes by two names; a file may hold either or both."""

_TOP = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_ORIGINAL = re.compile(r"(?:blocks\.(?P<block>\d{1,4})\.)?(?P<stem>.+)\.weight")
_TRANSFORMERS = re.compile(r"(?:encoder\.block\.(?P<block>\d{1,4})\.)?(?P<stem>.+)\.weight")


def to_transformers(names: Collection[str]) -> dict[str, str]:
    """Wan's names to those of `UMT5EncoderModel`; others stay."""
    return {name: _rename(name, _ORIGINAL, "encoder.block.", _BLOCK, _TOP) for name in names}


def to_original(names: Collection[str]) -> dict[str, str]:
    """The way back of `to_transformers`."""
    block = {new: old for old, new in _BLOCK.items()}
    top = {new: old for old, new in _TOP.items()}
    return {name: _rename(name, _TRANSFORMERS, "blocks.", block, top) for name in names}


def _rename(
    name: str,
    pattern: re.Pattern[str],
    prefix: str,
    block: Mapping[str, str],
    top: Mapping[str, str],
) -> str:
    match = pattern.fullmatch(name)
    if match is None:
        return name
    number, stem = match["block"], match["stem"]
    renamed = (top if number is None else block).get(stem)
    if renamed is None:
        return name
    return ("" if number is None else f"{prefix}{number}.") + renamed + ".weight"


_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def _is_encoder(names: Collection[str]) -> bool:
    found = set(names)
    return "encoder.block.0.layer.0.SelfAttention.q.weight" in found and not TIED.keys().isdisjoint(
        found
    )


def _is_t5(names: Collection[str]) -> bool:
    """T5 has one table of relative positions, in its first layer, UMT5 one in each layer."""
    second = "encoder.block.1.layer.0.SelfAttention.q.weight" in names
    return _is_encoder(names) and second and _BIAS.format(1) not in names


def _is_umt5(names: Collection[str]) -> bool:
    found = set(to_transformers(names).values())
    return _is_encoder(found) and not _is_t5(found)


def encoder_config(
    shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None
) -> dict[str, Any]:
    """The `config.json` of an encoder with these weights; `num_heads` is read off them."""
    attention = "encoder.block.0.layer.0.SelfAttention."
    embedding = next((name for name in TIED.values() if name in shapes), "shared.weight")
    try:
        vocabulary, width = shapes[embedding]
        buckets, heads = shapes[attention + "relative_attention_bias.weight"]
        inner, _ = shapes[attention + "q.weight"]
        feed_forward, _ = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the weights are no UMT5 encoder's: {error}") from error
    pattern = re.compile(r"encoder\.block\.(\d{1,4})\.")
    layers = {match[1] for name in shapes if (match := pattern.match(name))}
    if heads < 1 or inner % heads:
        raise CheckpointError(f"attention of width {inner} does not divide into {heads} heads")
    return {
        "architectures": ["UMT5EncoderModel"],
        "d_ff": feed_forward,
        "d_kv": inner // heads,
        "d_model": width,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "umt5",
        "num_heads": heads,
        "num_layers": len(layers),
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": buckets,
        "vocab_size": vocabulary,
    }


def t5_config(
    shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None
) -> dict[str, Any]:
    """The same for a T5 encoder, version 1.1."""
    config = encoder_config(shapes, num_heads)
    return {**config, "architectures": ["T5EncoderModel"], "model_type": "t5"}


def _same(names: Collection[str]) -> dict[str, str]:
    return {name: name for name in names}


UMT5 = Layout(
    component="text_encoder",
    class_name="UMT5EncoderModel",
    to_diffusers=to_transformers,
    to_original=to_original,
    matches=_is_umt5,
    config=encoder_config,
    tied=TIED,
)
T5 = Layout(
    component="text_encoder",
    class_name="T5EncoderModel",
    to_diffusers=_same,
    to_original=_same,
    matches=_is_t5,
    config=t5_config,
    tied=TIED,
)
"""Published as transformers writes it alone."""
