"""The C++ road of norm and SiLU against torch's, and when each is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from livereel.engine.layers import norm_silu as module
from livereel.engine.layers.norm import ChannelRMSNorm
from livereel.engine.layers.norm_silu import norm_silu_with_past

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make(dtype: torch.dtype, channels: int = 20, frames: int = 3) -> tuple[torch.Tensor, Any]:
    torch.manual_seed(0)
    norm = ChannelRMSNorm(channels, 3).requires_grad_(False)
    norm.gamma.normal_()
    x = torch.randn(2, channels, frames, 5, 7).to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d), norm.to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts calls of the core."""
    made: list[str] = []
    core = module.rms_norm_silu

    def counted(*arguments: Any) -> None:
        made.append("core")
        core(*arguments)

    monkeypatch.setattr(module, "rms_norm_silu", counted)
    return made


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("started", [True, False])
def test_the_core_equals_torch(
    calls: list[str], dtype: torch.dtype, length: int, started: bool
) -> None:
    x, norm = make(dtype)
    past = torch.randn(2, 20, length, 5, 7).to(dtype) if started else None
    out = norm_silu_with_past(x, norm, past, length)
    assert len(calls) == 2  # one for each clip of the batch
    expected = F.silu(norm(x.double()))
    assert out.dtype == dtype and out.shape[2] == length + 3
    assert (out[:, :, length:].double() - expected).abs().max() <= TOLERANCE[dtype] * 4
    kept = torch.zeros(2, 20, length, 5, 7) if past is None else past
    assert torch.equal(out[:, :, :length], kept.to(dtype))


def test_torch_takes_what_the_core_cannot(calls: list[str]) -> None:
    x, norm = make(torch.float32)
    norm_silu_with_past(x.contiguous(), norm, None, 2)  # another layout
    norm_silu_with_past(x.half(), norm.half(), None, 2)  # another dtype
    norm_silu_with_past(x.clone().requires_grad_(), norm.float(), None, 2)  # recorded
    assert calls == []


def test_gradients_flow(calls: list[str]) -> None:
    x, norm = make(torch.float32)
    x.requires_grad_()
    norm_silu_with_past(x, norm, None, 2).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert calls == []
