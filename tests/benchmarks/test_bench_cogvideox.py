"""The VAE benchmark's model, which needs no GPU to be described."""

from __future__ import annotations

import pytest
import torch

from livereel.benchmarks import bench_cogvideox


def test_its_model_is_the_published_one_in_half_precision() -> None:
    vae = bench_cogvideox.build(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in vae.decoder.parameters()) == pytest.approx(123.4e6, rel=1e-3)
    assert sum(p.numel() for p in vae.encoder.parameters()) == pytest.approx(92.2e6, rel=1e-3)
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    assert list(bench_cogvideox.peers(vae)) == [
        "diffusers", "diffusers, channels last",
    ]  # fmt: skip


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees none here"):
        bench_cogvideox.main([])
