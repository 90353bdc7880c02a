"""What several kernels share: how a row of channels is cut for registers, and SiLU.

Blocks are powers of two. A row of 96 or 5,120 channels is held as three blocks of 32 or five of
1,024, since a quarter to a third of one block of 128 or 8,192 would be computed for nothing.
"""

from __future__ import annotations

from .jit import INTERPRETED, jit, tl

_MOST_PARTS = 8


def parts(width: int) -> tuple[int, int]:
    """A block (a power of two) and how many of them cover a row of `width` channels.

    They cover it exactly where few wide blocks can, else one block is wider than the row.
    """
    block = width & -width
    if block >= 16 and width // block <= _MOST_PARTS:
        return block, width // block
    return 1 << (width - 1).bit_length(), 1


if INTERPRETED:

    @jit
    def silu(b_x: tl.tensor) -> tl.tensor:
        """`x sigmoid(x)` of fp32 values."""
        return b_x / (1.0 + tl.exp(-b_x))

else:

    @jit
    def silu(b_x: tl.tensor) -> tl.tensor:
        """`x sigmoid(x)` of fp32 values, to some 1e-6 of the result.

        Written in PTX, since Triton's `exp` and `/` scale what would be subnormal before and after,
        which takes twice the instructions; here such a number is 0 and nothing is lost by it.
        """
        LOG2_E: tl.constexpr = 1.4426950408889634
        b_sigmoid = tl.inline_asm_elementwise(
            """{
            .reg .f32 t;
            ex2.approx.ftz.f32 t, $1;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 $0, t;
            }""",
            "=r,r",
            [-LOG2_E * b_x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        return b_x * b_sigmoid
