"""Which road is picked, and what is said of one that cannot be taken."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.checkpoint.folder import DEMO, open_folder
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.layers import road
from livereel.engine.layers.road import pick_road
from livereel.engine.models.wan.native_vae import NativeVAE
from livereel.engine.runners.roads import roads_of
from livereel.engine.runners.torch import TorchRunner

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "picked"),
    [
        (CPU, torch.float32, True, "native"),
        (CUDA, torch.bfloat16, True, "triton"),
        (CUDA, torch.float16, True, "triton"),
        (CUDA, torch.float32, True, "reference"),
        (CUDA, torch.bfloat16, False, "reference"),
    ],
)
def test_auto_is_the_fastest_that_there_is(
    device: torch.device, dtype: torch.dtype, installed: bool, picked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(road, "find_spec", lambda name: object() if installed else None)
    assert pick_road("auto", device, dtype) == picked


def test_a_road_that_cannot_be_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="road 'dirt' is unknown; wanted auto, reference"):
        pick_road("dirt", CPU, torch.float32)
    with pytest.raises(ResourceError, match="native road runs on the CPU; got cuda"):
        pick_road("native", CUDA, torch.bfloat16)
    monkeypatch.setattr(road, "INTERPRETED", False)
    with pytest.raises(ResourceError, match="runs on CUDA devices; got cpu"):
        pick_road("triton", CPU, torch.float32)
    monkeypatch.setattr(road, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="needs Triton, which is not installed"):
        pick_road("triton", CUDA, torch.bfloat16)
    assert pick_road("reference", CPU, torch.float32) == "reference"


def test_each_operation_s_road_is_told_beforehand() -> None:
    demo = open_folder(DEMO)
    triton = roads_of(demo, "triton", torch.bfloat16)
    assert triton["self-attention"] == triton["VAE convolutions"] == "triton"
    assert roads_of(demo, "reference", torch.float32)["self-attention"] == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_told_of_the_native_road_is_what_is_loaded(dtype: torch.dtype) -> None:
    demo = open_folder(DEMO)
    told = roads_of(demo, "native", dtype)
    runner = TorchRunner.load(demo, device=CPU, dtype=dtype, road="native")
    assert (told["self-attention"] == "native") == (runner.transformer.native() is not None)
    assert (told["VAE convolutions"] == "native") == isinstance(runner.vae, NativeVAE)
    assert told["VAE norms"] == "native"
