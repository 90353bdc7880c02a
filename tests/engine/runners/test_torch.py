"""Devices, dtypes, and parts that belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError, ResourceError
from livereel.engine.runners.torch import TorchRunner, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_auto_is_resolved() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert pick_dtype("float16", CPU) == torch.float16


def test_devices_that_are_not_there_are_named() -> None:
    with pytest.raises(InputError, match="device 'meta' is not supported"):
        pick_device("meta")
    with pytest.raises(ResourceError, match=r"device 'cuda:99' was asked for; [0-9]+ GPUs found"):
        pick_device("cuda:99")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 6)])
@torch.inference_mode()
def test_cache_shapes_are_those_of_the_decoder(engine: Engine, size: tuple[int, int]) -> None:
    runner = engine.runner
    latents = torch.zeros(1, runner.vae.channels, 3, *size)
    shapes = [tuple(cache.shape) for cache in runner.decode(latents)[1]]
    assert runner.cache_shapes(*size) == shapes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"in_channels": 5, "out_channels": 5}, "wants 5 latent channels from the VAE, .* gives 4"),
        ({"text_dim": 13}, "wants 13 numbers a token from the text encoder, which gives 12"),
    ],
)
def test_parts_of_different_models_are_refused(
    tiny_folder: Path, tmp_path: Path, change: dict[str, int], sentence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = WanTransformer3DModel.load_config(folder / "transformer") | change
    WanTransformer3DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(CheckpointError, match=sentence):
        TorchRunner.load(open_folder(folder), device=CPU, dtype=torch.float32)
