"""From files to a module that runs: the class out of the registry, built on meta, then filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import CheckpointError
from .folder import ModelFolder, read_json
from .weights import Weights, load_weights, weight_files

_MAX_COUNT = 1024  # of layers, heads, blocks: each costs Python objects before a weight is seen


def build(class_name: str, config: Mapping[str, Any], source: str | Path) -> nn.Module:
    """The module that runs `class_name`, without memory for its weights (the meta device).

    Raises `CheckpointError` that names `source` when the config cannot be built.
    """
    cls = registry.resolve(class_name)
    for key, value in config.items():
        if key.startswith("num_") and isinstance(value, int) and value > _MAX_COUNT:
            raise CheckpointError(f"{source} has {key}={value:.3g}; at most {_MAX_COUNT} is sane")
    try:
        with torch.device("meta"):
            module = cls.from_config(dict(config))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{source} describes no {class_name}: {error}") from error
    assert isinstance(module, nn.Module)
    return module


def load_component(
    folder: ModelFolder,
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The component `name` ("transformer", "vae") of a model, on `device`, in eval mode.

    Floats become `dtype` (None keeps the files'), except what the class keeps in float32. Raises
    `CheckpointError` when the folder's config or weights are missing, corrupt or do not fit.
    """
    component = folder.component(name)
    module = build(component.class_name, component.config, component.path / "config.json")
    layout = registry.layout_of(component.class_name)
    load_weights(
        module,
        component.path,
        device=device,
        dtype=dtype,
        key_map=layout.to_diffusers if layout else None,
        tied=layout.tied if layout else None,
    )
    return module


def load_file(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """A component from safetensors alone, in Wan's own names or in diffusers'; `path` may also be
    the index of sharded files.

    The configuration comes from the shapes, and the number of heads from `num_heads`, from a
    `config.json` beside the file, or from the published width of 128 a head. Raises
    `CheckpointError` when the file is no model that LiveReel runs.
    """
    path = Path(path)
    files = weight_files(path)
    with Weights(files) as weights:
        layout = find_layout(weights.shapes, path)
        renamed = layout.to_diffusers(list(weights.shapes))
        shapes = {renamed[name]: shape for name, shape in weights.shapes.items()}
    heads = num_heads or heads_beside(path)
    try:
        config = layout.config(shapes, heads)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    module = build(layout.class_name, config, path)
    load_weights(
        module, path, device=device, dtype=dtype, key_map=layout.to_diffusers, tied=layout.tied
    )
    return module


def find_layout(names: Mapping[str, Any], source: str | Path) -> registry.Layout:
    """The layout whose weights have these names; `CheckpointError` when it is none that we know."""
    for layout in registry.layouts():
        if layout.matches(list(names)):
            return layout
    shown = ", ".join(repr(name[:80]) for name in list(names)[:3]) or "none"
    raise CheckpointError(f"{source} is no model that LiveReel knows; its first keys are {shown}")


def heads_beside(path: Path) -> int | None:
    """The number of heads that a `config.json` beside a file, or in a folder, gives in either
    spelling."""
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if not beside.is_file():
        return None
    config = read_json(beside)
    heads = config.get("num_attention_heads", config.get("num_heads"))
    return heads if isinstance(heads, int) and 0 < heads <= 4096 else None
