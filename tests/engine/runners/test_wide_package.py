"""An aoti package for the GPU at hand, exported, loaded and streamed beside torch's own road.

This has not run on a GPU yet. Two graphs, a pass and a call of the decoder, are compiled, which
takes time; torch runs the others, as they went to the compiler, on the GPU as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.engine.manifest import Graph
from livereel.engine.runners import aoti as runner
from livereel.export import aoti as writer
from livereel.export.steps import Step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(70)]

COMPILED = ("denoise", "vae_decode")
CHUNKS = 6
_SHALLOW_VAE = {
    "dim_mult": [1, 1], "temperal_downsample": [True], "scale_factor_spatial": 4,
    "scale_factor_temporal": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def wide_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model with heads that Triton's kernels take, of one layer, and a VAE of one size
    less."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("wide") / "model")
    for kind, part, changed in (
        (WanTransformer3DModel, "transformer", {"num_layers": 1, "attention_head_dim": 64}),
        (AutoencoderKLWan, "vae", _SHALLOW_VAE),
    ):
        config = kind.load_config(folder / part)
        shutil.rmtree(folder / part)
        torch.manual_seed(7)
        kind.from_config(config, **changed).save_pretrained(folder / part)
    return folder


class Eager:
    """A step that torch runs on the GPU."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        module = self.step.module.to("cuda")
        with torch.no_grad():
            made = module(*(inputs[name] for name in self.step.inputs))
        made = (made,) if isinstance(made, Tensor) else made
        return dict(zip(self.step.outputs, made, strict=True))


class Partly(writer.AotiWriter):
    """Compiles the two, and notes the others down."""

    eager: dict[str, Eager]

    def write(self, name: str, step: Step) -> Graph:
        """An empty file stands for what is not compiled."""
        if name in COMPILED:
            return super().write(name, step)
        self.eager[name] = Eager(step)
        made = self.eager[name]({key: x.cuda() for key, x in step.inputs.items()})
        file = self._folder / step.weights / f"{name}.pt2"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        return Graph(
            file=f"{step.weights}/{name}.pt2",
            inputs=tuple(writer._spec(key, x) for key, x in step.inputs.items()),
            outputs=tuple(writer._spec(key, x) for key, x in made.items()),
            state=step.state,
        )


def frames(engine: Engine) -> Any:
    chunks = list(islice(engine.open("a red ball", seed=3), CHUNKS))
    return np.concatenate([chunk.frames for chunk in chunks]).astype(int)


def test_streams_as_torch_does_by_our_kernels(
    wide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    eager: dict[str, Eager] = {}
    compiled = runner.AotiGraph

    def graph(file: Path, *rest: Any) -> Any:
        return eager[file.stem] if file.stem in eager else compiled(file, *rest)

    monkeypatch.setattr(Partly, "eager", eager, raising=False)
    monkeypatch.setattr(writer, "AotiWriter", Partly)
    monkeypatch.setattr(runner, "AotiGraph", graph)
    out, chip = tmp_path / "package", runner.gpu_chip(torch.device("cuda", 0))
    options = ["--format", "aoti", "--dtype", "bfloat16", "--target", chip, "-o", str(out)]
    with config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        assert main(["export", "--model", str(wide_folder), *options]) == 0
    assert json.loads((out / "manifest.json").read_text())["chips"] == [chip]

    expected = frames(Engine.load(wide_folder, device="cuda", dtype="bfloat16"))
    engine = Engine.load(out)
    assert engine.runner.device.type == "cuda"
    frames(engine)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        ours = frames(engine)
    assert ours.shape == expected.shape and np.ptp(ours) > 50
    assert np.abs(ours - expected).mean() < 4
    ran = {event.name for event in seen.events()}
    for kernel in ("qk_norm_rope", "chunk_attention", "residual_norm", "causal_conv3d"):
        assert any(kernel in name for name in ran), (kernel, ran)
