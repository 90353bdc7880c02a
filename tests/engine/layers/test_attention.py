"""Both roads of attention against the formula in fp64."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.layers import attention as module
from livereel.engine.layers.attention import attention


@pytest.mark.parametrize("small", [0, 1 << 30])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 7), (64, 3)])
def test_equals_the_formula(
    small: int, queries: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", small)
    torch.manual_seed(0)
    q = torch.randn(2, queries, 3, 8)
    k, v = torch.randn(2, keys, 3, 8), torch.randn(2, keys, 3, 8)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) / 8**0.5
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double())
    assert torch.allclose(attention(q, k, v).double(), expected, atol=1e-6)
