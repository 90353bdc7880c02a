from __future__ import annotations

import pytest
import torch
from transformers import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from livereel.engine.errors import CheckpointError
from livereel.engine.text import keys

XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64}


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(num_layers=24, **XXL))
    state = model.state_dict()
    state.pop("encoder.embed_tokens.weight")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_names_go_back_and_forth(shapes: dict[str, tuple[int, ...]]) -> None:
    original = keys.to_original(list(shapes))
    assert len(set(original.values())) == len(shapes)
    assert not [name for name in original.values() if "layer." in name or "encoder" in name]
    back = keys.to_transformers(list(original.values()))
    assert [back[original[name]] for name in shapes] == list(shapes)
    assert keys.to_transformers(list(shapes)) == {name: name for name in shapes}


def test_a_few_names_spelled_out() -> None:
    named = {
        "token_embedding.weight": "shared.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
        "blocks.3.norm2.weight": "encoder.block.3.layer.1.layer_norm.weight",
        "blocks.3.attn.o.weight": "encoder.block.3.layer.0.SelfAttention.o.weight",
        "blocks.3.ffn.gate.0.weight": "encoder.block.3.layer.1.DenseReluDense.wi_0.weight",
        "other": "other",
    }
    assert keys.to_transformers(list(named)) == named


def test_the_layout_is_known_in_both_spellings(shapes: dict[str, tuple[int, ...]]) -> None:
    assert keys.UMT5.matches(list(shapes))
    assert keys.UMT5.matches(list(keys.to_original(list(shapes)).values()))
    assert not keys.UMT5.matches(["shared.weight"])


def test_shapes_tell_the_config(shapes: dict[str, tuple[int, ...]]) -> None:
    config = keys.encoder_config(shapes)
    assert {name: config[name] for name in XXL} == XXL
    assert config["num_layers"] == 24
    with torch.device("meta"):
        rebuilt = UMT5EncoderModel(UMT5Config.from_dict(config))
    assert {n: tuple(t.shape) for n, t in rebuilt.state_dict().items() if n in shapes} == shapes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("shared.weight", None),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", (7, 7)),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32,)),
    ],
)
def test_other_shapes_are_no_encoder(
    shapes: dict[str, tuple[int, ...]], name: str, shape: tuple[int, ...] | None
) -> None:
    broken = {key: value for key, value in shapes.items() if key != name}
    with pytest.raises(CheckpointError):
        keys.encoder_config({**broken, **({name: shape} if shape else {})})
