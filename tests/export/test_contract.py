"""The graphs' documented contract: the loop in the docstring streams LiveReel's own frames."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import livereel.export
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.engine import Engine
from livereel.engine.manifest import MANIFEST
from livereel.engine.package import read_manifest
from livereel.engine.sampling.noise import normal
from livereel.export.package import plan_export
from livereel.export.steps import Step

PROMPT, SEED, CHUNKS = "a red ball moving left", 5, 4


@pytest.fixture(scope="module")
def led_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model with a DiT of one layer that follows control."""
    from diffusers import WanTransformer3DModel

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("led") / "model")
    recipe = folder / "livereel.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "control_channels": 4}))
    torch.manual_seed(3)
    config = WanTransformer3DModel.load_config(folder / "transformer")
    dit = WanTransformer3DModel.from_config(config, num_layers=1, in_channels=8)
    dit.save_pretrained(folder / "transformer")
    return folder


def stand_in(exported: Path, steps: dict[str, Step]) -> SimpleNamespace:
    """onnxruntime on the package's graphs, but for `steps`, which torch runs: quicker than to
    export them."""

    def load(path: str) -> Any:
        name = Path(path).stem
        if name not in steps:
            return onnxruntime.InferenceSession(exported / f"{name}.onnx")
        step = steps[name]

        def run(_: None, given: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
            with torch.inference_mode():
                made = step.module(*(torch.from_numpy(given[name]) for name in step.inputs))
            return [x.numpy() for x in made]

        return SimpleNamespace(run=run)

    return SimpleNamespace(InferenceSession=load)


def example() -> str:
    """The docstring's code: its last block of indented lines."""
    text = livereel.export.__doc__ or ""
    start, end = text.index("    import json"), text.index("`text` is what")
    return textwrap.dedent(text[start:end])


def check_loop(package: Path, engine: Engine) -> None:
    shown: list[np.ndarray[Any, Any]] = []
    names = {
        "package": str(package),
        "chunks": CHUNKS,
        "text": engine.runner.encode_text(PROMPT, 8).numpy(),
        "noise": lambda chunk, step, shape: normal(SEED, chunk, step, shape).numpy(),
        "show": shown.append,
    }
    exec(example(), names)
    frames = np.concatenate(shown, axis=2)
    wanted = [chunk.frames for chunk in islice(engine.open(PROMPT, seed=SEED), CHUNKS)]
    got = ((frames[0].transpose(1, 2, 3, 0) + 1) * 127.5).round()
    assert np.abs(got - np.concatenate(wanted)).max() <= 1


def test_the_documented_loop_streams_the_same_frames(exported: Path, engine: Engine) -> None:
    check_loop(exported, engine)


def test_it_leads_a_model_that_follows_control_nowhere(
    exported: Path, led_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_export(open_folder(led_folder))
    steps = dict(plan.dit())
    values = {**read_manifest(exported).to_dict(), "stream": plan.stream.to_dict()}
    for name, step in steps.items():
        assert "latent" not in step.inputs or step.inputs["latent"].shape[1] == 4 + 4
        values["graphs"][name]["inputs"] = [
            {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}
            for name, x in step.inputs.items()
        ]
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in(exported, steps))
    check_loop(tmp_path, Engine.load(led_folder, device="cpu", dtype="float32"))


def test_the_graphs_are_those_documented(exported: Path) -> None:
    text = livereel.export.__doc__ or ""
    manifest = read_manifest(exported)
    listed = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert set(manifest.graphs) <= listed
    assert [x.name for x in manifest.graphs["denoise"].inputs] == [
        "latent", "timestep", "text_k", "text_v", "past_k", "past_v", "positions",
    ]  # fmt: skip
