"""What road each operation of a model takes, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ..checkpoint.load import build
from ..layers.norm import ChannelRMSNorm
from ..layers.packed import LIMIT
from ..types import LoadedVAE, Transformer

if TYPE_CHECKING:
    from ..checkpoint.folder import ModelFolder
    from ..layers.road import Road


def roads_of(
    folder: ModelFolder, road: Road, dtype: torch.dtype, *, fp8: bool = False
) -> dict[str, str]:
    """Which road each of a model's operations takes where `road` was picked for it, in `dtype`, its
    DiT perhaps in `fp8`; no weights are loaded. Raises `CheckpointError` for a folder that
    describes no model."""
    dit, vae = _part(folder, "transformer"), _part(folder, "vae")
    fused = road == "triton"
    in_ring = fused and cast(Transformer, dit).in_ring() is not None
    packed_dit = road == "native" and not fp8 and _packed(dit, dtype)
    packed_vae = road == "native" and _packed(vae, dtype)
    on_dit = "triton" if in_ring else "native" if packed_dit else "reference"
    return {
        "self-attention": on_dit,
        "modulation": on_dit,
        "VAE convolutions": "triton" if fused else "native" if packed_vae else "library",
        "VAE norms": "reference" if road == "native" and not _rms_normed(vae) else road,
        "pixels": "triton" if fused else "native" if packed_vae else "reference",
        "projections": "fp8" if fp8 else "native" if packed_dit else "library",
    }


def _part(folder: ModelFolder, name: str) -> nn.Module:
    part = folder.component(name)
    return build(part.class_name, part.config, part.path / "config.json")


def _rms_normed(vae: nn.Module) -> bool:
    """Whether its norms are those that the C++ core knows."""
    return any(isinstance(layer, ChannelRMSNorm) for layer in vae.modules())


def _packed(part: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the C++ core takes all of `part`: tried with weights of no meaning if it is small."""
    if sum(weight.numel() for weight in part.parameters()) * dtype.itemsize > LIMIT:
        return False
    tried = cast("Transformer | LoadedVAE", part.to(dtype).to_empty(device="cpu"))
    return tried.native() is not None
