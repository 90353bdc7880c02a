"""A model on several ranks makes what it makes on one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.benchmarks.bench_scaling import LINKS, predict, shape_of
from livereel.engine.parallel.launch import Ranks

SIZES = st.tuples(st.integers(2, 5), st.integers(2, 5))
CASES = st.fixed_dictionaries(
    {
        "heads": st.integers(4, 7),
        "frames": st.integers(1, 4),
        "side": SIZES,
        "batch": st.sampled_from([1, 2]),
        "timed": st.booleans(),
    }
)
KINDS = st.sampled_from(["wan", "wan", "rotary", "waves", "1.5"])


@settings(settings.get_profile("ranks"), max_examples=15)
@given(kind=KINDS, case=CASES)
def test_pass_on_two(two_ranks: Ranks, jobs: ModuleType, kind: str, case: dict[str, Any]) -> None:
    apart = two_ranks.run(jobs.share_pass, 2, kind, case)
    assert all(one <= 1e-5 for one in apart)


@pytest.mark.slow
@settings(settings.get_profile("ranks"), max_examples=100)
@given(ranks=st.integers(1, 4), kind=KINDS, case=CASES)
def test_pass(
    four_ranks: Ranks, jobs: ModuleType, ranks: int, kind: str, case: dict[str, Any]
) -> None:
    apart = four_ranks.run(jobs.share_pass, ranks, kind, case)[:ranks]
    assert all(one <= 1e-5 for one in apart)


def test_too_little_to_share(two_ranks: Ranks, jobs: ModuleType) -> None:
    case: dict[str, Any] = dict(heads=1, frames=2, side=(2, 3), batch=1, timed=False)
    said = two_ranks.run(jobs.share_pass, 2, "wan", case)
    assert said == ["2 ranks share a pass; this one has 1 heads, and wants as many at least"] * 2
    case = {**case, "heads": 2, "side": (1, 1)}
    assert "1 tokens in a frame" in two_ranks.run(jobs.share_pass, 2, "wan", case)[0]


@pytest.mark.parametrize("batch", [1, 2])
def test_traffic_is_what_is_reckoned(two_ranks: Ranks, jobs: ModuleType, batch: int) -> None:
    case: dict[str, Any] = dict(heads=4, frames=3, side=(2, 3), batch=batch, timed=False)
    model, inputs = jobs.make_model("wan", **case)
    shape = shape_of(model, inputs[0][:1], inputs[2][:1])
    step = predict(shape, 2, LINKS["PCIe"], flops=1.0, guided=batch == 2)
    assert step is not None
    assert two_ranks.run(jobs.send_pass, "wan", case) == [step.sent, step.sent]


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize(
    ("kind", "frames"), [("clip_folder", [13, 12]), ("cogvideox_folder", [9, 16])]
)
def test_video_to_video_on_two(
    two_ranks: Ranks, jobs: ModuleType, kind: str, frames: list[int], tile: bool,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Ranks share the encoder, too."""
    folder = str(request.getfixturevalue(kind))
    apart, bright = two_ranks.run(jobs.clip, 2, folder, video=True, tile=tile)[0]
    assert apart <= 1
    assert bright > 0
    assert two_ranks.run(jobs.frames_encoded, folder, 25) == frames


@pytest.mark.parametrize("kind", ["clip_folder", "cogvideox_folder"])
def test_clip_on_two(
    two_ranks: Ranks, jobs: ModuleType, kind: str, request: pytest.FixtureRequest
) -> None:
    """Of seven latent frames, which two ranks decode in two rounds."""
    apart, bright = two_ranks.run(jobs.clip, 2, str(request.getfixturevalue(kind)))[0]
    assert apart <= 1
    assert bright > 0


def check_stream(
    ranks: Ranks, jobs: ModuleType, count: int, folder: Path, recipe: dict[str, Any],
    levels: int = 0, **case: Any,
) -> None:  # fmt: skip
    """Bitwise unless levels may be off: each rank computes what one alone does, in the same way."""
    pairs = ranks.run(jobs.stream, count, str(folder), recipe, **case)[0]
    assert len(pairs) >= 3
    for alone, made, one, other in pairs:
        assert one == other
        assert np.abs(alone.astype(int) - made).max() <= levels
    assert any(alone.std() > 0 for alone, *_ in pairs)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_stream_on_two(two_ranks: Ranks, jobs: ModuleType, tiny_folder: Path, scale: float) -> None:
    check_stream(two_ranks, jobs, 2, tiny_folder, {"guidance_scale": scale}, frames=37, cut=None)


def test_stream_with_cuts(two_ranks: Ranks, jobs: ModuleType, tiny_folder: Path) -> None:
    check_stream(two_ranks, jobs, 2, tiny_folder, {"sinks": 1}, frames=50, cut=15)


@pytest.mark.slow
def test_stream_on_three(four_ranks: Ranks, jobs: ModuleType, tiny_folder: Path) -> None:
    recipe = {"guidance_scale": 2.0}
    check_stream(four_ranks, jobs, 3, tiny_folder, recipe, frames=60, cut=15)
    check_stream(four_ranks, jobs, 1, tiny_folder, recipe, frames=37, cut=None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip_folder", "cogvideox_folder"])
def test_clip_on_more(
    four_ranks: Ranks, jobs: ModuleType, kind: str, request: pytest.FixtureRequest
) -> None:
    # The tiny models have two heads: four ranks are two for each prompt, and three are too many.
    assert four_ranks.run(jobs.clip, 4, str(request.getfixturevalue(kind)))[0][0] <= 1


@pytest.mark.slow
def test_stream_on_four(four_ranks: Ranks, jobs: ModuleType, tiny_folder: Path) -> None:
    for scale in (1.0, 2.0):
        recipe = {"guidance_scale": scale}
        check_stream(four_ranks, jobs, 4, tiny_folder, recipe, levels=1, frames=60, cut=15)
