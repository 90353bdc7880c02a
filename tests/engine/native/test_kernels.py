"""What the C++ kernels refuse; what they compute is tested in `layers/test_packed.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack

from livereel.engine import native

pytestmark = pytest.mark.skipif(not native.dot_supported(), reason="no AVX512-BF16 here")


def half(*shape: int) -> object:
    return to_dlpack(torch.zeros(shape, dtype=torch.bfloat16))


def full(*shape: int) -> object:
    return to_dlpack(torch.zeros(shape))


def packed(outputs: int = 4, depth: int = 6, taps: int = 1) -> native.PackedMatrix:
    return native.PackedMatrix(half(outputs, depth, taps))


def linear(x: object, y: object, **given: object) -> None:
    rest = {"bias": None, "gelu": False, "residual": None, "gate": None, "threads": 1} | given
    native.linear(x, packed(), y, **rest)  # type: ignore[arg-type]


def turn(cos: object, *, x: object | None = None, sin: object | None = None) -> None:
    native.rotate(x or half(2, 1, 4), cos, sin or cos, half(2, 1, 4), 1)


def attend(q: object, k: object, v: object) -> None:
    native.attention(q, [k], [v], half(3, 2, 4), 1)


def convolve(x: object, taps: list[tuple[int, int, int]], out: object) -> None:
    native.convolve(x, packed(4, 2, len(taps)), taps, None, None, out, 1)


def pad(x: object, past: object | None, out: object, kept: object | None) -> None:
    native.pad(x, past, None, out, kept, 1)


TRANSPOSED = to_dlpack(torch.zeros(6, 2, dtype=torch.bfloat16).t())
PAIRS = [(0, 0, 0), (0, 0, 1)]
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an odd depth": (lambda: packed(depth=5), r"even depth; got shape \[4, 5, 1\]"),
    "float32 weights": (lambda: native.PackedMatrix(full(4, 6, 1)), "must be bfloat16"),
    "another width": (lambda: linear(half(2, 8), half(2, 4)), "as wide as the weights"),
    "gaps": (lambda: linear(TRANSPOSED, half(2, 4)), "x must be dense"),
    "rows that y lacks": (lambda: linear(half(3, 6), half(2, 4)), "of x's rows"),
    "half a bias": (lambda: linear(half(2, 6), half(2, 4), bias=half(4)), "must be float32"),
    "a short bias": (lambda: linear(half(2, 6), half(2, 4), bias=full(3)), "for each output"),
    "a short residual": (
        lambda: linear(half(2, 6), half(2, 4), residual=half(1, 4)), "of the size of y"),
    "gates for no rows": (
        lambda: linear(half(2, 6), half(2, 4), gate=full(3, 4)), "a part of those of y"),
    "gains for no rows": (
        lambda: native.layer_norm(half(2, 4), full(3, 4), full(3, 4), half(2, 4), 0.0, 1e-6, 1),
        "a part of those of x"),
    "another shift": (
        lambda: native.layer_norm(half(2, 4), full(1, 4), full(2, 4), half(2, 4), 0.0, 1e-6, 1),
        "as large as scale"),
    "rows of nothing": (
        lambda: native.layer_norm(half(2, 0), full(0), full(0), half(2, 0), 0.0, 1e-6, 1),
        "of rows with items"),
    "squares of nothing": (
        lambda: native.rms_norm(half(2, 0), full(0), 1e-6, half(2, 0), 1), "of rows with items"),
    "heads of nothing": (lambda: turn(full(2, 4), x=half(1, 1, 0)), "of rows with items"),
    "no dimensions": (
        lambda: native.rms_norm(half(), full(1), 1e-6, half(), 1), "of more dimensions"),
    "a row without dimensions": (lambda: linear(half(), half(2, 4)), "of more dimensions"),
    "an angle without dimensions": (lambda: turn(full()), "of more dimensions"),
    "a short gain": (lambda: native.rms_norm(half(2, 4), full(3), 1e-6, half(2, 4), 1), "gain"),
    "an odd head": (lambda: turn(full(2, 3), x=half(2, 1, 3)), "an even part of x's width"),
    "other sines": (lambda: turn(full(2, 1, 4), sin=full(1, 1, 4)), "as large as cos"),
    "other heads": (lambda: attend(half(3, 2, 4), half(3, 1, 4), half(3, 2, 4)), "q's heads"),
    "fewer values": (lambda: attend(half(3, 2, 4), half(3, 2, 4), half(2, 2, 4)), "same lengths"),
    "no keys": (lambda: attend(half(3, 2, 4), half(0, 2, 4), half(0, 2, 4)), "must be a key"),
    "taps outside": (
        lambda: convolve(half(1, 1, 3, 2), PAIRS, half(1, 1, 3, 4)), "large enough for all taps"),
    "taps far outside": (
        lambda: convolve(half(1, 1, 4, 2), [(0, 0, 0), (0, 0, 2**64 - 3)], half(1, 1, 3, 4)),
        "large enough for all taps"),
    "other channels": (
        lambda: convolve(half(1, 1, 4, 6), PAIRS, half(1, 1, 3, 4)), "as deep as the weights"),
    "no room": (
        lambda: pad(half(1, 4, 4, 2), None, half(1, 3, 4, 2), None), "at least as large as x"),
    "a past too long": (
        lambda: pad(half(1, 4, 4, 2), half(2, 4, 4, 2), half(2, 4, 4, 2), half(1, 4, 4, 2)),
        "past must be"),
    "nothing kept": (
        lambda: pad(half(1, 4, 4, 2), None, half(2, 4, 4, 2), None), "must be kept"),
    "other patches": (
        lambda: native.unfold(half(1, 2, 2, 12), half(1, 4, 6, 3), 1), "height . patch"),
    "few bytes": (
        lambda: native.to_bytes(half(4), np.zeros(3, np.uint8), 1), "of the size of x"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_only_capsules_are_taken() -> None:
    with pytest.raises(TypeError):
        native.PackedMatrix(torch.zeros(4, 6, 1))
    taken = half(4, 6, 1)
    torch.utils.dlpack.from_dlpack(taken)
    with pytest.raises(TypeError, match="nobody has taken"):
        native.PackedMatrix(taken)
