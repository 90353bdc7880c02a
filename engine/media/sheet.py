"""A contact sheet: one PNG that shows a whole clip at a glance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import InputError
from .place import check_frames, check_open, new_part, writing

if TYPE_CHECKING:
    from ..types import Frames

_GAP = 4
_PAPER = 24


def contact_sheet(frames: Frames, columns: int | None = None) -> Frames:
    """Lay frames `[F, H, W, 3]` out in rows, left to right, on dark paper: uint8 `[H', W', 3]`.

    Without `columns` the sheet comes out about as wide as high.
    """
    height, width = check_frames(frames, None)
    count = len(frames)
    if count < 1 or (columns is not None and columns < 1):
        raise InputError(f"a sheet needs a frame and a column, got {count} and {columns}")
    columns = columns or max(1, round(math.sqrt(count * height / width)))
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    row_step, column_step = height + _GAP, width + _GAP
    shape = (rows * row_step + _GAP, columns * column_step + _GAP, 3)
    sheet = np.full(shape, _PAPER, np.uint8)
    for i, frame in enumerate(frames):
        y = _GAP + i // columns * row_step
        x = _GAP + i % columns * column_step
        sheet[y : y + height, x : x + width] = frame
    return sheet


class SheetSink:
    """A frame sink that keeps `count` frames, evenly spread over a clip of `total`, for a sheet.

    Raises `InputError` at once when `path` is not a .png in a folder that can be written.
    """

    def __init__(self, path: str | Path, *, total: int, count: int = 16) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() != ".png":
            raise InputError(f"the sheet {path} must end in .png")
        if self._path.is_dir():
            raise InputError(f"the sheet {path} is a folder; name a .png file")
        wanted = np.linspace(0, max(total - 1, 0), min(count, total)).round()
        self._wanted = {int(i) for i in wanted}
        self._kept: list[Frames] = []
        self._seen = 0
        self._done = False
        self._goal = self._path.resolve()
        self._part = new_part(self._goal, self._path, lambda part: part.touch(exist_ok=False))

    def write(self, frames: Frames) -> None:
        """Take uint8 frames `[F, H, W, 3]` in order."""
        check_open(self._done)
        check_frames(frames, None)
        for frame in frames:
            if self._seen in self._wanted:
                self._kept.append(frame.copy())
            self._seen += 1

    def close(self) -> Path:
        """Write the sheet of what came. Raises `InputError` if nothing did."""
        if self._done:
            return self._path
        if not self._kept:
            self.abort()
            raise InputError(f"{self._path} was not written, since no frame came")
        try:
            with writing(self._path):
                Image.fromarray(contact_sheet(np.stack(self._kept))).save(self._part, format="PNG")
                self._part.replace(self._goal)
        except BaseException:
            self.abort()
            raise
        self._done = True
        return self._path

    def abort(self) -> None:
        """Leave nothing behind."""
        if not self._done:
            self._done = True
            self._part.unlink(missing_ok=True)
