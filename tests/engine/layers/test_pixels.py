from __future__ import annotations

import numpy as np
import torch

from livereel.engine.layers.pixels import to_float, to_uint8


def test_every_level_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(to_uint8(to_float(levels)), levels)


def test_axes_and_ends() -> None:
    frames = np.zeros((2, 3, 4, 3), np.uint8)
    frames[1, 2, 3] = (0, 128, 255)
    floats = to_float(frames)
    assert floats.shape == (1, 3, 2, 3, 4)
    assert floats[0, 0, 1, 2, 3] == -1.0 and floats[0, 2, 1, 2, 3] == 1.0


def test_what_lies_outside_is_clamped_and_halves_are_rounded() -> None:
    x = (
        torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.9999, 7.0])
        .view(1, 1, 1, 1, 6)
        .repeat(1, 3, 1, 1, 1)
    )
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    assert to_uint8(x.bfloat16()).dtype == np.uint8
