"""LoRA files: low-rank changes to a module's linear layers, read and checked before any is applied.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). Names may be PEFT's, those
of diffusers' pipelines, or those of a model's original code (with `lora_down` and `lora_up`, dots
or underscores); safetensors only.

Shapes: r rank, I inputs, O outputs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import CheckpointError
from .folder import read_json
from .weights import Weights

MAX_RANK = 4096
_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_CONFIG = "adapter_config.json"
_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.",
)  # fmt: skip
_MATRIX = re.compile(
    r"(?P<stem>.{1,300})\.(?:(?P<down>lora_A|lora_down)|lora_B|lora_up)(?:\.default)?\.weight"
)
_UNDERSCORED = "lora_unet_"
_NAMED = 3


@dataclass(frozen=True)
class LowRank:
    """A layer's change `scale * up @ down`, of `down` `[r, I]` and `up` `[O, r]`."""

    down: Tensor
    up: Tensor
    scale: float

    def change(self, device: torch.device) -> Tensor:
        """What is added to the layer's weight at strength 1: `[O, I]`, fp32."""
        up, down = (x.to(device, torch.float32) for x in (self.up, self.down))
        return up @ down * self.scale


Lora = Mapping[str, LowRank]
"""The layers that a file changes, by the module's names."""


def read_lora(
    path: str | Path,
    module: nn.Module,
    *,
    to_diffusers: Callable[[Collection[str]], Mapping[str, str]] | None = None,
    to_original: Callable[[Collection[str]], Mapping[str, str]] | None = None,
) -> Lora:
    """Read a LoRA for `module`: a file, or a folder as PEFT and diffusers write them.

    The maps are those of the module's layout. Raises `CheckpointError` when the file is missing or
    damaged, holds anything but pairs of matrices for linear layers of the module, or one of a rank
    above `MAX_RANK`.
    """
    path = _file(Path(path))
    with Weights([path]) as weights:
        found = _pairs(weights.shapes, path)
        names = _module_names(found, module, path, to_diffusers, to_original)
        ratio = _ratio(path)
        layers: dict[str, LowRank] = {}
        for stem, keys in found.items():
            name = names[stem]
            if len(keys) < 2 + ("alpha" in keys):
                raise CheckpointError(f"{path} holds half a pair for {stem!r:.120}")
            down, up = weights.shapes[keys["down"]], weights.shapes[keys["up"]]
            wanted = tuple(module.get_parameter(f"{name}.weight").shape)
            if len(down) != 2 or len(up) != 2 or (up[0], down[1]) != wanted or up[1] != down[0]:
                raise CheckpointError(
                    f"{path} has {list(up)} times {list(down)} for {name}, which is {list(wanted)}"
                )
            if not 1 <= down[0] <= MAX_RANK:
                raise CheckpointError(f"{path} has rank {down[0]} for {name}; at most {MAX_RANK}")
            if name in layers:
                raise CheckpointError(f"{path} holds {name} twice, under two names")
            alpha = float(weights.tensor(keys["alpha"]).sum()) if "alpha" in keys else None
            scale = ratio(down[0]) if alpha is None else alpha / down[0]
            if not math.isfinite(scale):
                raise CheckpointError(f"{path} has a scale of {scale} for {name}")
            # Copies, so that the file may be closed.
            layers[name] = LowRank(
                weights.tensor(keys["down"]).clone(), weights.tensor(keys["up"]).clone(), scale
            )
    return layers


def _file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in _FILES if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} holds none of {', '.join(_FILES)}")
        return found
    if path.suffix != ".safetensors":
        what = "is of another kind" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; a LoRA is a .safetensors file or a folder with one")
    return path


def _pairs(names: Collection[str], path: Path) -> dict[str, dict[str, str]]:
    """Each layer's keys, by what they are ("down", "up", "alpha"); layers without their prefix."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _MATRIX.fullmatch(name)
        if match is not None:
            stem, kind = match["stem"], "down" if match["down"] else "up"
        elif name.endswith(".alpha"):
            stem, kind = name.removesuffix(".alpha"), "alpha"
        else:
            raise CheckpointError(f"{path} holds {name!r:.120}, which is no part of a LoRA")
        prefix = next((p for p in _PREFIXES if stem.startswith(p)), "")
        if found.setdefault(stem.removeprefix(prefix), {}).setdefault(kind, name) != name:
            raise CheckpointError(f"{path} holds {stem!r:.120} twice, under two names")
    if not found:
        raise CheckpointError(f"{path} holds no LoRA")
    return found


def _module_names(
    stems: Collection[str],
    module: nn.Module,
    path: Path,
    to_diffusers: Callable[[Collection[str]], Mapping[str, str]] | None,
    to_original: Callable[[Collection[str]], Mapping[str, str]] | None,
) -> dict[str, str]:
    """Layers' names in a file to the module's."""
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    flat: dict[str, str] = {}
    if any(stem.startswith(_UNDERSCORED) for stem in stems):
        flat = {name.replace(".", "_"): name for name in linear}
        if to_original is not None:
            originals = to_original([f"{name}.weight" for name in linear])
            for new, old in originals.items():
                flat[old.removesuffix(".weight").replace(".", "_")] = new.removesuffix(".weight")
    plain = {stem: flat.get(stem.removeprefix(_UNDERSCORED), stem) for stem in stems}
    if to_diffusers is not None:
        renamed = to_diffusers([f"{name}.weight" for name in plain.values()])
        plain = {
            stem: renamed[f"{name}.weight"].removesuffix(".weight") for stem, name in plain.items()
        }
    unknown = [stem for stem, name in plain.items() if name not in set(linear)]
    if unknown:
        rest = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        shown = ", ".join(repr(stem[:120]) for stem in unknown[:_NAMED])
        raise CheckpointError(f"{path} changes {shown}{rest}, no linear layer of this model")
    return plain


def _ratio(path: Path) -> Callable[[int], float]:
    """What a pair of this rank is scaled by where the file has no alpha for it: as PEFT's config
    says, in a file of its own or in the header, and 1 without one."""
    with safe_open(str(path), framework="pt", device="cpu") as file:
        described = (file.metadata() or {}).get("lora_adapter_metadata")
    config: dict[str, Any] = {}
    if (path.parent / _CONFIG).is_file():
        config = read_json(path.parent / _CONFIG)
    elif described is not None:
        try:
            values = json.loads(described)
            config = {str(key).removeprefix("transformer."): x for key, x in values.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} has metadata that is not JSON") from error
    for key in ("alpha_pattern", "rank_pattern", "use_dora"):
        if config.get(key):
            raise CheckpointError(f"{path}: {key} is not supported")
    alpha = config.get("lora_alpha")
    if alpha is None:
        return lambda rank: 1.0
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{path}: lora_alpha must be a number, got {alpha!r:.40}")
    rooted = config.get("use_rslora") is True
    return lambda rank: alpha / (math.sqrt(rank) if rooted else rank)
