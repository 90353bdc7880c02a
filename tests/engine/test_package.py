"""A package's manifest is read strictly, and its files are checked before they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from livereel.engine.config import StreamConfig
from livereel.engine.errors import CheckpointError
from livereel.engine.manifest import MANIFEST, Graph, Latent, Manifest, TensorSpec
from livereel.engine.package import finish, is_package, open_package, read_manifest

STEP = Graph(
    file="step.onnx",
    inputs=(
        TensorSpec(name="latent", dtype="float32", shape=(1, 2, 1, 4, 4)),
        TensorSpec(name="cache", dtype="float32", shape=(1, 8)),
    ),
    outputs=(
        TensorSpec(name="frames", dtype="float32", shape=(1, 3, 4, 8, 8)),
        TensorSpec(name="next_cache", dtype="float32", shape=(1, 8)),
    ),
    state={"next_cache": "cache"},
)
WRITTEN = Manifest(
    format="onnx",
    chips=("any",),
    name="tiny",
    family="WanTransformer3DModel",
    fingerprint="0123456789abcdef",
    versions={"livereel": "0.1.0"},
    dtype="float32",
    stream=StreamConfig(first_chunk_latents=1, window=6, timesteps=(1000.0, 500.0)),
    latent=Latent(
        channels=2, height=4, width=4, temporal_factor=4, spatial_factor=8, patch=2, past=3,
        decoder_memory=26, text_width=12, mean=(0.0, 0.5), std=(1.0, 2.0),
    ),
    graphs={"step": STEP},
)  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "step.onnx").write_bytes(b"graph")
    finish(tmp_path, WRITTEN)
    return tmp_path


def change(package: Path, path: str, value: Any) -> None:
    file = package / MANIFEST
    values = json.loads(file.read_text())
    place, keys = values, path.split("/")
    for key in keys[:-1]:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(values))


def test_what_was_written_is_read(package: Path) -> None:
    manifest = open_package(package).manifest
    assert set(manifest.files) == {"step.onnx", "tokenizer/tokenizer.json"}
    assert manifest.files["step.onnx"].bytes == 5
    assert manifest.graphs == WRITTEN.graphs
    assert (manifest.stream, manifest.latent) == (WRITTEN.stream, WRITTEN.latent)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_a_package_is_told_from_a_model(package: Path) -> None:
    assert is_package(package)
    (package / "model_index.json").write_text("{}")
    assert not is_package(package)
    assert not is_package(package / "nowhere")


def test_a_package_opens_as_a_folder_without_components(package: Path) -> None:
    folder = open_package(package).folder
    assert folder.exported and folder.has_recipe
    assert folder.stream == WRITTEN.stream


@pytest.mark.parametrize("content", [b"grap", b"grapH", None])
def test_a_file_that_was_changed_is_named(package: Path, content: bytes | None) -> None:
    if content is None:
        (package / "step.onnx").unlink()
    else:
        (package / "step.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step\.onnx"):
        open_package(package)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("manifest", 2, "manifest is 2; this version"),
        ("format", "coreml", "format must be one of"),
        ("chips", "any", "chips must be a list"),
        ("model/fingerprint", "../..", "model.fingerprint cannot be"),
        ("model/colour", "red", "model has an unknown 'colour'"),
        ("dtype", "int64", "dtype must be one of float32, float16, bfloat16, got"),
        ("stream/window", 0, "stream: window must be"),
        ("seed", "mersenne", "seed must be"),
        ("latent/channels", 1.5, r"latent\.channels must be a whole number"),
        ("latent/mean", [0.0], r"latent\.mean must be 2 numbers"),
        ("latent/std", [0.0, 1.0], r"latent\.std must lie above 0"),
        ("graphs/step/file", "../step.onnx", r"graphs\.step\.file cannot be"),
        ("graphs/step/file", "other.onnx", "which files lacks"),
        ("graphs/step/inputs/0/shape", [1 << 30, 1 << 30], "more than any model's"),
        ("graphs/step/inputs/0/dtype", "object", "must be one of"),
        ("graphs/step/inputs/0/name", "cache", "two tensors of one name"),
        ("graphs/step/inputs/1/shape", [1, 9], "another shape or dtype"),
        ("graphs/step/state", {"nothing": "cache"}, "which is no output"),
        ("files/..", {"bytes": 1, "sha256": "0" * 64}, "a file's name cannot be"),
        ("files/step.onnx/bytes", True, "must be a whole number"),
        ("files/step.onnx/sha256", "0", "sha256 of step.onnx cannot be"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    package: Path, path: str, value: Any, told: str
) -> None:
    change(package, path, value)
    with pytest.raises(CheckpointError, match=told):
        read_manifest(package)
