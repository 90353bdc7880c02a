"""The exported pass on Triton's kernels, by their references, against the plain one."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.models.wan.ring_step import visible_runs
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig


@pytest.mark.parametrize(
    "positions",
    [
        [0, 1, 2, 3, 4],
        [2, 0, 1, 3, 4],  # a ring that has turned
        [-1, 1, 0, 2, 3],
        [0, -1, -1, 1, -1],  # a chunk that was padded
        [-1, -1, -1, 0, 1],
    ],
)
@pytest.mark.usefixtures("by_reference")
@torch.no_grad()
def test_equals_the_plain_step(positions: list[int]) -> None:
    torch.manual_seed(0)
    config = WanTransformerConfig(
        num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=32, ffn_dim=64, num_layers=2,
    )  # fmt: skip
    model = WanTransformer(config).eval()
    dit = model.in_ring()
    assert dit is not None
    for past, at in ((3, torch.tensor(positions)), (0, torch.arange(2))):
        inputs = (
            torch.randn(1, 4, 2, 4, 6), torch.tensor([600.0]), *torch.randn(2, 2, 5, 2, 64),
            *torch.randn(2, 2, past, 6, 2, 64), at,
        )  # fmt: skip
        wanted = model.step(past, 2, 4, 6)(*inputs)
        for x, y in zip(dit.step(past, 2, 4, 6)(*inputs), wanted, strict=True):
            assert x.shape == y.shape
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_runs_are_what_is_there_side_by_side() -> None:
    runs = visible_runs(torch.tensor([-1, 3, 0, -1, -1, 1, -1, 2, 4]))
    there = [run for run in runs.view(-1, 2).tolist() if run[1]]
    assert there == [[1, 2], [5, 1], [7, 2]]
    assert runs.dtype == torch.int32 and runs.shape == (1, 1, 9, 2)
