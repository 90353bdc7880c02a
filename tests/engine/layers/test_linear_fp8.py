from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from livereel.engine.errors import InputError
from livereel.engine.layers.linear_fp8 import LinearFP8, measure_fp8, norm_modulate_rows
from livereel.engine.layers.modulate import norm_modulate


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 48), nn.GELU(), nn.Sequential(nn.Linear(48, 16), nn.Linear(16, 16))]
    return nn.Sequential(*layers).bfloat16()


def sample(net: nn.Module) -> Callable[[], Tensor]:
    x = torch.randn(2, 5, 32).bfloat16()

    def run() -> Tensor:
        y: Tensor = net(x)
        return y

    return run


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.float() - y.float()).norm() / y.float().norm())


@torch.no_grad()
def test_layer_is_near_the_one_that_it_replaces() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).bfloat16()
    x = torch.randn(2, 3, 64).bfloat16()
    assert 0.01 < relative(LinearFP8.of(linear)(x), linear(x)) < 0.05


@torch.no_grad()
def test_layers_share_what_a_norm_quantized() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).bfloat16()
    x = torch.randn(1, 2, 3, 64).bfloat16()
    scale, shift = torch.randn(2, 1, 1, 1, 64)
    rows = norm_modulate_rows(x, scale, shift, 1e-6, 1.0, "reference")
    y = LinearFP8.of(linear)(rows)
    assert y.shape == (1, 2, 3, 48)
    assert relative(y, linear(norm_modulate(x, scale, shift, 1e-6))) < 0.05


@torch.no_grad()
def test_converts_what_is_not_kept_and_reports_each_error() -> None:
    net = model()
    before = [linear.weight.clone() for linear in (net[0], net[2][0], net[2][1])]
    run = sample(net)
    wanted = run()
    report = measure_fp8(net, run, keep=["2.1"])
    assert isinstance(net[0], LinearFP8) and isinstance(net[2][0], LinearFP8)
    assert type(net[2][1]) is nn.Linear and torch.equal(net[2][1].weight, before[2])
    assert sorted(report.layers) == ["0", "2.0"]
    errors = list(report.layers.values())
    assert errors == sorted(errors, reverse=True) and all(0.01 < e < 0.05 for e in errors)
    assert report.whole == pytest.approx(relative(run(), wanted), rel=1e-4)
    assert 0.01 < report.whole < 0.1


def test_keeps_a_module_with_all_that_is_in_it() -> None:
    net = model()
    assert list(measure_fp8(net, sample(net), keep=["2"]).layers) == ["0"]
    assert not isinstance(net[2][0], LinearFP8)


def test_a_layer_that_never_ran_has_no_error() -> None:
    net = model()
    net.add_module("3", nn.Linear(16, 16).bfloat16())
    first = nn.Sequential(*net[:3])
    assert measure_fp8(net, sample(first)).layers["3"] == 0


def test_refuses_what_it_cannot_convert() -> None:
    net = model()
    with pytest.raises(InputError, match="no layer is named '4', which is to be kept"):
        measure_fp8(net, sample(net), keep=["4"])
    net[2][1] = nn.Linear(16, 3).bfloat16()
    with pytest.raises(InputError, match=r"2\.1 has 16 inputs and 3 outputs; wanted multiples"):
        measure_fp8(net, sample(net))
    net[2][1] = nn.Linear(16, 16)
    with pytest.raises(InputError, match=r"2\.1 is in torch.float32; wanted bfloat16, or its name"):
        measure_fp8(net, sample(net))
    assert type(net[0]) is nn.Linear
