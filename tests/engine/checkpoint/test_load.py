from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.checkpoint.load import build, load_component, load_file
from livereel.engine.checkpoint.save import save_index
from livereel.engine.errors import CheckpointError
from livereel.engine.models.wan import keys

VAE: dict[str, Any] = {
    "base_dim": 8,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "z_dim": 16,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 2,
}


@pytest.fixture
def theirs() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(**VAE)


@pytest.fixture
def folder(tmp_path: Path, theirs: AutoencoderKLWan) -> Path:
    theirs.save_pretrained(tmp_path / "vae")
    save_index(tmp_path, {"vae": ("diffusers", "AutoencoderKLWan")})
    return tmp_path


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    state = ours.state_dict()
    assert set(state) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_folder_that_diffusers_saved(folder: Path, theirs: AutoencoderKLWan) -> None:
    ours = load_component(open_folder(folder), "vae")
    assert type(ours).__name__ == "WanVAE"
    assert_same(ours, theirs)


def test_dtype_is_taken(folder: Path) -> None:
    ours = load_component(open_folder(folder), "vae", dtype=torch.bfloat16)
    assert ours.get_parameter("quant_conv.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("original", [True, False])
def test_a_single_file_in_either_spelling(
    tmp_path: Path, theirs: AutoencoderKLWan, original: bool
) -> None:
    state = theirs.state_dict()
    names = keys.vae_to_original(list(state)) if original else {name: name for name in state}
    path = tmp_path / "vae.safetensors"
    save_file({names[name]: tensor for name, tensor in state.items()}, path)
    assert_same(load_file(path), theirs)


def test_an_original_layout_inside_a_folder_loads_too(
    folder: Path, theirs: AutoencoderKLWan
) -> None:
    state = theirs.state_dict()
    names = keys.vae_to_original(list(state))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({names[name]: tensor for name, tensor in state.items()}, path)
    assert_same(load_component(open_folder(folder), "vae"), theirs)


def test_a_file_of_something_else_names_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_down.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors.*'lora_down\.weight'"):
        load_file(path)


@pytest.mark.parametrize(
    "change",
    [
        {"base_dim": "wide"},
        {"dim_mult": 7},
        {"num_res_blocks": 10**9},
        {"num_res_blocks": None},
        {"base_dim": -4},
        {"base_dim": 2**62},
        {"temperal_downsample": [True, True]},
        {"is_residual": True},
    ],
)
def test_a_config_that_cannot_be_built_names_its_file(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r"vae/config\.json"):
        load_component(open_folder(folder), "vae")


def test_a_config_of_another_width_is_a_shape_error(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_dim": 16}))
    with pytest.raises(CheckpointError, match=r"instead of .* and \d+ more"):
        load_component(open_folder(folder), "vae")


def test_build_leaves_weights_on_meta() -> None:
    module = build("AutoencoderKLWan", VAE, "here")
    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_text_encoders_file_loads_with_its_embedding_under_one_name(tmp_path: Path) -> None:
    from transformers import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config(vocab_size=9, d_model=8, d_kv=2, d_ff=12, num_heads=4))
    state = {k: v for k, v in model.state_dict().items() if k != "shared.weight"}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    assert_same(load_file(path), model)
