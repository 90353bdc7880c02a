"""The recipe's parts on a few clips: every weight learns, and packing loses nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from livereel.engine.demo import train
from livereel.engine.demo.clips import CHUNKS, mosaics, pictures, render_story
from livereel.engine.demo.optimize import Average, load_weights, run_loop, save_weights
from livereel.engine.demo.scenes import all_captions, is_held_out
from livereel.engine.engine import Engine
from livereel.engine.models.wan.vae import WanVAE


def test_clips_are_of_the_shapes_that_training_takes() -> None:
    few = islice(mosaics(0, drawn=9), 2)
    assert [tuple(b.shape) for b in few] == [(12, 3, 5, 64, 64), (7, 3, 9, 64, 64)]
    batch = next(pictures(0))
    assert batch.shape == (2, 3, 9, 128, 128)
    assert -1 <= float(batch.min()) < float(batch.max()) <= 1
    assert torch.equal(batch, next(pictures(0))) and not torch.equal(batch, next(pictures(1)))


def test_a_story_changes_its_caption_at_chunk_edges_and_holds_nothing_held_out() -> None:
    rng = np.random.default_rng(0)
    drawn = [render_story(rng, CHUNKS) for _ in range(20)]
    assert all(frames.shape == (1 + 4 * (sum(CHUNKS) - 1), 128, 128, 3) for frames, _ in drawn)
    labels = [captions for _, captions in drawn]
    assert any(len(set(row)) == 2 for row in labels) and any(len(set(row)) == 1 for row in labels)
    assert all(row[0] == row[1] for row in labels)
    assert not any(is_held_out(caption) for row in labels for caption in row)


def test_every_weight_of_the_vae_learns() -> None:
    torch.manual_seed(0)
    vae = WanVAE.from_config(train.VAE_CONFIG)
    loss, parts = train.vae_loss(vae, next(mosaics(0, drawn=9))[:1])
    loss.backward()
    assert np.isfinite([float(loss), *parts.values()]).all()
    still = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_every_weight_of_the_dit_and_text_encoder_learns(rollout: float) -> None:
    torch.manual_seed(0)
    model = train.TextToVideo()
    # The last projection starts at zero and would hold back all gradients before it.
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    latents, captions = torch.randn(2, 16, sum(CHUNKS), 16, 16), torch.tensor([[0, 1, 2, 3]] * 2)
    loss, parts = train.dit_loss(model, latents, captions, 3, rollout)
    loss.backward()
    assert sorted(parts) == ["chunk0", "chunk1", "chunk2"]
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_loop_averages_weights_and_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, target = torch.nn.Linear(3, 1), torch.tensor([[1.0, -2.0, 3.0]])
    losses: list[float] = []

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(32, 3)
        loss = (model(x) - x @ target.T).square().mean()
        losses.append(float(loss.detach()))
        return loss, {}

    path = tmp_path / "linear.safetensors"
    run_loop(
        model, loss_of, minutes=0.02, rate=0.05, decay=0.9,
        save=lambda average: save_weights(average, path),
    )  # fmt: skip
    assert losses[-1] < losses[0] / 100
    averaged = torch.nn.Linear(3, 1)
    load_weights(averaged, path)
    assert torch.allclose(averaged.weight, target, atol=0.1)


def test_the_average_follows_fast_at_first() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model, decay=0.99)
    model.weight.data.fill_(1.0)
    average.update(model)
    assert float(average.module.weight) == pytest.approx(1 - 1 / 11)


def test_what_is_packed_unpacks_and_loads(tmp_path: Path) -> None:
    run, again, out = tmp_path / "run", tmp_path / "again", tmp_path / "model"
    torch.manual_seed(0)
    save_weights(train.TextToVideo(), run / "dit.safetensors")
    save_weights(WanVAE.from_config(train.VAE_CONFIG), run / "vae.safetensors")
    scale = {"mean": torch.zeros(16), "std": torch.ones(16)}
    train.save_file(scale, run / "pool.safetensors")
    train.write_model(run, out, steps=4, guidance=2.0)
    train.read_model(again, out)
    for name in ("dit.safetensors", "vae.safetensors"):
        before, after = load_file(run / name), load_file(again / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    engine = Engine.load(out, device="cpu", dtype="float32")
    assert len(engine.config.timesteps) == 4 and engine.config.window == 6
    assert engine.generate(all_captions()[0].text, frames=2).frames.shape == (2, 128, 128, 3)
