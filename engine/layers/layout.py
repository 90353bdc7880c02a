"""Memory layout of convolution weights."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(module: nn.Module) -> None:
    """Lay out the weights of all 2D and 3D convolutions in `module` channels-last, in place.

    oneDNN and cuDNN choose faster kernels then, and activations keep the layout from there on.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d):
            child.weight.data = child.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(child, nn.Conv2d):
            child.weight.data = child.weight.data.to(memory_format=torch.channels_last)
