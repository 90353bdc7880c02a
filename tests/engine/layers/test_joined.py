from __future__ import annotations

import torch
from torch import nn

from livereel.engine.layers.joined import Joined
from livereel.engine.layers.linear_fp8 import LinearFP8


def layers(*, bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(32, 16, bias=bias).bfloat16() for _ in range(3)]


@torch.no_grad()
def test_one_product_gives_what_each_layer_does() -> None:
    x = torch.randn(2, 5, 32).bfloat16()
    for bias in (True, False):
        each = layers(bias=bias)
        wanted = [layer(x) for layer in each]
        whole = Joined(*each)
        assert len(whole.layers) == 1
        for own, other, again in zip(whole(x), wanted, each, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-2)
            torch.testing.assert_close(again(x), other, rtol=0, atol=1e-2)


@torch.no_grad()
def test_what_changes_a_layer_in_place_changes_all() -> None:
    x, each = torch.randn(4, 32).bfloat16(), layers()
    whole = Joined(*each)
    each[1].get_parameter("weight").zero_()
    each[1].get_parameter("bias").fill_(3.0)
    assert torch.equal(whole(x)[1], torch.full((4, 16), 3.0).bfloat16())
    held = sum(layer.get_parameter("weight").untyped_storage().nbytes() for layer in each) / 3
    assert held == 3 * 16 * 32 * 2  # one tensor for all


@torch.no_grad()
def test_layers_in_fp8_join_to_the_bit() -> None:
    x = torch.randn(4, 32).bfloat16()
    each = [LinearFP8.of(layer) for layer in layers() if isinstance(layer, nn.Linear)]
    wanted = [layer(x) for layer in each]
    whole = Joined(*each)
    assert len(whole.layers) == 1
    assert all(torch.equal(own, other) for own, other in zip(whole(x), wanted, strict=True))


@torch.no_grad()
def test_layers_of_which_some_are_in_fp8_stay_apart() -> None:
    x, each = torch.randn(4, 32).bfloat16(), layers()
    assert isinstance(each[0], nn.Linear)
    each[0] = LinearFP8.of(each[0])
    whole = Joined(*each)
    assert len(whole.layers) == 3
    assert all(torch.equal(own, layer(x)) for own, layer in zip(whole(x), each, strict=True))
