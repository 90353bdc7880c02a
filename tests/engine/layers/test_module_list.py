from __future__ import annotations

from torch import nn

from livereel.engine.layers.module_list import module_list


def test_is_a_list_of_modules_under_their_numbers() -> None:
    parent = nn.Module()
    layers = module_list(nn.Linear(2, 2, bias=False) for _ in range(2))
    parent.layers = layers
    assert isinstance(layers, nn.ModuleList)
    assert list(parent.state_dict()) == ["layers.0.weight", "layers.1.weight"]
