"""Writing a model's folder so that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..config import StreamConfig
from ..errors import InputError
from .folder import MODEL_INDEX, STREAM_CONFIG
from .weights import STEMS

SHARD_BYTES = 4_000_000_000


@contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well and vanishes otherwise.

    It has a temporary name beside `path`, so that nobody sees it half-written. With `replace` a
    folder already at `path` makes way at the end. Raises `InputError` when something is there that
    may not be replaced, or when the place cannot be written.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
        raise InputError(f"{path} exists already; give a new name or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield draft
        _sync(draft)
        draft.chmod(0o755)
        _move_over(draft, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_over(draft: Path, path: Path) -> None:
    if path.exists() and any(path.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        os.rename(path, old)
        try:
            os.rename(draft, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(draft, path)


def _sync(folder: Path) -> None:
    """Files reach the disk before the rename does."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as diffusers does: two spaces, sorted keys, a line's end."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_index(
    folder: Path, classes: Mapping[str, tuple[str, str]], *, stream: StreamConfig | None = None
) -> None:
    """Write `model_index.json`, and `livereel.json` when the model has a recipe for streaming.

    `classes` maps each component to its library and class, such as `("diffusers",
    "AutoencoderKLWan")`.
    """
    index: dict[str, Any] = {"_class_name": "WanPipeline", "_diffusers_version": "0.35.0"}
    index.update({name: list(pair) for name, pair in classes.items()})
    write_json(folder / MODEL_INDEX, index)
    if stream is not None:
        write_json(folder / STREAM_CONFIG, stream.to_dict())


def save_component(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    stem: str = STEMS[0],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `config.json` and the weights of one component into `folder/name`.

    Weights of more than `shard_bytes` are split, in the given order, into files of at most that
    size (a larger tensor has one to itself) with diffusers' index. Transformers' components want
    the `stem` "model".
    """
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "config.json", config)
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        _save(shards[0], path / f"{stem}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, path / file)
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": sum(map(_bytes, tensors.values()))}}
    write_json(path / f"{stem}.safetensors.index.json", {**index, "weight_map": weight_map})


def _split(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _bytes(tensor)
    return shards


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
