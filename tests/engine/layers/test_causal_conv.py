"""Causal convolution: in pieces as in one, and blind to what is yet to come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.engine.layers.causal_conv import CacheTape, CausalConv3d, newest, with_past


def conv(kernel: tuple[int, int, int] = (3, 3, 3)) -> CausalConv3d:
    torch.manual_seed(0)
    return CausalConv3d(2, 4, kernel)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3)])
@torch.no_grad()
def test_the_past_before_a_stream_is_zeros(kernel: tuple[int, int, int]) -> None:
    layer, x = conv(kernel), torch.randn(1, 2, 5, 3, 7)
    padded = F.pad(x, (0, 0, 0, 0, kernel[0] - 1, 0))
    expected = F.conv3d(
        padded, layer.weight, layer.bias, padding=(0, kernel[1] // 2, kernel[2] // 2)
    )
    assert torch.allclose(layer.step(x, CacheTape(None)), expected, atol=1e-6)


@pytest.mark.parametrize("parts", [[5], [1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
@torch.no_grad()
def test_pieces_equal_the_whole(parts: list[int]) -> None:
    first, second, x = conv(), CausalConv3d(4, 2, (3, 1, 1)), torch.randn(1, 2, 5, 4, 3)

    def run(x: Tensor, tape: CacheTape) -> Tensor:
        return second.step(first.step(x, tape), tape)

    whole, out, caches = run(x, CacheTape(None)), [], None
    for part in torch.split(x, parts, dim=2):
        tape = CacheTape(caches)
        out.append(run(part, tape))
        caches = tape.caches()
        assert [cache.shape[2] for cache in caches] == [2, 2]
    assert torch.allclose(torch.cat(out, dim=2), whole, atol=1e-6)


@torch.no_grad()
def test_frames_to_come_change_nothing() -> None:
    layer, x = conv(), torch.randn(1, 2, 4, 3, 3)
    before = layer.step(x, CacheTape(None))
    x[:, :, 3:] = 100.0
    assert torch.equal(layer.step(x, CacheTape(None))[:, :, :3], before[:, :, :3])


def test_the_newest_frames_do_not_hold_on_to_the_rest() -> None:
    x = torch.randn(1, 2, 50, 3, 3)
    kept = newest(x, 2)
    assert torch.equal(kept, x[:, :, 48:])
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_no_past_is_no_copy() -> None:
    x = torch.randn(1, 2, 1, 3, 3)
    assert with_past(x, None, 0) is x
