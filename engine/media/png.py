"""A folder of numbered PNGs as a frame sink."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import InputError
from .place import check_frames, check_open, new_part, opening, writing

if TYPE_CHECKING:
    from ..types import Frames

_NAME = re.compile(r"frame_\d{6,}\.png")


class PngSink:
    """A folder of frame_000000.png, frame_000001.png, ...; an older run's are replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = not folder.exists()
        if not (self._made or folder.is_dir()):
            raise InputError(f"{folder} is a file, not a folder; leave out the slash")
        with opening(folder):
            folder.mkdir(exist_ok=True)
        try:
            self._part = new_part(folder / "frames", folder, lambda part: part.mkdir())
        except InputError:
            self._remove_folder()
            raise
        self._shape: tuple[int, int] | None = None
        self._count = 0
        self._done = False

    def write(self, frames: Frames) -> None:
        """Save uint8 `[F, H, W, 3]`. Raises `InputError` for another shape than before."""
        check_open(self._done)
        self._shape = check_frames(frames, self._shape)
        with writing(self._folder):
            for pixels in frames:
                name = f"frame_{self._count:06d}.png"
                Image.fromarray(pixels).save(self._part / name, compress_level=3)
                self._count += 1

    def close(self) -> Path:
        """Move the pictures in place. Raises `InputError` if nothing came."""
        if self._done:
            return self._folder
        if self._count == 0:
            self.abort()
            raise InputError(f"{self._folder} was not written, since no frame came")
        try:
            with writing(self._folder):
                for old in self._folder.iterdir():
                    if _NAME.fullmatch(old.name):
                        old.unlink()
                for new in sorted(self._part.iterdir()):
                    new.rename(self._folder / new.name)
                self._part.rmdir()
        except BaseException:
            self.abort()
            raise
        self._done = True
        return self._folder

    def abort(self) -> None:
        """Drop the pictures of this run, and the folder if this run made it."""
        if self._done:
            return
        self._done = True
        shutil.rmtree(self._part, ignore_errors=True)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
