"""Linear layers whose product is in fp8, in place of those of a model that is loaded.

Which layers to leave in bf16 is the caller's to say, by what `measure_fp8` reports of each.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from livereel.kernels.linear_fp8 import (
    Rows,
    linear_fp8,
    linear_fp8_reference,
    norm_modulate_fp8,
    norm_modulate_fp8_reference,
    quantize_rows,
    quantize_rows_reference,
)

from ..errors import InputError
from .road import Road


class LinearFP8(nn.Module):
    """A linear layer in fp8; each row of the input and of the weight has a scale of its own.

    On the `triton` road (Hopper or newer) a kernel quantizes the input and the library multiplies;
    other roads compute the same in plain torch. It is set once, when a model is loaded.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Rows, bias: Tensor | None, road: Road) -> None:
        super().__init__()
        self.register_buffer("weight", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)
        self.road: Road = road

    @classmethod
    def of(cls, linear: nn.Linear, road: Road = "reference") -> LinearFP8:
        """A bf16 layer, quantized."""
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(quantize_rows_reference(linear.weight.detach()), bias, road)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """`[..., K]`, as it is or quantized already, to `[..., N]` in bf16."""
        weight = Rows(self.weight, self.scale)
        if self.road == "triton":
            rows = x if isinstance(x, Rows) else Rows(*quantize_rows(x.contiguous()))
            return linear_fp8(rows, weight, self.bias, torch.bfloat16)
        rows = x if isinstance(x, Rows) else quantize_rows_reference(x)
        return linear_fp8_reference(rows, weight, self.bias, torch.bfloat16)


def norm_modulate_rows(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float, road: Road
) -> Rows:
    """`norm_modulate` for `LinearFP8`s, quantized once for all that read the same."""
    if road == "triton":
        return Rows(*norm_modulate_fp8(x, scale, shift, eps, base))
    return norm_modulate_fp8_reference(x, scale, shift, eps, base)


@dataclass(frozen=True)
class Fp8Report:
    """How far fp8 is from bf16, as |difference| / |bf16| over all that a sample computed.

    `layers` has each converted layer, given the inputs that it had in bf16, by name, the worst
    first; `whole` is the model's output with all of them converted.
    """

    layers: dict[str, float]
    whole: float


def convert_linears(
    model: nn.Module, *, keep: Collection[str] = (), road: Road = "reference"
) -> None:
    """Put a `LinearFP8` in place of each `nn.Linear` of `model`.

    `keep` names layers, or modules with all that is in them, to leave as they are. Raises
    `InputError` for a name that is not in the model, and for a layer to be converted that is not in
    bf16 or whose sizes are no multiples of 16; nothing is converted then.
    """
    for name in _to_convert(model, keep):
        parent, _, child = name.rpartition(".")
        linear = cast(nn.Linear, model.get_submodule(name))
        setattr(model.get_submodule(parent), child, LinearFP8.of(linear, road))


def measure_fp8(
    model: nn.Module, sample: Callable[[], Tensor], *, keep: Collection[str] = (),
    road: Road = "reference",
) -> Fp8Report:  # fmt: skip
    """`convert_linears`, and what it costs.

    `sample` runs the model on typical inputs and gives its output; it is called before and after.
    """
    sums: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name in _to_convert(model, keep):
            linear = cast(nn.Linear, model.get_submodule(name))
            sums[name] = torch.zeros(2, dtype=torch.float64)
            hook = _Comparison(LinearFP8.of(linear, road), sums[name])
            hooks.callback(linear.register_forward_hook(hook).remove)
        wanted = sample().double()
    convert_linears(model, keep=keep, road=road)
    with torch.no_grad():
        got = sample().double()
    errors = {name: _relative(*pair.tolist()) for name, pair in sums.items()}
    whole = _relative(float((got - wanted).square().sum()), float(wanted.square().sum()))
    return Fp8Report(dict(sorted(errors.items(), key=lambda item: -item[1])), whole)


class _Comparison:
    """A forward hook that adds up squares of the difference and of the output."""

    def __init__(self, converted: LinearFP8, sums: Tensor) -> None:
        self.converted, self.sums = converted, sums

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        difference = self.converted(inputs[0]).double() - y.double()
        self.sums[0] += difference.square().sum().cpu()
        self.sums[1] += y.double().square().sum().cpu()


def _relative(difference: float, size: float) -> float:
    return (difference / size) ** 0.5 if size else float(difference > 0)


def _to_convert(model: nn.Module, keep: Collection[str]) -> list[str]:
    found = []
    names = {name for name, _ in model.named_modules()}
    unknown = sorted(set(keep) - names)
    if unknown:
        raise InputError(f"no layer is named {unknown[0]!r}, which is to be kept in bf16")
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or any(
            name == kept or name.startswith(f"{kept}.") for kept in keep
        ):
            continue
        if module.weight.dtype != torch.bfloat16:
            raise InputError(
                f"{name} is in {module.weight.dtype}; wanted bfloat16, or its name among those kept"
            )
        if module.in_features % 16 or module.out_features % 16:
            raise InputError(
                f"{name} has {module.in_features} inputs and {module.out_features} outputs; wanted "
                f"multiples of 16, or its name among those kept"
            )
        found.append(name)
    return found
