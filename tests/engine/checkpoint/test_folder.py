from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from livereel.engine.checkpoint.folder import open_folder, read_json
from livereel.engine.config import DEFAULT_SELF_FORCING
from livereel.engine.errors import CheckpointError

INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.35.0",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"z_dim": 4}')
    return tmp_path


def test_components_and_their_configs(folder: Path) -> None:
    model = open_folder(folder)
    assert model.classes == {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
    }
    vae = model.component("vae")
    assert (vae.path, vae.class_name, vae.config) == (
        folder / "vae",
        "AutoencoderKLWan",
        {"z_dim": 4},
    )


def test_the_recipe_is_read_when_there_is_one(folder: Path) -> None:
    assert open_folder(folder).stream == DEFAULT_SELF_FORCING
    assert not open_folder(folder).has_recipe
    values = {"window": 6, "timesteps": [1000, 500], "fps": 8}
    (folder / "livereel.json").write_text(json.dumps(values))
    model = open_folder(folder)
    assert model.has_recipe
    assert (model.stream.window, model.stream.timesteps, model.stream.fps) == (6, (1000, 500), 8)


def test_a_bad_recipe_names_its_file(folder: Path) -> None:
    (folder / "livereel.json").write_text('{"window": 6, "timesteps": [1], "tempo": 3}')
    with pytest.raises(CheckpointError, match=r"livereel\.json.*'tempo'"):
        open_folder(folder)


def test_places_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent does not exist"):
        open_folder(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        open_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file, not a model folder"):
        open_folder(file)


@pytest.mark.parametrize("name", ["text_encoder", "../vae", "_class_name", "transformer_2"])
def test_a_component_must_be_listed(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json lists no"):
        open_folder(folder).component(name)


def test_a_listed_component_without_config_names_the_file(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformer/config\.json cannot be read"):
        open_folder(folder).component("transformer")


@pytest.mark.parametrize("entry", [["diffusers"], ["a", "b", "c"], ["diffusers", 7], []])
def test_a_malformed_entry_is_named(folder: Path, entry: Any) -> None:
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "vae": entry}))
    with pytest.raises(CheckpointError, match="'vae'"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a list"),
        (b"7", "not a int"),
        (b'"' + b"x" * 2_000_000 + b'"', "longer than"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=named) as error:
        read_json(path)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)
