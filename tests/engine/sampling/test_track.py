"""Tracks: read, gone along and drawn as maps, each against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from livereel.engine.errors import InputError
from livereel.engine.sampling.track import check_track, draw, frames_of, glide, read_track


def test_maps_have_a_bump_where_each_frame_s_object_shall_be() -> None:
    track = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = draw(track, 3, (10, 12), 4, first=True, wraps=False)
    assert maps.shape == (1, 4, 3, 10, 12) and maps.dtype == torch.float32
    assert frames_of(3, 4, first=True) == 9
    for latent in range(3):
        for channel in range(4):
            frame = 0 if latent == 0 else 1 + 4 * (latent - 1) + channel
            x, y = (track[frame] * torch.tensor([12.0, 10.0])).tolist()
            for row, column in ((0, 0), (4, 7), (9, 11)):
                away = (row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2
                expected = math.exp(-away / 2)
                assert maps[0, channel, latent, row, column].item() == pytest.approx(
                    expected, abs=1e-6
                )


def test_maps_of_parts_are_the_parts_of_the_whole() -> None:
    track = torch.rand(21, 2, dtype=torch.float64)
    whole = draw(track, 6, (4, 5), 4, first=True, wraps=True)
    parts = [
        draw(track, 1, (4, 5), 4, first=True, wraps=True),
        draw(track[1:], 3, (4, 5), 4, first=False, wraps=True),
        draw(track[13:], 2, (4, 5), 4, first=False, wraps=True),
    ]
    assert torch.equal(whole, torch.cat(parts, dim=2))


def test_the_last_position_holds_and_an_open_one_is_no_bump() -> None:
    track = read_track([(0.5, 0.5), None, (0.25, 0.75)])
    maps = draw(track, 2, (4, 4), 4, first=False, wraps=False)[0].transpose(0, 1).flatten(0, 1)
    assert not maps[1].any() and maps[0].any()
    assert all(torch.equal(maps[i], maps[2]) for i in range(3, 8))


def test_a_bump_reaches_over_the_edge_where_the_picture_wraps() -> None:
    edge = read_track((0.0, 0.5))
    flat, round_ = (draw(edge, 1, (4, 8), 1, first=False, wraps=w)[0, 0, 0] for w in (False, True))
    assert flat[2, 7] < 1e-6 and torch.equal(round_[:, 0], round_[:, 7])


def test_a_glide_goes_evenly_and_the_shorter_way() -> None:
    start, goal = torch.tensor([0.9, 0.5]).double(), torch.tensor([0.1, 0.5]).double()
    path = glide(start, goal, 4, wraps=False)
    assert torch.allclose(path[:, 0], torch.tensor([0.7, 0.5, 0.3, 0.1]).double())
    path = glide(start, goal, 4, wraps=True)
    off = path[:, 0] - torch.tensor([0.95, 0.0, 0.05, 0.1]).double()
    assert ((off + 0.5) % 1 - 0.5).abs().max() < 1e-6
    open_ = torch.full((2,), math.nan).double()
    assert torch.equal(glide(open_, goal, 4, wraps=True), goal.unsqueeze(0))
    assert glide(start, open_, 4, wraps=True).isnan().all()


@pytest.mark.parametrize(
    ("control", "said"),
    [("here", "wanted a position"), (3, "wanted a position"), ([(0.5, 1.5)], "each from 0 to 1"),
     ([(0.5, math.nan)], "each from 0 to 1"), ([(0.5,)], "each from 0 to 1"),
     ([(True, 0.5)], "each from 0 to 1"), ([(0.5, 0.5)] * 100_001, "at most 100000"),
     ((0.5, 2.0), "a position is 0.5"), (b"ab", "wanted a position")],
)  # fmt: skip
def test_what_is_no_track_is_refused(control: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_track(control)


def test_tracks_are_read_and_checked() -> None:
    assert read_track((0.5, 1)).tolist() == [[0.5, 1.0]]
    assert read_track([]).shape == (0, 2)
    check_track(read_track([(0, 1), None]))
    for wrong in (
        torch.zeros(2),
        torch.zeros(3, 3),
        torch.zeros(0, 2),
        torch.full((1, 2), math.inf),
    ):
        with pytest.raises(InputError):
            check_track(wrong)
