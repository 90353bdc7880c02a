"""Linear layers that read the same, as one product: one launch, and enough tiles for a whole chip.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from livereel.kernels.linear_fp8 import Rows

from .linear_fp8 import LinearFP8


class Joined:
    """`layers` of one width, all with a bias or none; apart where only some of them are in fp8.

    Their weights and biases become parts of one tensor each, so that what changes a layer's in
    place changes this, and memory is taken once.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self.layers: tuple[nn.Module, ...] = layers
        if all(isinstance(layer, LinearFP8) for layer in layers):
            self.layers = (_join_fp8(cast("Sequence[LinearFP8]", layers)),)
        elif all(isinstance(layer, nn.Linear) for layer in layers):
            self.layers = (_join(cast("Sequence[nn.Linear]", layers)),)
        self._count = len(layers)

    def __call__(self, x: Tensor | Rows) -> tuple[Tensor, ...]:
        """`[..., K]` to each layer's `[..., N]`, which may be parts of one tensor."""
        if len(self.layers) < self._count:
            y: Tensor = self.layers[0](x)
            return y.chunk(self._count, dim=-1)
        return tuple(layer(x) for layer in self.layers)


def _join(layers: Sequence[nn.Linear]) -> nn.Linear:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    whole.weight = nn.Parameter(weight, requires_grad=False)
    for layer, part in zip(layers, weight.chunk(len(layers)), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=layer.weight.requires_grad)
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.detach() for layer in layers])
        whole.bias = nn.Parameter(bias, requires_grad=False)
        for layer, part in zip(layers, bias.chunk(len(layers)), strict=True):
            layer.bias = nn.Parameter(part, requires_grad=layer.bias.requires_grad)
    return whole


def _join_fp8(layers: Sequence[LinearFP8]) -> LinearFP8:
    weight = Rows(
        torch.cat([layer.weight for layer in layers]), torch.cat([layer.scale for layer in layers])
    )
    parts = zip(layers, *(part.chunk(len(layers)) for part in weight), strict=True)
    for layer, data, scale in parts:
        layer.weight, layer.scale = data, scale
    bias = [layer.bias for layer in layers if layer.bias is not None]
    return LinearFP8(weight, torch.cat(bias) if bias else None, layers[0].road)
