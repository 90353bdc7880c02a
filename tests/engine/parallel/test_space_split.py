"""A VAE's stream over ranks that hold bands of rows against one rank's, and what travels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.parallel.launch import Ranks


def check(processes: Ranks, vae_jobs: ModuleType, **case: Any) -> list[dict[str, Any]]:
    """Stream on the first `ranks` of them; what each says."""
    answers: list[dict[str, Any]] = processes.run(vae_jobs.split_rows, **case)
    got, one = answers[0]["shapes"]
    assert got == one
    assert answers[0]["apart"] <= 1e-5
    return answers


@st.composite
def cases(draw: st.DrawFn, most: int) -> dict[str, Any]:
    """A stream of a few chunks of an odd size, over up to so many ranks."""
    ranks = draw(st.integers(1, most))
    return dict(
        ranks=ranks,
        cuts=draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)),
        vae=draw(st.sampled_from(["wan", "wan late", "wan 2.2", "cogvideox"])),
        way=draw(st.sampled_from(["decode", "encode"])),
        road=draw(st.sampled_from(["", "channels last"])),
        size=(draw(st.integers(ranks, 7)), draw(st.integers(1, 4))),
        batch=draw(st.integers(1, 2)),
    )


@settings(settings.get_profile("ranks"), max_examples=15)
@given(case=cases(2))
def test_two_ranks_make_what_one_makes(
    two_ranks: Ranks, vae_jobs: ModuleType, case: dict[str, Any]
) -> None:
    check(two_ranks, vae_jobs, **case)


@pytest.mark.slow
@settings(settings.get_profile("ranks"), max_examples=100)
@given(case=cases(4))
def test_four_ranks_make_what_one_makes(
    four_ranks: Ranks, vae_jobs: ModuleType, case: dict[str, Any]
) -> None:
    check(four_ranks, vae_jobs, **case)


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_border_rows_of_new_frames_travel(two_ranks: Ranks, vae_jobs: ModuleType, way: str) -> None:
    """And attention's keys and values, for each layer and no more; and in the end what the lower
    band's rank has made."""
    upper, lower = check(
        two_ranks, vae_jobs, ranks=2, vae="wan", way=way, cuts=[1, 2], size=(5, 3)
    )  # bands of 3 and 2 latent rows
    numbers = [(3 * row if stride == 0 else row, stride) for row, stride in upper["borders"]]
    assert upper["sent"][1] == [4 * row for row, stride in numbers if stride != 2]
    numbers = [(2 * row if stride == 0 else row, stride) for row, stride in upper["borders"]]
    b, c, frames, height, width = upper["shapes"][0]
    made = b * c * frames * (height // 5 * 2) * width
    assert lower["sent"][1] == [4 * row for row, _ in numbers] + [4 * made]
    assert min(row for row, _ in numbers) > 0 and len(numbers) > 10


def test_caches_stay_and_have_the_rows_beside_them(two_ranks: Ranks, vae_jobs: ModuleType) -> None:
    upper, lower = check(
        two_ranks, vae_jobs, ranks=2, vae="wan", way="decode", cuts=[2], size=(5, 3)
    )
    assert upper["caches"][0] == (1, 4, 2, 3 + 2, 3) and lower["caches"][0] == (1, 4, 2, 2 + 2, 3)


def test_fewer_rows_than_ranks(two_ranks: Ranks, vae_jobs: ModuleType) -> None:
    _, idle = check(two_ranks, vae_jobs, ranks=2, vae="wan", way="decode", cuts=[1, 1], size=(1, 3))
    assert idle["sent"] == [[], []] and idle["caches"] == []


def test_rows_that_do_not_fit(two_ranks: Ranks, vae_jobs: ModuleType) -> None:
    said = two_ranks.run(vae_jobs.refused_rows, "")
    assert said == ["frames have 6 rows; a split needs a multiple of 4"] * 2
    said = two_ranks.run(vae_jobs.refused_rows, "fused")
    assert said == ["FusedVAE sees no rows beside its own; wanted torch's road"] * 2
