"""What a DiT is told of the picture that it arrives at."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.sampling.goal import channels, draw, factor_of, shares


@pytest.mark.parametrize("goal", [5, 12, 13, 30, 200])
def test_following_the_shares_chunk_by_chunk_is_one_even_way(goal: int) -> None:
    place, at = 0.0, 0
    for frames in (1, 12, 12, 12):
        told = shares(frames, goal - at, first=at == 0)
        where = place + (100.0 - place) * told.double()
        numbers = torch.arange(at, at + frames, dtype=torch.float64)
        torch.testing.assert_close(where, (100 * numbers / goal).clamp_max(100), atol=1e-4, rtol=0)
        place, at = float(where[-1]), at + frames


def test_one_is_there_from_the_picture_on() -> None:
    assert shares(4, 0, first=False).tolist() == [1, 1, 1, 1]
    assert shares(4, -7, first=False).tolist() == [1, 1, 1, 1]
    assert shares(1, 0, first=True).tolist() == [1]
    assert shares(1, 9, first=True).tolist() == [0]


def test_planes_stand_before_the_picture_in_each_latent_frame() -> None:
    latent = torch.randn(1, 3, 1, 2, 5)
    drawn = draw(latent, torch.arange(9.0), 4)  # a stream's first latent frame, and two more
    assert drawn.shape == (1, channels(3, 4), 3, 2, 5) and factor_of(11, 3) == 4
    assert torch.equal(drawn[:, 4:7], latent.expand(-1, -1, 3, -1, -1))
    assert drawn[0, :4, :, 1, 3].T.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert torch.equal(drawn[:, :4], drawn[:, :4, :, :1, :1].expand(-1, -1, -1, 2, 5))
    y, x = ((torch.arange(n) + 0.5) / n for n in (2, 5))
    for sine, cosine, turns in ((7, 8, y[:, None]), (9, 10, x)):
        angle = torch.atan2(drawn[0, sine], drawn[0, cosine]) / (2 * torch.pi) % 1
        torch.testing.assert_close(angle, turns.expand(3, 2, 5))
