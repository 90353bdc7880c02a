"""Noise by (seed, chunk, step): the numbers it promises, and that they are normal."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from livereel.engine.errors import InputError
from livereel.engine.sampling.noise import normal

FROZEN = [
    "-0x1.30737c0000000p-5",
    "0x1.4d32f00000000p-8",
    "0x1.272d480000000p-2",
    "-0x1.670cde0000000p-1",
    "-0x1.8b71f40000000p-1",
    "0x1.17b1460000000p+0",
    "-0x1.99e3ba0000000p-5",
    "0x1.9da37e0000000p+0",
]
FROZEN_FAR = [
    "-0x1.ebe3d80000000p-1",
    "-0x1.9bf86a0000000p-3",
    "-0x1.19650e0000000p-2",
    "0x1.03749e0000000p-1",
]


def test_first_numbers_are_frozen() -> None:
    """A change here changes every video that a seed has ever made."""
    expected = [float.fromhex(text) for text in FROZEN]
    assert normal(42, 3, 1, (8,)).tolist() == expected
    assert normal(2**64 - 1, 2**63, 5, (4,)).tolist() == [float.fromhex(t) for t in FROZEN_FAR]


def test_same_arguments_same_numbers() -> None:
    first = normal(7, 0, 0, (2, 3, 4))
    assert first.shape == (2, 3, 4)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert torch.equal(first, normal(7, 0, 0, (2, 3, 4)))


def test_shape_does_not_change_the_stream() -> None:
    whole = normal(7, 1, 2, (1, 16, 3, 30, 52)).flatten()
    for shape in [(1,), (5,), (3, 85), (16, 16), (257,), (1, 16, 3, 10, 13)]:
        part = normal(7, 1, 2, shape).flatten()
        assert torch.equal(part, whole[: part.numel()])
    assert normal(7, 1, 2, (0, 4)).shape == (0, 4)


def test_every_coordinate_gives_another_stream() -> None:
    coordinates = list(
        itertools.product((0, 1, 2**32, 2**64 - 1), (0, 1, 2**32, 2**40, 2**63), (0, 1, 2**32 - 1))
    )
    streams = torch.stack([normal(*at, (256,)) for at in coordinates])
    assert len(torch.unique(streams[:, :4], dim=0)) == len(coordinates)
    correlation = torch.corrcoef(streams) - torch.eye(len(coordinates))
    assert correlation.abs().max() < 6 / math.sqrt(256)


def test_far_chunks() -> None:
    for chunk in (2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1):
        numbers = normal(0, chunk, 0, (4096,))
        assert abs(numbers.mean()) < 5 / math.sqrt(4096)
        assert abs(numbers.var() - 1) < 5 * math.sqrt(2 / 4096)


def test_numbers_are_normal() -> None:
    count = 1 << 20
    numbers = normal(11, 5, 3, (count,)).double()
    assert torch.isfinite(numbers).all()
    # Moments, each within five standard errors.
    assert abs(numbers.mean()) < 5 / math.sqrt(count)
    assert abs(numbers.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((numbers**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((numbers**4).mean() - 3) < 5 * math.sqrt(96 / count)
    # Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is passed once in a thousand draws.
    ordered = torch.special.ndtr(numbers.sort().values)
    ranks = torch.arange(count, dtype=torch.float64)
    distance = torch.maximum(ordered - ranks / count, (ranks + 1) / count - ordered).max()
    assert distance < 1.95 / math.sqrt(count)
    # Neighbors, of which pairs share a radius and blocks a counter, know nothing of one another.
    for lag in (1, 2, 3, 4):
        product = numbers[:-lag] * numbers[lag:]
        squares = (numbers[:-lag] ** 2 - 1) * (numbers[lag:] ** 2 - 1)
        assert abs(product.mean()) < 5 / math.sqrt(count)
        assert abs(squares.mean()) < 5 * 2 / math.sqrt(count)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 0), "seed"),
        ((2**64, 0, 0), "seed"),
        ((0, -1, 0), "chunk"),
        ((0, 2**64, 0), "chunk"),
        ((0, 0, -1), "step"),
        ((0, 0, 2**32), "step"),
    ],
)
def test_out_of_range(arguments: tuple[int, int, int], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is .* must lie between 0 and"):
        normal(*arguments, (4,))
