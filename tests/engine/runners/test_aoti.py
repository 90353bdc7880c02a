from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, LiveReelError, ResourceError
from livereel.engine.package import finish, open_package
from livereel.engine.runners import aoti

if TYPE_CHECKING:
    from livereel.engine.types import Frames

# The package is compiled in the first test that asks for it.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def copy(aoti_package: Path, tmp_path: Path) -> Path:
    """A package to spoil."""
    return shutil.copytree(aoti_package, tmp_path / "package")


def stream(engine: Engine, chunks: int) -> list[Frames]:
    """Frames by chunk; the prompt changes in the middle."""
    frames = []
    with engine.open("a red ball", seed=3) as session:
        for chunk in session:
            frames.append(chunk.frames)
            if chunk.index == chunks // 2:
                session.update(prompt="a blue ball moving left")
            if chunk.index == chunks - 1:
                return frames
    raise AssertionError


def test_streams_as_torch_does(aoti_package: Path, guided_folder: Path) -> None:
    engine = Engine.load(guided_folder, device="cpu", dtype="float32")
    loaded = Engine.load(aoti_package, device="cpu")
    ours, theirs = (np.concatenate(stream(e, 12)).astype(int) for e in (loaded, engine))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1


def test_snapshots_go_on_bitwise(aoti_package: Path) -> None:
    loaded = Engine.load(aoti_package, device="cpu")
    with loaded.open("a red ball", seed=3) as session:
        for _ in range(4):
            next(session)
        saved = session.snapshot()
        wanted = [next(session).frames for _ in range(3)]
    with loaded.restore(saved) as session:
        for frames in wanted:
            np.testing.assert_array_equal(next(session).frames, frames)


def test_weights_are_kept_once_and_nothing_is_left_unpacked(
    aoti_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded = aoti.load(open_package(aoti_package), "cpu")
    assert list(tmp_path.iterdir()) == []
    first, later = (loaded.denoiser.graphs[name]._weights for name in ("denoise_first", "denoise"))
    name = "model.proj_out.weight"
    assert later[name].data_ptr() == first[f"step.{name}"].data_ptr()
    assert later[name].data_ptr() % 64 == 0


def change(package: Path, **values: Any) -> None:
    """Write other values into a manifest."""
    file = package / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"versions": {"torch": "1.0.0"}}, "compiled for torch 1.0.0"),
        ({"chips": ["x86_64-avx1024"]}, "x86_64-avx1024"),
        ({"chips": ["sm_89"]}, "compiled for a GPU, sm_89; the device asked for is cpu"),
    ],
)
def test_refuses_what_was_made_for_another_machine(
    copy: Path, values: dict[str, Any], told: str
) -> None:
    change(copy, **values)
    with pytest.raises(ResourceError, match=told):
        Engine.load(copy, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands for machines without a GPU")
def test_tells_which_gpu_is_wanted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(copy, chips=["sm_89"])
    with pytest.raises(ResourceError, match="for a GPU, sm_89; torch sees none here"):
        Engine.load(copy)
    monkeypatch.setattr(aoti, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ResourceError, match="compiled for sm_89; this GPU is sm_90: export it"):
        Engine.load(copy, device="cuda")


def test_refuses_other_devices(aoti_package: Path) -> None:
    with pytest.raises(ResourceError, match="CPU"):
        aoti.load(open_package(aoti_package), "cuda")


@pytest.mark.parametrize("file", ["transformer/denoise.pt2", "transformer/weights.safetensors"])
def test_refuses_damaged_files(copy: Path, file: str) -> None:
    manifest = open_package(copy).manifest
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[:-100])
    with pytest.raises(CheckpointError):
        Engine.load(copy, device="cpu")
    # Even where the manifest says that it must be so.
    (copy / "manifest.json").unlink()
    finish(copy, manifest)
    with pytest.raises(LiveReelError):
        Engine.load(copy, device="cpu")


def test_names_the_weight_that_is_missing(copy: Path) -> None:
    manifest = open_package(copy).manifest
    shutil.copy(copy / "vae" / aoti.WEIGHTS, copy / "transformer" / aoti.WEIGHTS)
    (copy / "manifest.json").unlink()
    finish(copy, manifest)
    with pytest.raises(CheckpointError, match=r"lacks \S+ of denoise"):
        Engine.load(copy, device="cpu")


def test_a_gpu_s_snapshots_are_of_their_own_layout(aoti_package: Path) -> None:
    loaded = aoti.load(open_package(aoti_package), "cpu")
    assert loaded.layout == "torch"
    gpu = replace(loaded.manifest, chips=("sm_90",), dtype="bfloat16")
    assert replace(loaded, manifest=gpu).layout == "torch, fused"
    assert replace(loaded, manifest=replace(gpu, dtype="float32")).layout == "torch"


def test_chips_are_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset(["avx2", "fma", "bmi1", "bmi2"])
    monkeypatch.setattr(aoti.machine, "cpu_flags", lambda: flags)
    assert aoti.runs_here("any")
    assert aoti.runs_here("x86_64-avx2")
    assert not aoti.runs_here("x86_64-avx512")
    assert not aoti.runs_here("x86_64-avx2-avx512_vnni")
    assert not aoti.runs_here("aarch64-avx2")
