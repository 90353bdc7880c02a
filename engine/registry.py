"""Which class runs a component: class names as diffusers writes them, resolved on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import CheckpointError

CLASSES: dict[str, str] = {
    "WanTransformer3DModel": "livereel.engine.models.wan.transformer:WanTransformer",
    "AutoencoderKLWan": "livereel.engine.models.wan.vae:WanVAE",
}


def resolve(class_name: str) -> type[Any]:
    """The class that runs `class_name`, a name from `model_index.json`; imports its module.

    Raises `CheckpointError` when the name is not in the table.
    """
    target = CLASSES.get(class_name)
    if target is None:
        raise CheckpointError(
            f"{class_name[:64]!r} is not a model class that LiveReel runs; "
            f"it runs {', '.join(CLASSES)}"
        )
    module, _, name = target.partition(":")
    found: type[Any] = getattr(import_module(module), name)
    return found
