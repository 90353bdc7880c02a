"""The stream benchmark's model, which needs no GPU to be described."""

from __future__ import annotations

import pytest
import torch

from livereel.benchmarks import bench_wan


def test_its_model_is_the_published_one_in_half_precision() -> None:
    dit, vae = bench_wan.build(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in dit.parameters()) == 1_418_996_800
    assert dit.dtype == torch.bfloat16 == vae.post_quant_conv.weight.dtype
    assert dit.blocks[0].scale_shift_table.dtype == torch.float32
    assert vae.config.base_dim == 96 and dit.in_ring() is not None


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees none here"):
        bench_wan.main([])
