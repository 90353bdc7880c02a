from __future__ import annotations

import importlib.util
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from livereel.engine import InputError, Video
from livereel.engine.media import reader
from livereel.engine.media.reader import read_clip, read_image, read_video


def halves(width: int, height: int) -> Image.Image:
    """Red on the left, green on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 255, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_picture_is_cut_at_its_center_and_scaled(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"wide.{ending}"
    halves(200, 50).save(path)
    frame = read_image(path, 64, 32)
    assert frame.shape == (32, 64, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame[16, 4].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(frame[16, 60].astype(int) - (0, 255, 0)).max() < 12
    assert frame.flags.writeable


def test_a_turned_photo_comes_upright(tmp_path: Path) -> None:
    photo = halves(64, 64)
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    photo.save(tmp_path / "turned.png", exif=exif)
    frame = read_image(tmp_path / "turned.png", 32, 32)
    assert tuple(frame[4, 16]) == (255, 0, 0)
    assert tuple(frame[28, 16]) == (0, 255, 0)


def test_other_pixel_formats(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", 16, 16).max() == 0
    deep = Image.fromarray(np.full((16, 16), 0x8000, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png", 16, 16) == 128).all()
    halves(16, 16).convert("P").save(tmp_path / "palette.png")
    assert tuple(read_image(tmp_path / "palette.png", 16, 16)[8, 2]) == (255, 0, 0)


def png_that_claims(width: int, height: int) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = part(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + header + data + part(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(side, side))
    with pytest.raises(InputError, match="pixels allowed"):
        read_image(path, 64, 64)


@pytest.mark.parametrize(("width", "height"), [(60_000_000, 1), (1, 40_000)])
def test_a_picture_that_is_a_line_is_refused(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "line.png"
    path.write_bytes(png_that_claims(width, height))
    with pytest.raises(InputError, match="a side may have at most 32768 pixels"):
        read_image(path, 64, 64)


def test_a_damaged_or_foreign_picture_is_one_sentence(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "claims.png").write_bytes(png_that_claims(64, 64))
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut.png", "claims.png", "text.png", "figure.eps", "folder.png", "missing.png"):
        with pytest.raises(InputError, match=name) as caught:
            read_image(tmp_path / name, 32, 32)
        assert "\n" not in str(caught.value)


def test_read_video_stops_at_max_frames(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(0, 200, 20, dtype=np.uint8), 32 * 32 * 3).reshape(10, 32, 32, 3)
    path = Video(frames=frames, fps=8).save(tmp_path / "clip.mp4")
    back, fps = read_video(path, 4)
    assert back.shape == (4, 32, 32, 3)
    assert fps == 8
    assert np.abs(back.astype(int) - frames[:4]).max() < 8


def test_a_damaged_or_foreign_video_is_one_sentence(tmp_path: Path) -> None:
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    whole = Video(frames=frames, fps=8).save(tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("cut.mp4", "text.mp4", "missing.mp4"):
        with pytest.raises(InputError, match=name) as caught:
            read_video(tmp_path / name, 10)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="max_frames"):
        read_video(whole, 0)


def test_video_of_an_unknown_codec_is_one_sentence(tmp_path: Path) -> None:
    path = Video(frames=np.zeros((3, 32, 32, 3), np.uint8), fps=8).save(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match=r"clip.mp4") as caught:
        read_video(path, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "mp4", "webm"])
def test_spoiled_files_are_read_or_refused_in_a_sentence(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 32, 32, 3), np.uint8)
    path = tmp_path / f"file.{ending}"
    if ending in ("mp4", "webm"):
        Video(frames=frames, fps=8).save(path)
    else:
        Image.fromarray(frames[0]).save(path)
    whole, said = path.read_bytes(), []
    for round_ in range(30):
        spoiled = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            spoiled[at] = rng.integers(256)
        path.write_bytes(spoiled[: rng.integers(len(whole))] if round_ % 3 else spoiled)
        try:
            if ending in ("mp4", "webm"):
                assert read_video(path, 8)[0].dtype == np.uint8
            else:
                assert read_image(path, 16, 16).shape == (16, 16, 3)
        except InputError as error:
            said.append(str(error))
    assert all("\n" not in text and path.name in text for text in said)


def _counting_video(path: Path, frames: int, fps: float) -> None:
    """Gray frames, each 8 levels lighter."""
    levels = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8
    Video(frames=np.broadcast_to(levels, (frames, 32, 64, 3)).copy(), fps=fps).save(path)


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(10, [0, 1, 2, 3, 4, 5]), (20, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), (5, [0, 2, 4])],
)
def test_a_clip_is_read_at_another_rate_and_size(
    tmp_path: Path, fps: float, shown: list[int]
) -> None:
    _counting_video(tmp_path / "clip.mp4", 6, 10)
    clip = read_clip(tmp_path / "clip.mp4", 16, 16, fps, 100)
    assert clip.shape == (len(shown), 16, 16, 3)
    assert np.abs(clip[:, 8, 8, 0].astype(int) - 8 * np.array(shown)).max() <= 3


def test_a_clip_that_is_too_long_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _counting_video(tmp_path / "clip.mp4", 6, 10)
    with pytest.raises(InputError, match="longer than the 5 frames at 10 a second"):
        read_clip(tmp_path / "clip.mp4", 16, 16, 10, 5)
    monkeypatch.setattr(reader, "MAX_CLIP_BYTES", 4 * 16 * 16 * 3)
    with pytest.raises(InputError, match="longer than the 4 frames"):
        read_clip(tmp_path / "clip.mp4", 16, 16, 10, 100)
    assert len(read_clip(tmp_path / "clip.mp4", 16, 16, 10, 3, cut=True)) == 3


def test_without_pyav_pictures_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    spec = importlib.util.spec_from_file_location("livereel.engine.media.again", reader.__file__)
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    assert again.read_image(tmp_path / "a.png", 4, 4).shape == (4, 4, 3)
