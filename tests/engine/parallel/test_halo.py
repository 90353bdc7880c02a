"""What a convolution gets of its neighbor, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from livereel.engine.layers.causal_conv import CacheTape, CausalConv3d
from livereel.engine.models.wan import fused_vae
from livereel.engine.parallel.group import Group
from livereel.engine.parallel.halo import HaloTape, Route


class Before:
    """A group in which the rank before sends `halo`, and that notes what is done when."""

    def __init__(self, halo: Tensor) -> None:
        self.halo, self.received = halo, torch.empty(0)
        self.events: list[str] = []

    def exchange(self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> Before:
        self.events += [f"to {place}" for place in sent] + [f"from {place}" for place in received]
        for buffer in received.values():
            self.received = buffer
        return self

    def wait(self) -> None:
        self.events.append("wait")
        self.received.copy_(self.halo)


def tape(before: Before, time: int, after: int | None = 2) -> HaloTape:
    return HaloTape(None, Route(cast(Group, before), 0, after), time)


@pytest.mark.interpreter
def test_the_kernels_cache_is_the_tensor_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = CausalConv3d(8, 8, (3, 3, 3)).requires_grad_(False)
    x = torch.nn.functional.pad(torch.randn(1, 5, 3, 4, 8), (0, 0, 0, 1))
    layer, whole = fused_vae.Conv(conv), CacheTape(None)
    wanted = layer.step(x, whole).x
    before = Before(x[:, :2])
    kernel, caches = fused_vae.causal_conv3d, []

    def launch(x: Tensor, cache: Tensor | None, *args: Any, **options: Any) -> Any:
        caches.append((cache, [*before.events]))
        return kernel(x, cache, *args, **options)

    monkeypatch.setattr(fused_vae, "causal_conv3d", launch)
    result = layer.step(x[:, 2:], tape(before, time=1)).x
    torch.testing.assert_close(result, wanted[:, 2:], rtol=0, atol=1e-5)
    (own, early), (came, late) = caches
    assert own.data_ptr() == x[:, 2:].data_ptr() and early == ["to 2", "from 0"]
    assert came is before.received and late == ["to 2", "from 0", "wait"]


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_what_needs_no_halo_comes_before_it(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole numbers, whose sums are exact, the result is one rank's to the bit."""
    torch.manual_seed(0)
    conv = CausalConv3d(2, 3, (3, 3, 3)).requires_grad_(False)
    for p in conv.parameters():
        p.random_(-9, 10)
    x = torch.randint(-9, 10, (1, 2, 2 + frames, 3, 4)).float()
    wanted = conv.step(x, CacheTape(None))[:, :, 2:]
    before = Before(x[:, :, :2].movedim(1, -1))
    forward = conv.forward

    def noted(x: Tensor) -> Tensor:
        before.events.append(f"{x.shape[2]} frames")
        return forward(x)

    monkeypatch.setattr(conv, "forward", noted)
    assert torch.equal(conv.step(x[:, :, 2:], tape(before, time=2)), wanted)
    ends = {
        1: ["from 0", "wait", "to 2", "wait", "3 frames"],
        2: ["to 2", "from 0", "wait", "4 frames"],
        3: ["to 2", "from 0", "3 frames", "wait", "4 frames"],
        9: ["to 2", "from 0", "6 frames", "5 frames", "wait", "4 frames"],
    }
    assert before.events == ends[frames]


def test_the_last_rank_keeps_its_caches() -> None:
    x = torch.randn(1, 2, 4, 3, 4)
    before = Before(torch.zeros(1, 2, 3, 4, 2))
    last = tape(before, time=2, after=None)
    CausalConv3d(2, 3, (3, 3, 3)).requires_grad_(False).step(x, last)
    (kept,) = last.caches()
    assert torch.equal(kept, x[:, :, 2:])
