"""Exported graphs in onnxruntime: the frames of the torch runner, and all that a session can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from livereel.engine import memory
from livereel.engine.checkpoint.folder import DEMO
from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError, ResourceError
from livereel.engine.package import open_package
from livereel.engine.runners import onnx
from livereel.engine.session import Session

if TYPE_CHECKING:
    from livereel.engine.types import Frames

PROMPTS = ("a red ball moving left", "a blue ball moving left")


@pytest.fixture(scope="module")
def package(exported: Path) -> Engine:
    return Engine.load(exported)


def frames(session: Iterator[object], chunks: int) -> Frames:
    return np.concatenate([chunk.frames for chunk in islice(session, chunks)])


def apart(a: Frames, b: Frames) -> int:
    """The largest difference of two clips, in steps of 255 to white."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int16) - b).max())


def changed(session: Session, chunks: int) -> Frames:
    """A stream whose prompt, seed and number of passes change halfway."""
    first = frames(session, chunks // 2)
    session.update(prompt=PROMPTS[1], seed=9, steps=2, recache=True)
    return np.concatenate([first, frames(session, chunks - chunks // 2)])


def test_streams_the_frames_of_the_torch_runner(package: Engine, engine: Engine) -> None:
    ours, theirs = (one.open(PROMPTS[0], seed=4) for one in (package, engine))
    assert apart(changed(ours, 8), changed(theirs, 8)) <= 1


def test_starts_from_a_picture(package: Engine, engine: Engine) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    ours, theirs = (one.open(PROMPTS[0], image=picture) for one in (package, engine))
    assert apart(frames(ours, 3), frames(theirs, 3)) <= 1


def test_a_snapshot_goes_on_bitwise_and_in_torch_as_well(package: Engine, engine: Engine) -> None:
    session = package.open(PROMPTS[0], seed=1)
    frames(session, 4)
    exact, light = session.snapshot(), session.snapshot(light=True)
    follows = frames(session, 2)
    np.testing.assert_array_equal(frames(package.restore(exact), 2), follows)
    assert apart(frames(engine.restore(exact), 2), follows) <= 1
    near, close = (frames(one.restore(light), 2) for one in (package, engine))
    assert apart(near, close) <= 1


def test_encodes_and_decodes_clips_of_any_length(package: Engine, engine: Engine) -> None:
    clip = torch.rand(1, 3, 13, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = engine.encode(clip)
    torch.testing.assert_close(package.encode(clip), latents, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        package.decode(latents[:, :, :3]), engine.decode(latents[:, :, :3]), atol=1e-3, rtol=0
    )
    with pytest.raises(InputError, match=r"it wants 1 \+ a multiple of 4"):
        package.encode(clip[:, :, :4])
    with pytest.raises(InputError, match="takes latents of shape"):
        package.decode(latents[..., :2])


def test_what_a_package_cannot_be_asked_for_is_told(package: Engine, exported: Path) -> None:
    with pytest.raises(InputError, match=r"makes pictures of 48x32, not of 64x32"):
        package.open(PROMPTS[0], width=64)
    with pytest.raises(InputError, match="was exported in float32, not in bfloat16"):
        Engine.load(exported, dtype="bfloat16")
    with pytest.raises(InputError, match="provider 'tpu' is unknown"):
        Engine.load(exported, provider="tpu")
    with pytest.raises(InputError, match="does not run on device 'cpu'"):
        Engine.load(exported, device="cpu", provider="cuda")
    with pytest.raises(InputError, match="for ONNX packages"):
        Engine.load("demo", provider="cpu")


def test_a_gpu_without_its_provider_is_told(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx, "pick_device", lambda name: torch.device(name.replace("auto", "cuda"))
    )
    with pytest.raises(
        ResourceError, match="no CUDAExecutionProvider: pip install onnxruntime-gpu"
    ):
        Engine.load(exported, provider="cuda")
    assert Engine.load(exported).runner.device.type == "cpu"


def test_a_missing_onnxruntime_is_told(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ResourceError, match="pip install onnxruntime"):
        Engine.load(exported)


def test_generate_takes_a_package(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "clip.gif")
    options = ["--model", str(exported), "--frames", "5"]
    assert main(["generate", PROMPTS[0], "-o", out, *options]) == 0
    assert "5 frames of 48x32" in capsys.readouterr().out
    assert main(["generate", PROMPTS[0], "-o", out, *options, "--size", "64x32"]) == 2
    assert "this package makes 48x32" in capsys.readouterr().err
    assert main(["generate", PROMPTS[0], "-o", out, *options, "--provider", "cpu"]) == 0
    assert main(["generate", PROMPTS[0], "-o", out, "--provider", "cuda"]) == 2
    assert "provider 'cuda' is for ONNX packages; demo is a model" in capsys.readouterr().err


def test_its_memory_has_weights_in_each_graph_that_reads_them(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = pytest.importorskip("onnx").load
    package = open_package(exported)
    graphs = [load(path, load_external_data=False) for path in exported.glob("*.onnx")]
    entries = [x for g in graphs for t in g.graph.initializer for x in t.external_data]
    read = sum(int(x.value) for x in entries if x.key == "length")
    files = {name: info.bytes for name, info in package.manifest.files.items()}
    stored = sum(size for name, size in files.items() if name.endswith(".weights"))
    told = memory.estimate(package.folder).weights
    assert told == read + sum(files.values()) - stored
    assert read > stored
    assert main(["info", str(exported), "--dtype", "bfloat16"]) == 0
    assert ", dtype float32: weights" in capsys.readouterr().out
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "manifest.json").write_bytes((exported / "manifest.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"denoise.*onnx cannot be read"):
        memory.estimate(replace(package.folder, path=bare))


@pytest.mark.slow
def test_the_demo_equals_torch_for_fifty_chunks(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert main(["export", "-o", str(out)]) == 0
    prompt = "a large orange circle moving right on a gray background"
    engines = Engine.load(out), Engine.load(DEMO, device="cpu", dtype="float32")
    ours, theirs = (engine.open(prompt, seed=2) for engine in engines)
    for chunk, wanted in islice(zip(ours, theirs, strict=True), 50):
        assert apart(chunk.frames, wanted.frames) <= 2, chunk.index
        if chunk.index == 24:
            for session in (ours, theirs):
                session.update(prompt="a small blue star moving up on a white background")
