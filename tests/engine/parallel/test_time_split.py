"""A VAE's clip over ranks against one rank's, what travels between them and what each holds."""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.parallel.launch import Ranks
from livereel.engine.parallel.time_split import rounds

ROADS = ("", "channels last", "fused")


def check(processes: Ranks, vae_jobs: ModuleType, **case: Any) -> list[dict[str, Any]]:
    """Split on the first `ranks` of them; what each says."""
    answers: list[dict[str, Any]] = processes.run(vae_jobs.split, **case)
    got, one = answers[0]["shapes"]
    assert got == one
    assert answers[0]["apart"] <= 1e-5
    return answers


@st.composite
def cases(draw: st.DrawFn, most: int) -> dict[str, Any]:
    """Any split of a short clip of an odd size, whole or in two, over up to so many ranks."""
    ranks = draw(st.integers(1, most))
    shares = st.tuples(st.integers(1, 3), *[st.integers(0, 3)] * (ranks - 1))
    counts = draw(st.lists(shares, min_size=1, max_size=2))
    vae = draw(st.sampled_from(["wan", "wan late", "wan 2.2", "cogvideox"]))
    return dict(
        ranks=ranks,
        counts=None if vae == "cogvideox" else draw(st.sampled_from([counts, None])),
        cuts=[sum(each) for each in counts],
        vae=vae,
        way=draw(st.sampled_from(["decode", "encode"])),
        road=draw(st.sampled_from(ROADS)),
        size=(draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        batch=draw(st.integers(1, 2)),
    )


@settings(settings.get_profile("ranks"), max_examples=20)
@given(case=cases(2))
def test_two_ranks_make_what_one_makes(
    two_ranks: Ranks, vae_jobs: ModuleType, case: dict[str, Any]
) -> None:
    check(two_ranks, vae_jobs, **case)


@pytest.mark.slow
@settings(settings.get_profile("ranks"), max_examples=150)
@given(case=cases(4))
def test_four_ranks_make_what_one_makes(
    four_ranks: Ranks, vae_jobs: ModuleType, case: dict[str, Any]
) -> None:
    check(four_ranks, vae_jobs, **case)


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize("road", ROADS)
def test_chunks_go_round_the_ranks(
    two_ranks: Ranks, vae_jobs: ModuleType, way: str, road: str
) -> None:
    """Of three chunks, and then one, the ranks run one after the other in turn."""
    case: dict[str, Any] = dict(ranks=2, vae="cogvideox", way=way, cuts=[7, 2], size=(3, 5))
    check(two_ranks, vae_jobs, **case, road=road)


def test_ranks_are_processes(two_ranks: Ranks) -> None:
    assert len({os.getpid(), *two_ranks.pids}) == 3


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_caches_are_all_that_travels(
    two_ranks: Ranks, vae_jobs: ModuleType, way: str, road: str
) -> None:
    """Rank 0 sends each convolution's cache, as one rank alone would have kept it, and no more;
    rank 1 what it has made."""
    first, last = check(
        two_ranks,
        vae_jobs,
        ranks=2,
        vae="wan",
        way=way,
        cuts=[5],
        counts=[[3, 2]],
        size=(3, 5),
        road=road,
    )
    assert first["sent"] == [4 * math.prod(shape) for shape in first["caches"]]
    made = list(first["shapes"][0])
    made[2] = 8 if way == "decode" else 2
    assert last["sent"] == [4 * math.prod(made)]
    assert first["other"] == {"recv_": 1} and last["other"] == {"recv_": len(first["sent"])}


def test_a_cache_is_two_frames_of_a_layers_input(two_ranks: Ranks, vae_jobs: ModuleType) -> None:
    """Counted by hand: the decoder's first convolution sees 4 channels, its last 8."""
    first, _ = check(two_ranks, vae_jobs, ranks=2, vae="wan", way="decode", cuts=[4], size=(3, 5))
    assert first["sent"][0] == 2 * 4 * (3 * 5) * 4
    assert first["sent"][-1] == 2 * 8 * (12 * 20) * 4


@pytest.mark.parametrize("road", ["", "channels last"])
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_each_of_two_ranks_holds_little_more_than_half(
    two_ranks: Ranks, vae_jobs: ModuleType, way: str, road: str
) -> None:
    """Of the activations that one rank holds at most; `Watch` says what is counted."""
    answers = check(
        two_ranks, vae_jobs, ranks=2, vae="wan", way=way, cuts=[11], size=(4, 6), road=road
    )
    parts = [answer["peak"] / answers[0]["alone"] for answer in answers]
    assert max(parts) <= 0.6, parts


def test_clips_and_counts_that_do_not_fit(two_ranks: Ranks, vae_jobs: ModuleType) -> None:
    case: dict[str, Any] = dict(ranks=2, vae="wan", way="decode", size=(2, 2))
    assert "the clip has no frames" in two_ranks.run(vae_jobs.refused, **case, cuts=[0])[0]
    for counts in ([4], [2, 1], [0, 4], [5, -1]):
        said = two_ranks.run(vae_jobs.refused, **case, cuts=[4], counts=[counts])
        assert said[0].startswith(f"counts are {counts} for 4 latent frames on 2 ranks; wanted")
    said = two_ranks.run(
        vae_jobs.refused, **{**case, "vae": "cogvideox"}, cuts=[4], counts=[[2, 2]]
    )
    assert "none for a VAE that has chunks" in said[1]


def test_rounds() -> None:
    assert rounds([3, 2, 2, 2], 2) == [[3, 2], [2, 2]] and rounds([3, 2], 4) == [[3, 2, 0, 0]]
