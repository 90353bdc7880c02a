"""What the model that ships is held to, at full length: some half an hour on two cores."""

from __future__ import annotations

import pytest

from livereel.engine.demo.arrival import arrive
from livereel.engine.demo.evaluate import evaluate
from livereel.engine.demo.steering import follow
from livereel.engine.engine import Engine


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_demo_reaches_its_goals() -> None:
    report = evaluate(
        Engine.load("demo", device="cpu"),
        clips=200, streams=8, stream_minutes=10.0, prompt_changes=100, vae_scenes=32,
    )  # fmt: skip
    assert {s.stage for s in report.scores} == {"clips", "VAE", "streams", "prompt changes"}
    missed = [f"{s.name}: {s.value:.1f} of {s.goal}" for s in report.scores if s.passed is False]
    assert not missed, report.to_markdown()


@pytest.mark.slow
def test_the_demo_goes_where_it_is_led() -> None:
    found = follow(Engine.load("demo", device="cpu"), streams=16, chunks=(1, 3, 3, 3, 3, 3))
    assert found.found == 1.0
    assert found.trajectory_error <= 4.0


@pytest.mark.slow
def test_the_demo_ends_with_the_picture_that_it_is_given() -> None:
    found = arrive(Engine.load("demo", device="cpu"), clips=16, frames=32)
    assert found.last_error <= 4.0
    assert found.last_psnr >= 25.0
