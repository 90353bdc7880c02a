"""The recipe's parts on a few clips: every weight learns, and packing loses nothing."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from livereel.engine.demo import optimize, train
from livereel.engine.demo.clips import (
    CHUNKS,
    draw_scenes,
    mosaics,
    pictures,
    render_story,
    stories,
)
from livereel.engine.demo.losses import dit_loss, vae_loss
from livereel.engine.demo.model import VAE_CONFIG, TextToVideo
from livereel.engine.demo.optimize import (
    Average,
    MuonAndAdam,
    load_weights,
    run_loop,
    save_weights,
)
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
    drawn = [draw_scenes(rng, CHUNKS) for _ in range(20)]
    assert render_story(drawn[0], CHUNKS).shape == (1 + 4 * (sum(CHUNKS) - 1), 128, 128, 3)
    labels = [[scene.caption for scene in row] for row in drawn]
    assert any(len(set(row)) == 2 for row in labels) and any(len(set(row)) == 1 for row in labels)
    assert all(row[0] == row[1] for row in labels)
    assert not any(is_held_out(caption) for row in labels for caption in row)


def test_some_stories_are_led_others_arrive_and_some_do_neither() -> None:
    batches = list(islice(stories(CHUNKS, 4, seed=0), 5))
    first = batches[0]
    assert first.frames.shape == (4, 37, 128, 128, 3) and first.captions.shape == (4, 4)
    assert first.control.shape == (4, 4, 10, 16, 16) and first.goal.shape == (4, 1, 128, 128, 3)
    led = torch.cat([one.control for one in batches]).flatten(1).amax(1) > 0
    arrive = torch.cat([one.told for one in batches]) < 10
    shares = torch.cat([one.shares for one in batches]).flatten(1).amax(1)
    assert not (led & arrive).any() and not shares[~arrive].any()
    kinds = int(led.sum()), int(arrive.sum()), int((~led & ~arrive).sum())
    assert min(kinds) > 1
    single = next(stories((1,), 2, seed=0))
    assert [tuple(part.shape) for part in vars(single).values()] == [
        (2, 1, 128, 128, 3), (2, 1), (2, 4, 1, 16, 16), (2, 1, 128, 128, 3), (2, 4, 1), (2,),
    ]  # fmt: skip


def test_every_weight_of_the_vae_learns() -> None:
    torch.manual_seed(0)
    vae = WanVAE.from_config(VAE_CONFIG)
    loss, parts = vae_loss(vae, next(mosaics(0, drawn=9))[:1])
    loss.backward()
    assert np.isfinite([float(loss), *parts.values()]).all()
    still = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_every_weight_of_the_dit_and_text_encoder_learns(rollout: float) -> None:
    torch.manual_seed(0)
    model = TextToVideo()
    # The last projection starts at zero and would hold back all gradients before it.
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    latents, control = (torch.randn(2, c, sum(CHUNKS[:3]), 16, 16) for c in (16, 28))
    captions = torch.tensor([[0, 1, 2]] * 2)
    loss, parts = dit_loss(model, latents, captions, control, rollout)
    loss.backward()
    assert sorted(parts) == ["chunk0", "chunk1", "chunk2"]
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_loop_averages_weights_and_lowers_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()  # each look at the clock finds it half a millisecond on
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 2000)
    monkeypatch.setattr(optimize, "time", clock)
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


def test_the_optimizer_moves_kernels_however_they_lie_in_memory() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv3d(5, 32, (1, 2, 2)), torch.nn.Conv2d(32, 16, 3))
    model[1].to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = MuonAndAdam(model, rate=0.1)
    model[0](torch.randn(2, 5, 1, 6, 6)).square().mean().backward()
    model[1](torch.randn(2, 32, 5, 5)).square().mean().backward()
    optimizer.step(1.0)
    for old, new in zip(before, model.parameters(), strict=True):
        assert old.shape == new.shape and not torch.equal(old, new)


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
    save_weights(TextToVideo(), run / "dit.safetensors")
    save_weights(WanVAE.from_config(VAE_CONFIG), run / "vae.safetensors")
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
