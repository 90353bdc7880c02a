"""A model in fp8: which layers are, which road they take, what it costs, and who is refused."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.layers.linear_fp8 import LinearFP8
from livereel.engine.runners.torch import TorchRunner, pick_dtype

PROMPT = "a red circle moving right on a blue background"


def in_fp8(engine: Engine) -> dict[str, LinearFP8]:
    assert isinstance(engine.runner, TorchRunner)
    modules = engine.runner.modules["transformer"].named_modules()
    return {name: module for name, module in modules if isinstance(module, LinearFP8)}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", device="cpu", dtype="fp8")


def test_inner_blocks_are_in_fp8_but_for_what_is_read_once(engine: Engine) -> None:
    layers = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
    layers += ["attn2.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    found = in_fp8(engine)
    assert sorted(found) == sorted(f"blocks.{i}.{name}" for i in (1, 2) for name in layers)
    assert engine.dtype == torch.bfloat16
    assert isinstance(engine.runner, TorchRunner)
    kept = engine.runner.modules["transformer"].get_submodule("proj_out")
    assert isinstance(kept, nn.Linear) and kept.weight.dtype == torch.bfloat16


def test_a_stream_runs_through_them(engine: Engine) -> None:
    calls: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, layer in in_fp8(engine).items()
    ]
    ours = np.concatenate([chunk.frames for chunk in islice(engine.open(PROMPT, steps=1), 2)])
    for hook in hooks:
        hook.remove()
    assert set(calls) == set(in_fp8(engine))
    plain = Engine.load("demo", device="cpu", dtype="bfloat16").open(PROMPT, steps=1)
    wanted = np.concatenate([chunk.frames for chunk in islice(plain, 2)])
    assert 0 < np.abs(ours.astype(int) - wanted).mean() < 4


def test_layers_can_be_kept() -> None:
    kept = Engine.load("demo", device="cpu", dtype="fp8", keep_bf16=["blocks.1"])
    assert all(name.startswith("blocks.2.") for name in in_fp8(kept))
    with pytest.raises(InputError, match=r"no layer is named 'blocks\.9'"):
        Engine.load("demo", device="cpu", dtype="fp8", keep_bf16=["blocks.9"])
    with pytest.raises(InputError, match="keep_bf16 is for dtype 'fp8', not for 'auto'"):
        Engine.load("demo", device="cpu", keep_bf16=["blocks.1"])


def test_loras_are_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="takes no LoRAs: graphs, or fp8, hold its weights"):
        engine.load_lora("style.safetensors")


def test_a_gpu_without_fp8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ResourceError, match=r"wants a Hopper GPU.* cuda:1 is a NVIDIA A100"):
        pick_dtype("fp8", torch.device("cuda:1"))


def test_info_tells_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--dtype", "fp8"]) == 0
    told = capsys.readouterr().out
    assert "16 layers; latents of a first chunk " in told and "projections fp8" in told
