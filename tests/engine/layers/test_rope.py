from __future__ import annotations

import pytest
import torch

from livereel.engine.layers.rope import rope_table, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [12, 24, 64, 128])
def test_equals_complex_rotation_by_each_axis(head_dim: int) -> None:
    """As Wan defines it: time, rows and columns turn their own share of the pairs."""
    torch.manual_seed(0)
    first, frames, height, width = 5, 2, 3, 4
    x = torch.randn(1, frames * height * width, 2, head_dim)
    side = 2 * (head_dim // 6)
    shares = (head_dim - 2 * side, side, side)
    out = rotate(x, rope_table(first, frames, height, width, head_dim, device=CPU))
    token = 0
    for t in range(first, first + frames):
        for row in range(height):
            for column in range(width):
                angles = torch.cat(
                    [
                        place * 10000.0 ** (-torch.arange(0, share, 2).double() / share)
                        for place, share in zip((t, row, column), shares, strict=True)
                    ]
                )
                pairs = torch.view_as_complex(x[0, token].double().unflatten(-1, (-1, 2)))
                turned = pairs * torch.polar(torch.ones_like(angles), angles)
                expected = torch.view_as_real(turned).flatten(-2)
                assert torch.allclose(out[0, token].double(), expected, atol=1e-5)
                token += 1


def test_the_origin_turns_nothing_and_dtypes_stay() -> None:
    x = torch.randn(1, 1, 2, 12).bfloat16()
    out = rotate(x, rope_table(0, 1, 1, 1, 12, device=CPU))
    assert out.dtype == torch.bfloat16 and torch.equal(out, x)


def test_tables_are_kept_and_can_be_trained_through() -> None:
    with torch.inference_mode():
        table = rope_table(3, 1, 2, 2, 12, device=CPU)
    assert rope_table(3, 1, 2, 2, 12, device=CPU) is table
    x = torch.randn(1, 4, 1, 12, requires_grad=True)
    rotate(x, table).sum().backward()
    assert x.grad is not None
