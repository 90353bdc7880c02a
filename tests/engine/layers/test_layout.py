from __future__ import annotations

import torch
from torch import nn

from livereel.engine.layers.layout import channels_last


def test_convolutions_of_both_kinds_are_laid_out_and_nothing_changes() -> None:
    module = nn.ModuleList([nn.Conv3d(4, 8, 3), nn.Sequential(nn.Conv2d(4, 8, 3)), nn.Linear(2, 2)])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channels_last(module)
    state = module.state_dict()
    assert state["0.weight"].is_contiguous(memory_format=torch.channels_last_3d)
    assert state["1.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(state[name], value) for name, value in before.items())
