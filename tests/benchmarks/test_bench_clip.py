"""Whole clips beside diffusers': the same frames, and figures that are exact under a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from livereel.benchmarks import bench_clip
from livereel.benchmarks.baseline_diffusers import Clip
from livereel.benchmarks.bench_clip import measure
from livereel.benchmarks.bench_vae import DifferError
from livereel.benchmarks.ceilings import Ceilings
from livereel.benchmarks.subject import Subject
from livereel.engine.errors import InputError

Small = Callable[..., Subject]
TOP = Ceilings(1e12, 1e10)


def clip(frames: int = 5, steps: int = 3, guidance: float = 5.0) -> Clip:
    return Clip(frames=frames, steps=steps, guidance=guidance)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("wan2.1-1.3b", 5), pytest.param("cogvideox-2b", 9, marks=pytest.mark.slow)],
)
def test_the_same_clip_is_timed(name: str, frames: int, small: Small) -> None:
    found, now = small(name).at(size=(64, 32)), iter(range(1000))
    section = measure(
        found, ["diffusers"], clip(frames), runs=2, top=TOP, clock=lambda: float(next(now))
    )
    assert [timing.seconds for timing in section.timings] == [(1.0, 1.0)] * 2
    assert [timing.frames for timing in section.timings] == [frames] * 2
    assert section.ratios["livereel over diffusers"].median == 1.0
    assert section.contents["livereel"] == section.contents["diffusers"]
    assert section.contents["livereel"].startswith("6 passes, full VAE, conversion; not cache pass")
    (note,) = section.notes
    assert note.startswith("the same frames as diffusers to ") and note.endswith("after 2 steps")
    setup = section.setup
    assert (setup["what"], setup["frames"], setup["steps"]) == ("clip", frames, 3)
    assert setup["guidance"] == "5" and "window" not in setup
    (work,) = section.work
    assert work.name == "clip" and work.seconds == 1.0


def test_a_dit_that_follows_control_is_led_nowhere() -> None:
    demo = Subject.load("demo", device="cpu", dtype="float32").at(size=(64, 32))
    section = measure(demo, ["diffusers"], clip(steps=1), runs=1, top=TOP)
    (note,) = section.notes
    assert float(note.removeprefix("the same frames as diffusers to ").split()[0]) > 80


def test_guidance_takes_two_passes_a_step() -> None:
    assert clip(steps=3).passes == 6 and clip(steps=3, guidance=1.0).passes == 3


def test_what_cannot_be_compared_is_not(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small("wan2.1-1.3b").at(size=(64, 32))
    with pytest.raises(InputError, match="such as 5"):
        measure(found, [], clip(frames=4), runs=1, top=TOP)
    with pytest.raises(InputError, match="unknown baseline 'loop'"):
        measure(found, ["loop"], clip(), runs=1, top=TOP)
    with pytest.raises(InputError, match="take --decoder full, or --baseline none"):
        measure(replace(found, decoder="tiny"), ["diffusers"], clip(), runs=1, top=TOP)
    monkeypatch.setattr(bench_clip, "LEAST_DB", 1000.0)
    with pytest.raises(DifferError, match="so no speed is reported"):
        measure(found, ["diffusers"], clip(), runs=1, top=TOP)
