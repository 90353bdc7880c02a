"""How channels are cut into blocks; the tiles themselves are tested by the ops made of them."""

from __future__ import annotations

import pytest

from livereel.kernels.conv_tile import block_for, block_of, piece_of

WHOLE = {1: 16, 16: 16, 20: 32, 40: 48, 96: 96, 97: 128, 150: 160, 192: 192}
CUT = {256: 128, 320: 160, 384: 192, 512: 128, 640: 160, 768: 192, 1024: 128}


@pytest.mark.parametrize(("channels", "block"), [*WHOLE.items(), *CUT.items()])
def test_blocks_hold_all_channels_or_divide_them(channels: int, block: int) -> None:
    assert block_for(channels) == block
    assert block >= channels or channels % block == 0


@pytest.mark.parametrize(
    ("block", "parts"),
    [(16, (16, 0)), (48, (32, 16)), (96, (64, 32)), (128, (128, 0)), (192, (128, 64))],
)
def test_a_block_is_a_power_of_two_or_two_of_them(block: int, parts: tuple[int, int]) -> None:
    assert block_of(block) == parts


@pytest.mark.parametrize(
    ("block", "pixels", "piece"),
    [(96, 128, 32), (192, 128, 64), (192, 256, 32), (128, 64, 128), (48, 16, 16), (16, 256, 16)],
)
def test_pieces_divide_both_parts_of_a_block(block: int, pixels: int, piece: int) -> None:
    assert piece_of(block, pixels) == piece
    assert all(part % piece == 0 for part in block_of(block))
