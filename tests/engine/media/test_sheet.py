from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from livereel.engine import InputError, ResourceError
from livereel.engine.media.sheet import SheetSink, contact_sheet


def numbered(count: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Flat frames, the i-th of brightness i + 100."""
    levels = np.arange(100, 100 + count, dtype=np.uint8)
    return np.ascontiguousarray(
        np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))
    )


def test_frames_run_left_to_right_and_down() -> None:
    sheet = contact_sheet(numbered(5), columns=3)
    assert sheet.shape == (2 * 20 + 4, 3 * 28 + 4, 3)
    centers = sheet[4 + 8 :: 20, 4 + 12 :: 28, 0]
    assert centers.tolist() == [[100, 101, 102], [103, 104, 24]]


def test_a_sheet_is_about_as_wide_as_high() -> None:
    height, width, _ = contact_sheet(numbered(16)).shape
    assert 0.5 < width / height < 2


def test_no_frame_or_no_column_is_refused() -> None:
    with pytest.raises(InputError, match="needs a frame"):
        contact_sheet(numbered(0))
    with pytest.raises(InputError, match="column"):
        contact_sheet(numbered(2), columns=0)


def test_a_sink_keeps_evenly_spread_frames_only(tmp_path: Path) -> None:
    frames = numbered(61)
    sink = SheetSink(tmp_path / "sheet.png", total=61, count=4)
    for start in range(0, 61, 7):
        sink.write(frames[start : start + 7])
    sink.close()
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet[4 + 8 :: 20, 4 + 12 :: 28, 0].ravel().tolist() == [100, 120, 140, 160]
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_a_sink_that_was_cut_short_shows_what_came(tmp_path: Path) -> None:
    sink = SheetSink(tmp_path / "sheet.png", total=61, count=4)
    sink.write(numbered(30))
    sink.close()
    assert np.asarray(Image.open(tmp_path / "sheet.png")).max() == 120


def test_abort_and_empty_close_leave_nothing(tmp_path: Path) -> None:
    SheetSink(tmp_path / "sheet.png", total=4).abort()
    with pytest.raises(InputError, match="no frame"):
        SheetSink(tmp_path / "sheet.png", total=4).close()
    assert os.listdir(tmp_path) == []


def test_a_place_that_fails_at_the_end_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    sink = SheetSink(tmp_path / "sheet.png", total=4)
    sink.write(numbered(4))
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(ResourceError, match="cannot go on writing"):
        sink.close()
    assert os.listdir(tmp_path) == ["sheet.png"]


@pytest.mark.parametrize("name", ["sheet.jpg", "missing/sheet.png"])
def test_a_bad_place_is_told_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        SheetSink(tmp_path / name, total=4)
