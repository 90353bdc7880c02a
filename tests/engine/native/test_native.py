"""The C++ core from Python: the generator, the transform to normals, the buffers it takes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from livereel.engine.native import fill_normal, philox4x32_10

ONES = 0xFFFFFFFF
Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_random123_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert list(philox4x32_10(counter, key)) == expected


@pytest.mark.parametrize(
    ("counter", "key"),
    [
        ([0, 0, 0], [0, 0]),
        ([0, 0, 0, 0], [0, 0, 0]),
        ([0, 0, 0, 2**32], [0, 0]),
        ([-1] * 4, [0, 0]),
    ],
)
def test_words_that_do_not_fit(counter: list[int], key: list[int]) -> None:
    with pytest.raises(TypeError):
        philox4x32_10(counter, key)


def words(seed: int, chunk: int, step: int, blocks: int) -> npt.NDArray[np.uint32]:
    """Words `[blocks, 4]`, in integer arithmetic of Python's own."""
    mask = 0xFFFFFFFF
    rows = []
    for block in range(blocks):
        x0, x1, x2, x3 = block, step, chunk & mask, chunk >> 32
        k0, k1 = seed & mask, seed >> 32
        for _ in range(10):
            p0, p1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
            x0, x1, x2, x3 = (p1 >> 32) ^ x1 ^ k0, p1 & mask, (p0 >> 32) ^ x3 ^ k1, p0 & mask
            k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
        rows.append([x0, x1, x2, x3])
    return np.array(rows, dtype=np.uint32)


def polynomial(z: Floats, *coefficients: float) -> Floats:
    """Horner's rule in float32; coefficients from the constant upward."""
    total = np.full_like(z, np.float32(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        total = np.float32(coefficient) + z * total
    return total


def normals_as_documented(seed: int, chunk: int, step: int, blocks: int) -> Floats:
    """What `csrc/philox.h` says, written again in numpy, whose float32 is rounded step by step."""
    f32 = np.float32
    x = words(seed, chunk, step, blocks).reshape(-1, 2)
    u = x[:, 0].astype(f32) * f32(2.0**-32) + f32(2.0**-33)

    i = u.view(np.int32) - np.int32(0x3F3504F3)
    e = (i >> 23).astype(f32)
    f = ((i & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(f32) - f32(1)
    s = f / (f32(2) + f)
    z = s * s
    p = z * polynomial(z, *(f32(2) / f32(n) for n in (3, 5, 7, 9)))
    log = e * f32(0.693359375) + (e * f32(-2.12194440e-4) + (s * p + f32(2) * s))
    r = np.sqrt(f32(-2) * log)

    y = x[:, 1]
    q = (y + np.uint32(2**29)) >> np.uint32(30)
    a = (y - (q << np.uint32(30))).view(np.int32).astype(f32) * f32(np.pi / 2**31)
    z = a * a
    sin = a + a * (z * polynomial(z, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880))
    cos = f32(1) + z * polynomial(z, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800)
    turned_cos = np.choose(q, [cos, -sin, -cos, sin])
    turned_sin = np.choose(q, [sin, cos, -sin, -cos])
    return np.stack([r * turned_cos, r * turned_sin], axis=1).reshape(-1)


@pytest.mark.parametrize(
    ("seed", "chunk", "step"),
    [(0, 0, 0), (1234, 5, 3), (2**64 - 1, 2**63, 2**32 - 1), (0x123456789ABCDEF, 2**40 + 1, 17)],
)
def test_normals_are_bitwise_as_documented(seed: int, chunk: int, step: int) -> None:
    out = np.empty(4 * 600, dtype=np.float32)
    fill_normal(out, seed=seed, chunk=chunk, step=step)
    expected = normals_as_documented(seed, chunk, step, 600)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_buffers_of_another_kind_are_refused() -> None:
    for out in (
        np.empty(4, dtype=np.float64),
        np.empty((2, 2), dtype=np.float32),
        np.empty(8, dtype=np.float32)[::2],
    ):
        with pytest.raises(ValueError, match="contiguous one-dimensional float32"):
            fill_normal(out, seed=0, chunk=0, step=0)
    locked = np.empty(4, dtype=np.float32)
    locked.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        fill_normal(locked, seed=0, chunk=0, step=0)
    fill_normal(np.empty(0, dtype=np.float32), seed=0, chunk=0, step=0)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 2**64}, {"chunk": -1}, {"chunk": 2**64}, {"step": 2**32}]
)
def test_numbers_that_do_not_fit(wrong: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        fill_normal(np.empty(4, dtype=np.float32), **({"seed": 0, "chunk": 0, "step": 0} | wrong))


def test_missing_core_is_explained() -> None:
    code = (
        "import sys; sys.modules['livereel.engine.native._core'] = None\n"
        "try:\n    import livereel.engine.native\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "native core is not built" in done.stdout
