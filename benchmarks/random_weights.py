"""Full-size models without a download: weights drawn on the device, in the dtype they run in.

How fast a model runs does not depend on their values as long as these stay finite. Each weight is
as large as a trained one: a product of unit inputs has unit size, norms leave sizes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from livereel.engine.checkpoint.load import build
from livereel.engine.layers.layout import channels_last
from livereel.engine.models.taehv.decoder import TinyDecoder, TinyVAE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from livereel.engine.types import VAE

    from .models import Model, Part

TAEHV_WIDTHS = (256, 128, 64, 64)
"""Channels of the published tiny decoders, level by level."""
TAEHV_SPACE = 8
"""Pixels of a side that they make of a latent one, but for patches."""
_SMALL = 0.02


@dataclass(frozen=True)
class RandomText:
    """Stands for a text encoder, whose weights would be several times the DiT's."""

    device: torch.device
    width: int

    def encode(self, prompts: Sequence[str], length: int) -> Tensor:
        """Random numbers `[B, L, D]`."""
        return torch.randn(len(prompts), length, self.width, device=self.device)


def random_parts(
    model: Model, device: torch.device, dtype: torch.dtype, *, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """The DiT and the VAE of `model` on `device`, in `dtype` but for what a class keeps in fp32."""
    torch.manual_seed(seed)
    dit = random_part(model.transformer, device, dtype)
    vae = random_part(model.vae, device, dtype)
    channels_last(vae)
    return dit, vae


def parameters(part: Part) -> int:
    """How many numbers a component has; no memory is taken for them."""
    return sum(p.numel() for p in build(part.class_name, part.config, part.class_name).parameters())


def random_part(part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A component of that config."""
    return _filled(build(part.class_name, part.config, part.class_name), device, dtype)


def tiny_decoder(vae: VAE, device: torch.device, dtype: torch.dtype) -> TinyVAE:
    """`vae` with a tiny decoder of the published width and random weights.

    Raises `CheckpointError` for latents that there are no such decoders of.
    """
    with torch.device("meta"):
        patch = max(1, vae.spatial_factor // TAEHV_SPACE)
        decoder = TinyDecoder(vae.channels, TAEHV_WIDTHS, patch)
    return TinyVAE(vae, cast(TinyDecoder, _filled(decoder, device, dtype)))


def random_tensors(
    module: nn.Module, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors for its parameters, by name; what are two names of one comes once."""
    kept = frozenset(getattr(module, "keep_in_fp32", ()))
    state = {}
    for name, p in module.named_parameters():
        own = torch.float32 if not kept.isdisjoint(name.split(".")) else dtype
        state[name] = _drawn(name, torch.empty(p.shape, device=device, dtype=own))
    return state


def _filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module.load_state_dict(random_tensors(module, device, dtype), strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _drawn(name: str, p: Tensor) -> Tensor:
    if name.endswith("gamma") or ("norm" in name and name.endswith("weight") and p.ndim == 1):
        return p.fill_(1.0)
    return p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else _SMALL)
