from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders import single_file_utils

from livereel.engine.errors import CheckpointError
from livereel.engine.models.wan import keys
from livereel.engine.models.wan.vae_config import LATENTS_MEAN_2_2, LATENTS_STD_2_2

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}
IMAGE: dict[str, Any] = {"in_channels": 36, "image_dim": 10, "added_kv_proj_dim": 24}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "tiny I2V": {**TINY, **IMAGE},
    "tiny FLF2V": {**TINY, **IMAGE, "pos_embed_seq_len": 514},
    "no norms": {**TINY, "cross_attn_norm": False},
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096},
    "14B": {"text_dim": 4096},
}
VAE_2_2: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "latents_mean": list(LATENTS_MEAN_2_2),
    "latents_std": list(LATENTS_STD_2_2),
    "scale_factor_spatial": 16,
}
VAES: dict[str, dict[str, Any]] = {
    "2.1": {},
    "2.2": VAE_2_2,
    "small 2.2": {
        "base_dim": 4,
        "z_dim": 2,
        "is_residual": True,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "latents_mean": [0.0, 0.0],
        "latents_std": [1.0, 1.0],
        "scale_factor_temporal": 2,
        "scale_factor_spatial": 2,
    },
    "demo": {
        "base_dim": 8,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
    },
    "two channels": {
        "base_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 3,
        "temperal_downsample": [False],
        "z_dim": 2,
        "latents_mean": [0.0, 0.0],
        "latents_std": [1.0, 1.0],
        "scale_factor_temporal": 1,
        "scale_factor_spatial": 2,
    },
    "one level": {
        "base_dim": 4,
        "dim_mult": [1],
        "num_res_blocks": 2,
        "temperal_downsample": [],
        "scale_factor_temporal": 1,
        "scale_factor_spatial": 1,
    },
}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def transformer(values: dict[str, Any]) -> WanTransformer3DModel:
    with torch.device("meta"):
        return WanTransformer3DModel(**values)


def vae(values: dict[str, Any]) -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan(**values)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_names_go_back_and_forth(name: str) -> None:
    wanted = shapes_of(transformer(TRANSFORMERS[name]))
    original = keys.transformer_to_original(list(wanted))
    assert len(set(original.values())) == len(wanted)
    back = keys.transformer_to_diffusers(list(original.values()))
    assert [back[original[key]] for key in wanted] == list(wanted)
    assert not [key for key in original.values() if "attn1" in key or "condition" in key]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_names_agree_with_diffusers_converter(name: str) -> None:
    wanted = transformer(TRANSFORMERS[name]).state_dict()
    original = keys.transformer_to_original(list(wanted))
    checkpoint = {original[key]: key for key in wanted}
    # It knows FLF2V's position table by no name.
    checkpoint.pop("img_emb.emb_pos", None)
    theirs = single_file_utils.convert_wan_transformer_to_diffusers(dict(checkpoint))
    assert theirs == {key: key for key in checkpoint.values()}
    assert keys.transformer_to_diffusers(list(checkpoint)) == checkpoint


@pytest.mark.parametrize("name", VAES)
def test_vae_names_go_back_and_forth(name: str) -> None:
    wanted = list(shapes_of(vae(VAES[name])))
    original = keys.vae_to_original(wanted)
    assert len(set(original.values())) == len(wanted)
    back = keys.vae_to_diffusers(list(original.values()))
    assert [back[original[key]] for key in wanted] == wanted
    assert not [key for key in original.values() if "block" in key or "resnets" in key]


def test_vae_names_agree_with_diffusers_converter() -> None:
    wanted = list(shapes_of(vae({})))
    original = keys.vae_to_original(wanted)
    checkpoint = {original[key]: key for key in wanted}
    theirs = single_file_utils.convert_wan_vae_to_diffusers(checkpoint)
    assert theirs == {key: key for key in wanted}


