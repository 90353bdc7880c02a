"""LoRA files in the layouts they come in, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from livereel.engine.checkpoint.lora import read_lora
from livereel.engine.errors import CheckpointError
from livereel.engine.models.wan import keys
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig

LAYERS = {"blocks.0.attn1.to_q": 24, "blocks.1.ffn.net.2": 32}  # and their inputs
MAPS: dict[str, Any] = dict(
    to_diffusers=keys.transformer_to_diffusers, to_original=keys.transformer_to_original
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def dit() -> WanTransformer:
    return WanTransformer(
        WanTransformerConfig(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=12, freq_dim=32, ffn_dim=32, num_layers=2,
        )
    )  # fmt: skip


def pairs(down: str, up: str, rename: Any = lambda name: name, rank: int = 2) -> Tensors:
    torch.manual_seed(0)
    tensors = {}
    for name, inputs in LAYERS.items():
        tensors[f"{rename(name)}.{down}.weight"] = torch.randn(rank, inputs)
        tensors[f"{rename(name)}.{up}.weight"] = torch.randn(24, rank)
    return tensors


def original(name: str) -> str:
    return keys.transformer_to_original([f"{name}.weight"])[f"{name}.weight"].removesuffix(
        ".weight"
    )


NAMES: dict[str, Any] = {
    "diffusers": ("lora_A", "lora_B", lambda name: f"transformer.{name}"),
    "peft": ("lora_A", "lora_B", lambda name: f"base_model.model.{name}"),
    "peft in training": ("lora_A.default", "lora_B.default", lambda name: name),
    "wan": ("lora_down", "lora_up", lambda name: f"diffusion_model.{original(name)}"),
    "underscores": ("lora_down", "lora_up", lambda n: "lora_unet_" + original(n).replace(".", "_")),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_names_of_all_kinds_are_the_module_s(
    tmp_path: Path, dit: WanTransformer, kind: str, alpha: float | None
) -> None:
    down, up, rename = NAMES[kind]
    tensors = pairs(down, up, rename)
    if alpha is not None:
        tensors |= {f"{rename(name)}.alpha": torch.tensor(alpha) for name in LAYERS}
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", dit, **MAPS)
    plain = pairs("lora_A", "lora_B")
    assert set(lora) == set(LAYERS)
    for name, layer in lora.items():
        product = plain[f"{name}.lora_B.weight"] @ plain[f"{name}.lora_A.weight"]
        scale = 1.0 if alpha is None else alpha / 2
        torch.testing.assert_close(layer.change(torch.device("cpu")), product * scale)


@pytest.mark.parametrize(
    ("config", "scale"),
    [({"lora_alpha": 8}, 4.0), ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5), ({}, 1.0)],
)
def test_a_config_says_the_scale(
    tmp_path: Path, dit: WanTransformer, config: dict[str, Any], scale: float
) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(pairs("lora_A", "lora_B"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, **config}))
    assert read_lora(folder, dit)["blocks.0.attn1.to_q"].scale == pytest.approx(scale)
    described = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    file = tmp_path / "file.safetensors"
    save_file(pairs("lora_A", "lora_B"), file, {"lora_adapter_metadata": described})
    assert read_lora(file, dit)["blocks.0.attn1.to_q"].scale == pytest.approx(scale)


def half(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "attn1.to_q.lora_B" not in name}


GOOD = pairs("lora_A", "lora_B")
NAME = "blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (half(GOOD), "half a pair"),
        (GOOD | {"blocks.0.attn1.to_q.diff_b": torch.ones(2)}, "no part of a LoRA"),
        (GOOD | {"blocks.0.attn1.to_q.lora_magnitude_vector": torch.ones(2)}, "no part of a LoRA"),
        (GOOD | {"blocks.7.attn1.to_q.lora_A.weight": torch.ones(2, 24)}, "no linear layer"),
        (GOOD | {f"{NAME}.lora_A.weight": torch.ones(2, 25)}, "times .2, 25. for blocks.0"),
        (GOOD | {f"{NAME}.lora_A.weight": torch.ones(3, 24)}, "which is .24, 24."),
        (GOOD | {f"{NAME}.alpha": torch.tensor(float("nan"))}, "a scale of nan"),
        (GOOD | {f"transformer.{NAME}.lora_A.weight": torch.ones(2, 24)}, "twice"),
        ({"x.alpha": torch.ones(1)}, "no linear layer"),
    ],
)
def test_what_is_no_lora_of_this_module_is_refused(
    tmp_path: Path, dit: WanTransformer, tensors: Tensors, sentence: str
) -> None:
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        read_lora(tmp_path / "lora.safetensors", dit, **MAPS)


def test_files_that_cannot_be_read_are_told(tmp_path: Path, dit: WanTransformer) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" * 100)
    (tmp_path / "pickle.pt").write_bytes(b"")
    for name, sentence in (
        ("broken.safetensors", "not a whole safetensors file"), ("pickle.pt", "another kind"),
        ("none.safetensors", "does not exist"), ("", "holds none of"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=sentence):
            read_lora(tmp_path / name, dit)
    save_file(GOOD, tmp_path / "lora.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"alpha_pattern": {"a": 1}}')
    with pytest.raises(CheckpointError, match="alpha_pattern is not supported"):
        read_lora(tmp_path / "lora.safetensors", dit)
