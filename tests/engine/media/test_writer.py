from __future__ import annotations

import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from livereel.engine import InputError, ResourceError, Video
from livereel.engine.media.reader import read_video
from livereel.engine.media.writer import open_sink


def moving_disk(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A shaded disk that moves right, 2 pixels a frame: uint8 `[F, H, W, 3]`."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        distance = np.hypot(y - height / 2, x - 12 - 2 * i)
        cover = np.clip(12.5 - distance, 0, 1)[..., None]
        disk = np.array([215, 150, 120]) - 2.0 * distance.clip(0, 12)[..., None]
        frames[i] = cover * disk + (1 - cover) * np.array([60, 90, 130])
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize(("ending", "floor"), [(".mp4", 33), (".webm", 33), (".gif", 38)])
def test_every_frame_comes_back_in_order_and_alike(
    tmp_path: Path, ending: str, floor: float
) -> None:
    frames = moving_disk(23)
    path = tmp_path / f"clip{ending}"
    sink = open_sink(path, fps=12.5)
    for chunk in (frames[:1], frames[1:9], frames[9:9], frames[9:]):
        sink.write(chunk)
    assert sink.close() == path
    back, fps = read_video(path, 100)
    assert back.shape == frames.shape
    assert fps == pytest.approx(12.5)
    assert min(psnr(a, b) for a, b in zip(back, frames, strict=True)) > floor


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_colors_are_bt709_and_say_so(tmp_path: Path, ending: str) -> None:
    color = np.array([200, 60, 30], np.uint8)
    path = tmp_path / f"flat{ending}"
    Video(frames=np.tile(color, (3, 32, 32, 1)), fps=16).save(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (frame.colorspace, frame.color_range) == (1, 1)
        context = stream.codec_context
        assert (context.color_primaries, context.color_trc) == (1, 1)
    # The luma that BT.709 gives this color in 16..235; BT.601 would give 105.
    luma = frame.to_ndarray()[16, 16]
    assert luma == pytest.approx(16 + 219 / 255 * (0.2126 * 200 + 0.7152 * 60 + 0.0722 * 30), abs=1)
    assert np.abs(read_video(path, 1)[0][0, 16, 16].astype(int) - color).max() <= 4


@pytest.mark.parametrize("fps", [16, 24000 / 1001, 7.5])
def test_frame_rate_is_exact(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "clip.mp4"
    Video(frames=moving_disk(4), fps=fps).save(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.time for frame in container.decode(stream)]
        assert stream.average_rate == Fraction(fps).limit_denominator(1001)
    assert times == pytest.approx([i / fps for i in range(4)], abs=1e-4)


def test_odd_sizes_are_padded_with_their_last_row_and_column(tmp_path: Path) -> None:
    frames = moving_disk(3, height=33, width=47)
    path = Video(frames=frames, fps=16).save(tmp_path / "odd.mp4")
    back, _ = read_video(path, 3)
    assert back.shape == (3, 34, 48, 3)
    assert psnr(back[:, :33, :47], frames) > 28
    gif = Video(frames=frames, fps=16).save(tmp_path / "odd.gif")
    assert read_video(gif, 3)[0].shape == frames.shape


def test_numbered_pictures_are_exact_and_replace_an_older_run(tmp_path: Path) -> None:
    folder = f"{tmp_path}/frames/"
    frames = moving_disk(5)
    Video(frames=frames, fps=16).save(folder)
    Video(frames=frames[:3], fps=16).save(folder)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    Video(frames=frames[1:4], fps=16).save(folder)
    names = sorted(os.listdir(folder))
    assert names == ["frame_000000.png", "frame_000001.png", "frame_000002.png", "notes.txt"]
    for name, frame in zip(names, frames[1:4], strict=False):
        assert np.array_equal(np.asarray(Image.open(folder + name)), frame)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "frames/"])
def test_nothing_stands_under_the_name_before_close_nor_anywhere_after_abort(
    tmp_path: Path, name: str
) -> None:
    goal = tmp_path / name
    sink = open_sink(f"{tmp_path}/{name}", fps=16)
    sink.write(moving_disk(2))
    assert not goal.is_file()
    assert not list(goal.glob("*.png"))
    sink.abort()
    sink.abort()
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="closed"):
        sink.write(moving_disk(1))


