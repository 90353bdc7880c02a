"""The tower of Wan's own file, packed by its definition, through `livereel convert`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from livereel.engine.checkpoint.convert import convert
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.errors import CheckpointError
from livereel.engine.models.clip import keys
from livereel.engine.models.clip.vision import ImageEncoder
from livereel.engine.models.wan.keys import TRANSFORMER

FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
State = dict[str, torch.Tensor]


def tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=160, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    return CLIPVisionModel(config).eval()


def packed(model: CLIPVisionModel) -> State:
    """As `XLMRobertaCLIP` of the Wan repository has it, the other side's weights left small."""
    state = {name.removeprefix("vision_model."): x for name, x in model.state_dict().items()}
    out = {
        "visual.cls_embedding": state.pop("embeddings.class_embedding").view(1, 1, -1),
        "visual.pos_embedding": state.pop("embeddings.position_embedding.weight").unsqueeze(0),
        "visual.patch_embedding.weight": state.pop("embeddings.patch_embedding.weight"),
        "visual.head": torch.zeros(160, 8),
        "textual.token_embedding.weight": torch.zeros(4, 8),
        "log_scale": torch.zeros(()),
    }
    for leaf in ("weight", "bias"):
        out[f"visual.pre_norm.{leaf}"] = state.pop(f"pre_layrnorm.{leaf}")
        out[f"visual.post_norm.{leaf}"] = state.pop(f"post_layernorm.{leaf}")
        for i in range(3):
            theirs, ours = f"encoder.layers.{i}", f"visual.transformer.{i}"
            parts = [state.pop(f"{theirs}.self_attn.{x}_proj.{leaf}") for x in "qkv"]
            out[f"{ours}.attn.to_qkv.{leaf}"] = torch.cat(parts)
            out[f"{ours}.attn.proj.{leaf}"] = state.pop(f"{theirs}.self_attn.out_proj.{leaf}")
            for old, new in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
                             ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2")):  # fmt: skip
                out[f"{ours}.{new}.{leaf}"] = state.pop(f"{theirs}.{old}.{leaf}")
    assert not state
    return out


def test_wans_own_folder_brings_its_image_encoder(tmp_path: Path) -> None:
    model, source = tower(), tmp_path / "wan"
    dit = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=1, image_dim=160, added_kv_proj_dim=24,
    )  # fmt: skip
    names = TRANSFORMER.to_original(list(dit.state_dict()))
    source.mkdir()
    save_file({names[k]: v for k, v in dit.state_dict().items()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"num_heads": 2}))
    torch.save(packed(model), source / FILE)
    folder = open_folder(convert(source, tmp_path / "out"))
    assert folder.classes["image_encoder"] == "CLIPVisionModel"
    loaded = CLIPVisionModel.from_pretrained(folder.path / "image_encoder").eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ours = ImageEncoder.load(folder, device="cpu", dtype=torch.float32)
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        values = ours.preprocessing(picture).unsqueeze(0)
        expected = model(values, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours.encode([picture]), expected, rtol=1e-4, atol=1e-4)


def test_names_go_there_and_back_but_for_what_is_packed() -> None:
    names = [name for name in packed(tower()) if name.endswith(("weight", "bias"))]
    names = [name for name in names if "to_qkv" not in name and name.startswith("visual.")]
    there = keys.to_transformers(names)
    assert keys.to_original(list(there.values())) == {new: old for old, new in there.items()}
    assert keys.to_transformers(list(there.values())) == {new: new for new in there.values()}
    assert keys.TOWER.matches(list(packed(tower()))) and not keys.TOWER.matches(names)


def test_what_is_no_tower_of_clip_s_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not three projections"):
        keys.unpack({"visual.transformer.0.attn.to_qkv.weight": torch.zeros(4, 2)})
    with pytest.raises(CheckpointError, match="lacks the embeddings"):
        keys.config({})
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (160, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (6, 160),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (64, 160),
    }
    with pytest.raises(CheckpointError, match="6 places and width 160"):
        keys.config(shapes)
