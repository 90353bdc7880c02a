"""What road each operation of a model takes, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..checkpoint.load import build
from ..types import Transformer

if TYPE_CHECKING:
    from ..checkpoint.folder import ModelFolder
    from ..layers.road import Road


def roads_of(folder: ModelFolder, road: Road) -> dict[str, str]:
    """Which road each of a model's operations takes where `road` was picked for it; nothing is
    loaded. Raises `CheckpointError` for a folder that describes no model."""
    part = folder.component("transformer")
    dit = cast(Transformer, build(part.class_name, part.config, part.path / "config.json"))
    fused = road == "triton"
    in_ring = "triton" if fused and dit.in_ring() is not None else "reference"
    return {
        "self-attention": in_ring,
        "modulation": in_ring,
        "VAE convolutions": "triton" if fused else "library",
        "VAE norms": road,
        "pixels": "triton" if fused else "reference",
        "projections": "library",
    }
