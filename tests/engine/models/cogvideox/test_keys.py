from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from livereel.engine.checkpoint.convert import convert
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.checkpoint.load import find_layout, load_component
from livereel.engine.errors import CheckpointError
from livereel.engine.models.cogvideox import keys
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

FIVE_B: dict[str, Any] = {
    "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True,
}  # fmt: skip
NEWER: dict[str, Any] = {**FIVE_B, "patch_size_t": 2, "patch_bias": False, "sample_frames": 81}
PUBLISHED: dict[str, dict[str, Any]] = {
    "2B": {},
    "5B": FIVE_B,
    "5B-I2V": {**FIVE_B, "in_channels": 32, "use_learned_positional_embeddings": True},
    "1.5-5B": {**NEWER, "sample_width": 300, "sample_height": 300},
    "1.5-5B-I2V": {**NEWER, "in_channels": 32, "ofs_embed_dim": 512, "sample_width": 170,
                   "sample_height": 96},
}  # fmt: skip
TINY: dict[str, Any] = dict(
    num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4, time_embed_dim=12,
    text_embed_dim=12, num_layers=2, use_rotary_positional_embeddings=True,
)  # fmt: skip
TINY_VAE: dict[str, Any] = dict(
    block_out_channels=(32, 64, 64, 64), latent_channels=4, layers_per_block=1, scaling_factor=0.7
)
State = dict[str, torch.Tensor]


def packed(state: State, *, rotary: bool = True, layers: int = 2) -> State:
    """A transformer's tensors as its authors' code holds them, written from that code."""
    state = dict(state)
    out: State = {}
    for layer in range(layers):
        at = f"transformer_blocks.{layer}."
        for leaf in ("weight", "bias"):
            qkv = [state.pop(f"{at}attn1.to_{kind}.{leaf}") for kind in "qkv"]
            name = f"transformer.layers.{layer}.attention.query_key_value.{leaf}"
            out[name] = torch.cat(qkv)
            one, two = (state.pop(f"{at}norm{i}.linear.{leaf}").chunk(6) for i in (1, 2))
            # attention's and the feed-forward's for video, then both for text
            rows = [*one[:3], *two[:3], *one[3:], *two[3:]]
            out[f"mixins.adaln_layer.adaLN_modulations.{layer}.1.{leaf}"] = torch.cat(rows)
    names = keys.transformer_to_original(list(state))
    out |= {names[name]: tensor for name, tensor in state.items()}
    if rotary:
        out |= {f"mixins.pos_embed.freqs_{wave}": torch.zeros(3, 4) for wave in ("sin", "cos")}
    else:
        out["mixins.pos_embed.pos_embedding"] = torch.zeros(1, 5, 64)
    return out


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_tell_the_transformer_s_config(name: str) -> None:
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**PUBLISHED[name])
    config = keys.transformer_config(shapes_of(model))
    assert config.pop("_class_name") == "CogVideoXTransformer3DModel"
    assert config == {key: model.config[key] for key in config}
    with torch.device("meta"):
        again = CogVideoXTransformer3DModel(**config)
    assert shapes_of(again) == shapes_of(model)
    assert again.config.sample_width == model.config.sample_width


def test_shapes_tell_the_vae_s_config() -> None:
    with torch.device("meta"):
        model = AutoencoderKLCogVideoX()
    config = keys.vae_config(shapes_of(model))
    assert config.pop("_class_name") == "AutoencoderKLCogVideoX"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()} == {
        key: tuple(model.config[key]) if isinstance(model.config[key], (list, tuple))
        else model.config[key] for key in config
    }  # fmt: skip


def test_a_few_names_spelled_out() -> None:
    named = {
        "time_embed.0.weight": "time_embedding.linear_1.weight",
        "mixins.final_layer.adaLN_modulation.1.bias": "norm_out.linear.bias",
        "mixins.adaln_layer.key_layernorm_list.7.weight": (
            "transformer_blocks.7.attn1.norm_k.weight"
        ),
        "transformer.layers.7.post_attention_layernorm.bias": (
            "transformer_blocks.7.norm2.norm.bias"
        ),
        "transformer.layers.0.mlp.dense_4h_to_h.weight": "transformer_blocks.0.ff.net.2.weight",
    }
    assert keys.transformer_to_diffusers(list(named)) == named
    assert keys.transformer_to_original(list(named.values())) == {v: k for k, v in named.items()}
    named = {
        "encoder.down.0.block.1.norm1.weight": "encoder.down_blocks.0.resnets.1.norm1.weight",
        "encoder.down.1.downsample.conv.bias": "encoder.down_blocks.1.downsamplers.0.conv.bias",
        "decoder.up.3.block.0.conv1.conv.weight": "decoder.up_blocks.0.resnets.0.conv1.conv.weight",
        "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.2.upsamplers.0.conv.bias",
        "decoder.up.0.block.0.nin_shortcut.weight": (
            "decoder.up_blocks.3.resnets.0.conv_shortcut.weight"
        ),
        "decoder.mid.block_2.norm2.conv_y.conv.weight": (
            "decoder.mid_block.resnets.1.norm2.conv_y.conv.weight"
        ),
        "encoder.conv_in.conv.bias": "encoder.conv_in.conv.bias",
    }
    assert keys.vae_to_diffusers(list(named)) == named
    assert keys.vae_to_original(list(named.values())) == {v: k for k, v in named.items()}


