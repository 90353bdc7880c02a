"""LoRAs of a loaded DiT: several at once, each by its strength, put into the weights and taken out.

Weights are changed in place, so that every road and graph that reads them follows; what they were
is kept in RAM, so that taking all out leaves them bitwise as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.lora import Lora, read_lora
from ..errors import InputError
from ..registry import layout_of

MAX_LORAS = 64
MAX_STRENGTH = 100.0
Strengths = Mapping[str, float]


class Loras:
    """Those of a model's DiTs. `changed` is called when weights have been."""

    def __init__(self, modules: nn.ModuleDict, changed: Callable[[], None]) -> None:
        self._modules, self._changed = modules, changed
        self._known: dict[str, Lora] = {}
        self._base: dict[str, Tensor] = {}
        self._active: Strengths | None = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be used."""
        return tuple(self._known)

    def load(self, path: str | Path, name: str, part: str, classes: Mapping[str, str]) -> None:
        """Read a LoRA for the DiT `part`, of the class that `classes` has for it, as `add` does.

        Raises `CheckpointError` as `read_lora` does, and `InputError` for a part that is not there.
        """
        if part not in self._modules:
            raise InputError(f"part is {part!r:.40}; wanted {' or '.join(self._modules)}")
        layout = layout_of(classes[part])
        lora = read_lora(
            path,
            self._modules[part],
            to_diffusers=layout.to_diffusers if layout else None,
            to_original=layout.to_original if layout else None,
        )
        self.add(name, {f"{part}.{layer}": change for layer, change in lora.items()})

    def add(self, name: str, lora: Lora) -> None:
        """Make a LoRA known under `name`. Raises `InputError` for a name that is taken, or for one
        LoRA too many."""
        if name in self._known:
            raise InputError(f"there is a LoRA {name!r:.80} already")
        if len(self._known) >= MAX_LORAS:
            raise InputError(f"there are {MAX_LORAS} LoRAs already")
        self._known[name] = lora

    def check(self, wanted: Strengths) -> None:
        """Raise `InputError` for a name that is not known or a strength that is no number."""
        for name, strength in wanted.items():
            if name not in self._known:
                known = ", ".join(map(repr, self._known)) or "none"
                raise InputError(f"there is no LoRA {name!r:.80}; known: {known}")
            number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
            if not number or not abs(strength) <= MAX_STRENGTH:  # false for NaN as well
                raise InputError(
                    f"LoRA {name!r:.80} has strength {strength!r:.40}; wanted a number from "
                    f"-{MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
                )

    def use(self, wanted: Strengths) -> bool:
        """Have these in the weights, by their strengths, and no others; gives whether weights
        changed. Raises `InputError` as `check` does, and nothing has changed then."""
        self.check(wanted)
        wanted = {name: float(strength) for name, strength in wanted.items() if strength}
        if wanted == self._active:
            return False
        self._active = None  # until all is done: what fails on the way is done again
        with torch.inference_mode(False), torch.no_grad():
            touched = {layer for name in wanted for layer in self._known[name]}
            for layer in sorted(touched | set(self._base)):
                weight = self._modules.get_parameter(f"{layer}.weight")
                # What `_put` replaces on a CPU stays as it is; what it writes over is copied.
                base = self._base.get(layer)
                if base is None:
                    base = self._base[layer] = weight.detach().cpu()
                if layer not in touched:
                    self._put(layer, base)
                    del self._base[layer]
                    continue
                now = base.to(weight.device, torch.float32, copy=True)
                for name, strength in wanted.items():
                    if layer in self._known[name]:
                        now += strength * self._known[name][layer].change(weight.device)
                self._put(layer, now.to(weight.dtype))
        self._changed()
        self._active = wanted
        return True

    def _put(self, layer: str, values: Tensor) -> None:
        """In place on a GPU, whose graphs know where weights lie. What is mapped from a file may
        not be written to: on a CPU the layer gets weights of its own."""
        part = self._modules.get_submodule(layer)
        weight = part.get_parameter("weight")
        if weight.device.type == "cpu":
            part.weight = nn.Parameter(values, requires_grad=False)
        else:
            weight.copy_(values)