def test_abort_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"before")
    sink = open_sink(path, fps=16)
    sink.write(moving_disk(2))
    sink.abort()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_close_twice_is_close_once_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "CLIP.MP4"
    path.write_bytes(b"before")
    sink = open_sink(path, fps=16)
    sink.write(moving_disk(2))
    sink.close()
    sink.close()
    sink.abort()
    assert os.listdir(tmp_path) == ["CLIP.MP4"]
    assert len(read_video(path, 9)[0]) == 2


@pytest.mark.parametrize("name", ["clip.mp4", "frames/"])
def test_closing_without_frames_is_an_error_that_leaves_nothing(tmp_path: Path, name: str) -> None:
    sink = open_sink(f"{tmp_path}/{name}", fps=16)
    with pytest.raises(InputError, match="no frame"):
        sink.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip.avi", "unknown ending '.avi'"),
        ("clip", "unknown ending ''"),
        ("", "empty"),
        ("missing/clip.mp4", "the folder .*missing does not exist"),
        ("missing/frames/", "does not exist"),
        ("folder", "is a folder"),
        ("folder.mp4", "is a folder"),
        ("file.txt/", "is a file"),
        ("file.txt/clip.mp4", "cannot write"),
    ],
)
def test_a_bad_place_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(InputError, match=said):
        open_sink(name, fps=16)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder", "folder.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for name in ("clip.mp4", "frames/"):
        with pytest.raises(InputError, match="ermission"):
            open_sink(f"{tmp_path}/{name}", fps=16)


def test_a_device_is_not_overwritten() -> None:
    with pytest.raises(InputError, match=r"cannot be overwritten|cannot write"):
        open_sink("/dev/null/x.mp4", fps=16)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 241])
def test_an_absurd_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError, match="fps"):
        open_sink(tmp_path / "clip.mp4", fps=fps)


def test_a_gif_holds_at_most_fifty_frames_a_second(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="50"):
        open_sink(tmp_path / "clip.gif", fps=60)


@pytest.mark.parametrize("name", ["clip.mp4", "frames/"])
def test_only_uint8_frames_of_one_size_are_taken(tmp_path: Path, name: str) -> None:
    sink = open_sink(f"{tmp_path}/{name}", fps=16)
    for wrong in (
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 4), np.uint8),
        np.zeros((1, 0, 32, 3), np.uint8),
    ):
        with pytest.raises(InputError, match="uint8"):
            sink.write(wrong)
    sink.write(moving_disk(1))
    with pytest.raises(InputError, match="32x32 after 64x48"):
        sink.write(np.zeros((1, 32, 32, 3), np.uint8))
    sink.close()


@pytest.mark.parametrize("name", ["clip.mp4", "frames/"])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3)).astype(np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = open_sink(f"{tmp_path}/{name}", fps=16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="cannot go on writing"):  # noqa: PT012
            sink.write(noise)
            sink.close()
        sink.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_pictures_that_cannot_take_their_place_leave_nothing_of_this_run(tmp_path: Path) -> None:
    sink = open_sink(f"{tmp_path}/frames/", fps=16)
    sink.write(moving_disk(2))
    (tmp_path / "frames" / "frame_000000.png").mkdir()
    with pytest.raises(ResourceError, match="cannot go on writing"):
        sink.close()
    assert os.listdir(tmp_path / "frames") == ["frame_000000.png"]


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real" / "clip.mp4")
    Video(frames=moving_disk(2), fps=16).save(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink()
    assert os.listdir(tmp_path / "real") == ["clip.mp4"]
