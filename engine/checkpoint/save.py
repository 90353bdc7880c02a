"""Writing a model's folder so that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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
    folder: Path,
    classes: Mapping[str, tuple[str, str]],
    *,
    stream: StreamConfig | None = None,
    pipeline: str = "WanPipeline",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write `model_index.json`, and `livereel.json` when the model has a recipe for streaming.

    `classes` maps each component to its library and class, such as `("diffusers",
    "AutoencoderKLWan")`; `pipeline` is the class that diffusers makes of them, by its
    `options`.
    """
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.35.0"}
    index.update(options or {})
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
    dtype: torch.dtype | None = None,
    keep_in_fp32: Collection[str] = (),
) -> None:
    """Write `config.json` and the weights of one component into `folder/name`.

    Weights of more than `shard_bytes` are split, in the given order, into files of at most that
    size (a larger tensor has one to itself) with diffusers' index. Transformers' components want
    the `stem` "model". Floats are written as `dtype` (None: as they are), but those as float32 of
    which a part of the dotted name stands in `keep_in_fp32`. No more than a file's tensors are held
    in memory beside the given ones.
    """
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "config.json", config)
    dtypes = {
        key: _written_dtype(key, tensor, dtype, frozenset(keep_in_fp32))
        for key, tensor in tensors.items()
    }
    sizes = {key: tensor.numel() * dtypes[key].itemsize for key, tensor in tensors.items()}
    shards = _split(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"{stem}{part}.safetensors"
        _save({key: _owned(tensors[key], dtypes[key]) for key in keys}, path / file)
        weight_map.update(dict.fromkeys(keys, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(path / f"{stem}.safetensors.index.json", index)


def _written_dtype(
    name: str, tensor: Tensor, dtype: torch.dtype | None, keep: frozenset[str]
) -> torch.dtype:
    if dtype is None or not tensor.is_floating_point():
        return tensor.dtype
    return dtype if keep.isdisjoint(name.split(".")) else torch.float32


def _split(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, and the only tensor in its storage, as the format wants it."""
    tensor = tensor.detach().to(dtype)
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # Names that share one tensor each get a copy of it, which the format does not do without.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{path.name} cannot be written: {error}") from error


def save_scheduler(
    folder: Path, *, shift: float, config: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """Write the scheduler that diffusers' pipeline samples whole clips with; gives its class.

    Unless a `config` says otherwise it is Wan's, shifted by `shift`.
    """
    config = config or {
        "_class_name": "UniPCMultistepScheduler",
        "final_sigmas_type": "zero",
        "flow_shift": shift,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }
    (folder / "scheduler").mkdir(parents=True)
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    return "diffusers", str(config["_class_name"])


def save_image_processor(folder: Path, side: int) -> tuple[str, str]:
    """Write how CLIP wants pictures, cut to `side` pixels, as transformers has it; gives its class.
    The numbers are those of OpenAI's CLIP."""
    square = {"height": side, "width": side}
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": square,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "image_processor").mkdir(parents=True)
    write_json(folder / "image_processor" / "preprocessor_config.json", values)
    return "transformers", "CLIPImageProcessor"
