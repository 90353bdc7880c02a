"""A model's folder in diffusers' layout: what stands where, read and checked before weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..config import DEFAULT_SELF_FORCING, StreamConfig
from ..errors import CheckpointError

DEMO = Path(__file__).parents[1] / "demo" / "weights"
"""The model that ships with LiveReel."""
MODEL_INDEX = "model_index.json"
STREAM_CONFIG = "livereel.json"
_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a model: the folder it lies in, its class as diffusers names it, its config."""

    name: str
    path: Path
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """An opened folder. `classes` maps each component of `model_index.json` to its class name.

    `stream` is what `livereel.json` says; without that file it is what suits clips of that kind of
    model, and `has_recipe` is false. `exported` is true of a package, which has graphs of one
    picture size in place of components (`livereel.engine.package`). Of a model of two DiTs,
    timesteps from `boundary_ratio` of all on are the first one's. `clean_start` says that a picture
    to start from is put in place of the first latents.
    """

    path: Path
    classes: Mapping[str, str]
    stream: StreamConfig
    has_recipe: bool
    exported: bool = False
    boundary_ratio: float | None = None
    clean_start: bool = False

    def component(self, name: str) -> Component:
        """The component `name` ("transformer", "vae") with its `config.json`.

        Raises `CheckpointError` when the model has no such part or its config cannot be read.
        """
        class_name = self.classes.get(name)
        if class_name is None:
            raise CheckpointError(f"{self.path / MODEL_INDEX} lists no {name}")
        path = self.path / name
        config = read_json(path / "config.json")
        return Component(name=name, path=path, class_name=class_name, config=config)


def open_folder(path: str | Path) -> ModelFolder:
    """Open a folder that holds `model_index.json`, and `livereel.json` if it is made to stream.

    Raises `CheckpointError`, in one sentence that names the file, when `path` is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a model folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; a model is a folder that holds {MODEL_INDEX}")
    if not (path / MODEL_INDEX).is_file():
        raise CheckpointError(f"{path} is not a model folder: it holds no {MODEL_INDEX}")
    index = read_json(path / MODEL_INDEX)
    classes = {
        name: _class_name(path, name, entry)
        for name, entry in index.items()
        if isinstance(entry, list) and entry != [None, None]
    }
    recipe = path / STREAM_CONFIG
    has_recipe = recipe.exists()
    stream = DEFAULT_SELF_FORCING
    if has_recipe:
        stream = StreamConfig.from_dict(read_json(recipe), source=str(recipe))
    elif (of_clips := registry.clip_config(classes.get("transformer", ""))) is not None:
        stream = of_clips(read_json(path / "transformer" / "config.json"))
    return ModelFolder(
        path=path,
        classes=classes,
        stream=stream,
        has_recipe=has_recipe,
        boundary_ratio=_boundary_ratio(path, index) if "transformer_2" in classes else None,
        clean_start=index.get("expand_timesteps") is True,
    )


def _boundary_ratio(path: Path, index: Mapping[str, Any]) -> float:
    value = index.get("boundary_ratio")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise CheckpointError(
            f"{path / MODEL_INDEX}: boundary_ratio must be a number between 0 and 1 where there is "
            f"a transformer_2, got {value!r:.40}"
        )
    return float(value)


def _class_name(path: Path, name: str, entry: list[Any]) -> str:
    if len(entry) != 2 or not isinstance(entry[1], str):
        raise CheckpointError(
            f"{path / MODEL_INDEX}: {name[:64]!r} must be a pair of library and class name"
        )
    return entry[1]


def read_json(path: Path, *, limit: int = _CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes.

    Raises `CheckpointError` that names the file when it is missing, longer, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(text) > limit:
        raise CheckpointError(f"{path} is longer than the {limit} bytes expected of such a file")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value
