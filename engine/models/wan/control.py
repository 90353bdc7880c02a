"""Channels of control for a Wan DiT: more of them behind its latents' own, of no effect at first.

As Wan2.1-Fun-Control takes its control, by the patch embedding, whose new weights are zeros
(ControlNet's zero convolution; Zhang et al. 2023, arXiv 2302.05543): before training the DiT gives
what it gave, whatever the control.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import InputError
from .transformer import WanTransformer


def with_control(model: WanTransformer, channels: int) -> WanTransformer:
    """The same DiT with `channels` of control more, in parameters of its own.

    Raises `InputError` for a number below 1.
    """
    if channels < 1:
        raise InputError(f"channels must be at least 1, got {channels}")
    config = replace(model.config, in_channels=model.config.in_channels + channels)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    old = weights["patch_embedding.weight"]  # [D, C, t, h, w]
    new = old.new_zeros(old.shape[0], channels, *old.shape[2:])
    weights["patch_embedding.weight"] = torch.cat([old, new], dim=1)
    with torch.device("meta"):
        controlled = WanTransformer(config)
    controlled.load_state_dict(weights, assign=True)
    return controlled.train(model.training)