def test_vae_names_go_back_and_forth() -> None:
    with torch.device("meta"):
        wanted = list(shapes_of(AutoencoderKLCogVideoX()))
    original = keys.vae_to_original(wanted)
    assert not [name for name in original.values() if "block" in name and "resnets" in name]
    back = keys.vae_to_diffusers(list(original.values()))
    assert [back[original[name]] for name in wanted] == wanted


@pytest.mark.parametrize("layout", [keys.TRANSFORMER, keys.VAE], ids=["transformer", "vae"])
def test_unknown_and_finished_names_stay(layout: Any) -> None:
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**TINY) if layout is keys.TRANSFORMER else (
            AutoencoderKLCogVideoX(**TINY_VAE)
        )  # fmt: skip
    finished = {name: name for name in shapes_of(model)}
    assert layout.to_diffusers(list(finished)) == finished
    strange = ["", ".", "transformer.layers.x.weight", "decoder.up.x", "time_embed." + "9" * 5000]
    assert layout.to_diffusers(strange) == {name: name for name in strange}
    assert find_layout(finished, "here") is layout


def test_positions_that_can_be_computed_are_dropped() -> None:
    state = {"a": torch.zeros(1), "mixins.pos_embed.pos_embedding": torch.zeros(1, 5, 64)}
    assert list(keys.unpack_transformer(state)) == ["a"]
    stored = keys.unpack_transformer({**state, "mixins.pos_embed.freqs_cos": torch.zeros(1)})
    assert list(stored) == ["a", "patch_embed.pos_embedding"]
    with pytest.raises(CheckpointError, match=r"has shape \[10, 4\], not 3 parts"):
        keys.unpack_transformer(
            {"transformer.layers.0.attention.query_key_value.weight": torch.zeros(10, 4)}
        )


def test_the_authors_files_become_a_folder_that_both_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dit, vae = CogVideoXTransformer3DModel(**TINY), AutoencoderKLCogVideoX(**TINY_VAE)
    prefix = "model.diffusion_model."
    state = {prefix + name: tensor for name, tensor in packed(dit.state_dict()).items()}
    torch.save({"module": state, "iteration": 1}, tmp_path / "mp_rank_00_model_states.pt")
    pixels = keys.vae_to_original(list(vae.state_dict()))
    state = {pixels[name]: tensor for name, tensor in vae.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(1)}}, tmp_path / "3d-vae.pt")
    t5 = tmp_path / "t5-v1_1-xxl"
    T5EncoderModel(
        T5Config(vocab_size=9, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
                 feed_forward_proj="gated-gelu")
    ).save_pretrained(t5)  # fmt: skip
    save_tokenizer(build_tokenizer(["a", "red"]), t5)

    out = convert(
        tmp_path / "mp_rank_00_model_states.pt", tmp_path / "out", vae=tmp_path / "3d-vae.pt",
        text=t5, recipe="windows-5b",
    )  # fmt: skip
    folder = open_folder(out)
    assert folder.has_recipe and folder.stream.solver == "dpm"
    for name, theirs in (("transformer", dit), ("vae", vae)):
        ours = load_component(folder, name).state_dict()
        assert set(ours) == set(theirs.state_dict())
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.state_dict().items())
    assert sorted(p.name for p in (out / "tokenizer").iterdir()) == [
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    pipeline = CogVideoXPipeline.from_pretrained(out)
    assert pipeline.vae.config.scaling_factor == 0.7
    assert pipeline.scheduler.config.snr_shift_scale == 1.0
    assert type(pipeline.scheduler).__name__ == "CogVideoXDPMScheduler"
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXPipeline"


@pytest.mark.parametrize(
    ("name", "scheduler", "scale", "inverted"),
    [
        ("2B", "CogVideoXDDIMScheduler", 1.15258426, False),
        ("5B-I2V", "CogVideoXDPMScheduler", 0.7, False),
        ("1.5-5B-I2V", "CogVideoXDPMScheduler", 0.7, True),
    ],
)
def test_what_stands_beside_is_as_published(
    name: str, scheduler: str, scale: float, inverted: bool
) -> None:
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**PUBLISHED[name])
    beside = keys.transformer_pipeline(keys.transformer_config(shapes_of(model)))
    assert beside.scheduler["_class_name"] == scheduler
    assert beside.vae == {"scaling_factor": scale, "invert_scale_latents": inverted}
    assert ("Image" in beside.class_name) == name.endswith("I2V")