def test_a_few_names_spelled_out() -> None:
    named = {
        "blocks.7.self_attn.o.bias": "blocks.7.attn1.to_out.0.bias",
        "blocks.7.cross_attn.norm_k.weight": "blocks.7.attn2.norm_k.weight",
        "blocks.7.norm3.weight": "blocks.7.norm2.weight",
        "blocks.7.modulation": "blocks.7.scale_shift_table",
        "head.modulation": "scale_shift_table",
        "head.head.weight": "proj_out.weight",
        "patch_embedding.bias": "patch_embedding.bias",
    }
    assert keys.transformer_to_diffusers(list(named)) == named
    named = {
        "conv1.weight": "quant_conv.weight",
        "encoder.middle.0.residual.6.bias": "encoder.mid_block.resnets.0.conv2.bias",
        "decoder.upsamples.4.shortcut.weight": "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
        "decoder.upsamples.3.resample.1.bias": "decoder.up_blocks.0.upsamplers.0.resample.1.bias",
        "decoder.upsamples.14.residual.0.gamma": "decoder.up_blocks.3.resnets.2.norm1.gamma",
    }
    assert keys.vae_to_diffusers(list(named)) == named
    named = {
        "encoder.downsamples.1.downsamples.0.shortcut.weight":
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "encoder.downsamples.1.downsamples.2.time_conv.bias":
            "encoder.down_blocks.1.downsampler.time_conv.bias",
        "decoder.upsamples.0.upsamples.3.resample.1.weight":
            "decoder.up_blocks.0.upsampler.resample.1.weight",
        "decoder.upsamples.3.upsamples.2.residual.6.bias":
            "decoder.up_blocks.3.resnets.2.conv2.bias",
        "decoder.middle.1.proj.bias": "decoder.mid_block.attentions.0.proj.bias",
    }  # fmt: skip
    assert keys.vae_to_diffusers(list(named)) == named
    whole = keys.vae_to_original(list(shapes_of(vae(VAES["2.2"]))))
    assert {new: old for old, new in whole.items() if new in named} == named


@pytest.mark.parametrize("layout", [keys.TRANSFORMER, keys.VAE], ids=["transformer", "vae"])
def test_unknown_and_finished_names_stay(layout: Any) -> None:
    model = transformer(TINY) if layout is keys.TRANSFORMER else vae(VAES["demo"])
    finished = {name: name for name in shapes_of(model)}
    assert layout.to_diffusers(list(finished)) == finished
    strange = ["", ".", "blocks..weight", "decoder.upsamples.x.weight", "blocks." + "9" * 5000]
    assert layout.to_diffusers(strange) == {name: name for name in strange}
    assert layout.to_original(strange) == {name: name for name in strange}


def test_each_layout_knows_its_own_in_both_spellings() -> None:
    dit, pixels = list(shapes_of(transformer(TINY))), list(shapes_of(vae(VAES["demo"])))
    for layout, own, other in (
        (keys.TRANSFORMER, dit, pixels),
        (keys.VAE, pixels, dit),
    ):
        assert layout.matches(own)
        assert layout.matches(list(layout.to_original(own).values()))
        assert not layout.matches(other)
        assert not layout.matches([])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shapes_tell_the_transformers_config(name: str) -> None:
    model = transformer(TRANSFORMERS[name])
    inferred = keys.transformer_config(shapes_of(model), model.config.num_attention_heads)
    config = {key: model.config[key] for key in inferred if key != "_class_name"}
    config["patch_size"] = list(config["patch_size"])
    assert inferred == {**config, "_class_name": "WanTransformer3DModel"}


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_published_sizes_need_no_number_of_heads(name: str) -> None:
    model = transformer(TRANSFORMERS[name])
    inferred = keys.transformer_config(shapes_of(model))
    assert inferred["num_attention_heads"] == model.config.num_attention_heads


@pytest.mark.parametrize("heads", [None, 5])
def test_an_open_number_of_heads_is_an_error(heads: int | None) -> None:
    with pytest.raises(CheckpointError, match="width 24"):
        keys.transformer_config(shapes_of(transformer(TINY)), heads)


@pytest.mark.parametrize("name", VAES)
def test_shapes_tell_the_vaes_config(name: str) -> None:
    model = vae(VAES[name])
    inferred = keys.vae_config(shapes_of(model))
    assert inferred.pop("_class_name") == "AutoencoderKLWan"
    assert inferred == {key: model.config[key] for key in inferred}


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        ("proj_out.weight", "proj_out.weight"),
        ("blocks.0.ffn.net.0.proj.weight", "ffn"),
        ("blocks.0.", "blocks"),
        ("patch_embedding.weight", "patch_embedding"),
    ],
)
def test_weights_with_a_gap_have_no_config(drop: str, named: str) -> None:
    shapes = {k: v for k, v in shapes_of(transformer(TINY)).items() if not k.startswith(drop)}
    with pytest.raises(CheckpointError, match=named):
        keys.transformer_config(shapes, 2)


def test_a_vae_of_another_layout_has_no_config() -> None:
    shapes = shapes_of(vae(VAES["demo"]))
    with pytest.raises(CheckpointError, match=r"Wan 2\.1"):
        keys.vae_config({**shapes, "encoder.conv_in.weight": (7, 12, 3, 3, 3)})
