from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.checkpoint.save import new_folder, save_component, save_index
from livereel.engine.config import DEFAULT_SELF_FORCING
from livereel.engine.errors import InputError


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with new_folder(target) as draft:
        (draft / "a").write_text("1")
        assert not target.exists()
        assert draft.parent == target.parent
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["model"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "model") as draft:
        (draft / "a").write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []


def test_what_is_there_stays_unless_it_may_go(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(InputError, match="exists already"), new_folder(target):
        pass
    with pytest.raises(KeyError), new_folder(target, replace=True):
        raise KeyError
    assert os.listdir(target) == ["old"]
    with new_folder(target, replace=True) as draft:
        (draft / "new").touch()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


def test_an_empty_folder_may_be_filled_and_a_file_not(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with new_folder(tmp_path / "model") as draft:
        (draft / "a").touch()
    assert (tmp_path / "model" / "a").exists()
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "model" / "a"):
        pass


def test_a_place_that_cannot_be_written_is_one_sentence() -> None:
    wanted = "/proc/nowhere/model cannot be written"
    with pytest.raises(InputError, match=wanted), new_folder("/proc/nowhere/model"):
        pass


def test_the_index_opens_as_a_model(tmp_path: Path) -> None:
    save_index(tmp_path, {"vae": ("diffusers", "AutoencoderKLWan")}, stream=DEFAULT_SELF_FORCING)
    model = open_folder(tmp_path)
    assert model.classes == {"vae": "AutoencoderKLWan"}
    assert model.stream == DEFAULT_SELF_FORCING
    assert model.has_recipe
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "WanPipeline"


def test_strided_and_trainable_tensors_are_written(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_()
    save_component(tmp_path, "vae", {"a": 1}, {"x": tensor.T})
    with safe_open(str(tmp_path / "vae/diffusion_pytorch_model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("x").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_diffusers_reads_our_shards(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        text_dim=6,
        freq_dim=8,
        ffn_dim=8,
        num_layers=2,
        in_channels=2,
        out_channels=2,
    )
    config = {**model.config, "_class_name": "WanTransformer3DModel"}
    save_component(tmp_path, "transformer", config, model.state_dict(), shard_bytes=8000)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "transformer", local_files_only=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
