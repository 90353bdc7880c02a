"""A model that streams over windows of past latents, its VAE called in chunks: CogVideoX."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.engine.package import open_package
from livereel.engine.runners.graph_dits import GraphClip
from livereel.engine.sampling.windowed import Windowed
from livereel.export import lint
from livereel.export.onnx import OnnxWriter
from livereel.export.package import plan_export
from livereel.export.steps import vae_calls

if TYPE_CHECKING:
    from livereel.engine.types import Frames

PROMPTS = ("a red ball moving left", "a blue ball")


def test_the_dit_s_graphs_are_torch_s(windowed_folder: Path, tmp_path: Path) -> None:
    plan = plan_export(open_folder(windowed_folder))
    assert (plan.latent.past, plan.latent.vae_chunk, plan.latent.std) == (3, 2, (1 / 0.7,) * 4)
    steps = dict(plan.dit())
    assert list(steps) == ["denoise_first", "denoise"]
    writer = OnnxWriter(tmp_path)
    graphs = {name: writer.write(name, step) for name, step in steps.items()}
    assert not [fault for graph in graphs.values() for fault in lint.structure(tmp_path, graph)]
    loaded = {name: writer.load(graph) for name, graph in graphs.items()}
    found = lint.errors(plan, "transformer", steps, loaded)
    assert set(found) == {("denoise_first", "flow"), ("denoise", "flow")}
    assert max(found.values()) <= 1e-4


def test_the_vae_has_graphs_for_every_length_that_a_stream_may_want(windowed_folder: Path) -> None:
    plan = plan_export(open_folder(windowed_folder))
    calls = vae_calls(plan.stream, plan.latent)
    assert calls == {
        "vae_decode_first": {
            "vae_decode_first_2": 2, "vae_decode_first_3": 3, "vae_decode_first": 1,
        },
        "vae_decode": {"vae_decode": 2},
        "vae_encode_first": {
            "vae_encode_first_3": 3, "vae_encode_first_5": 5, "vae_encode_first_7": 7,
            "vae_encode_first": 1,
        },
        "vae_encode": {"vae_encode": 4},
    }  # fmt: skip
    larger = replace(plan.stream, chunk_latents=5, first_chunk_latents=5, window=9)
    calls = vae_calls(larger, plan.latent)
    assert calls["vae_decode_first"]["vae_decode_first"] == 3
    assert calls["vae_decode"] == {"vae_decode_3": 3, "vae_decode": 2}


@pytest.fixture(scope="module")
def engines(
    windowed_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Engine, Engine]:
    """The package on onnxruntime, and torch."""
    out = tmp_path_factory.mktemp("windowed_package") / "package"
    assert main(["export", "--model", str(windowed_folder), "-o", str(out)]) == 0
    return Engine.load(out), Engine.load(windowed_folder, device="cpu", dtype="float32")


def frames(session: Iterator[object], chunks: int) -> Frames:
    return np.concatenate([chunk.frames for chunk in islice(session, chunks)])


def apart(a: Frames, b: Frames) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int16) - b).max())


@pytest.mark.slow
def test_a_stream_is_torch_s(engines: tuple[Engine, Engine]) -> None:
    runner = engines[0].runner
    assert isinstance(runner.denoiser, Windowed)
    assert isinstance(runner.transformer, GraphClip)
    ours, theirs = (engine.open(PROMPTS[0], seed=3) for engine in engines)
    for index in range(8):
        assert apart(next(ours).frames, next(theirs).frames) <= 1, index
        if index == 4:
            for session in (ours, theirs):
                session.update(prompt=PROMPTS[1], seed=9, steps=2, recache=True)


@pytest.mark.slow
@pytest.mark.parametrize("given", [1, 3, 5, 7, 9, 11])
def test_a_stream_goes_on_from_a_clip_as_in_torch(
    engines: tuple[Engine, Engine], given: int
) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (given, 8, 16, 3), dtype=np.uint8)
    ours, theirs = (frames(engine.open(PROMPTS[0], clip=clip), 5) for engine in engines)
    assert apart(ours, theirs) <= 1


@pytest.mark.slow
def test_a_stream_is_fed_and_saved_as_in_torch(engines: tuple[Engine, Engine]) -> None:
    video = np.random.default_rng(1).integers(0, 255, (13, 8, 16, 3), dtype=np.uint8)
    fed = [
        np.concatenate(
            [
                chunk.frames
                for chunk in engine.open(PROMPTS[0], strength=0.6, frames=13).through(video)
            ]
        )
        for engine in engines
    ]
    assert apart(*fed) <= 1
    session = engines[0].open(PROMPTS[0], seed=1)
    frames(session, 4)
    exact, light = session.snapshot(), session.snapshot(light=True)
    follows = frames(session, 2)
    np.testing.assert_array_equal(frames(engines[0].restore(exact), 2), follows)
    assert apart(frames(engines[1].restore(exact), 2), follows) <= 1
    ours, theirs = (frames(engine.restore(light), 2) for engine in engines)
    assert apart(ours, theirs) <= 1


@pytest.mark.slow
def test_the_package_says_how_it_is_called(
    engines: tuple[Engine, Engine], windowed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engines[0].folder.path
    manifest = open_package(path).manifest
    assert [x.name for x in manifest.graphs["text_encode"].inputs] == ["tokens"]
    assert [x.name for x in manifest.graphs["denoise"].inputs] == [
        "latent", "timestep", "text", "past", "positions",
    ]  # fmt: skip
    assert "text_kv" not in manifest.graphs
    assert main(["info", str(path)]) == 0
    assert main(["export", "--lint", "--model", str(windowed_folder), "-o", str(path)]) == 0
    assert "vae_decode_first_3" in capsys.readouterr().out


def test_models_that_are_shown_pictures_are_told(
    windowed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(windowed_folder, tmp_path / "model")
    config = model / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 8'))
    assert main(["export", "--model", str(model), "-o", str(tmp_path / "package")]) == 2
    assert "is shown pictures in each pass" in capsys.readouterr().err


def test_patches_in_time_shorten_the_past(windowed_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(windowed_folder, tmp_path / "model")
    config = model / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"patch_size_t": null', '"patch_size_t": 2'))
    plan = plan_export(open_folder(model))
    assert (plan.latent.temporal_patch, plan.latent.past) == (2, 2)
    assert plan.latent.to_dict()["temporal_patch"] == 2
