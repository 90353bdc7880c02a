"""From the host to the device without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; to a GPU it is copied from pinned memory, in the order of the
    stream's work, and the host goes on at once."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
