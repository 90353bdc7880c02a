"""Measures of videos against their definitions, on frames that survive the way through a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livereel.engine import InputError, ResourceError, cli
from livereel.engine.media import metrics
from livereel.engine.media.metrics import compare_videos, measure_video, to_json


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Frames by path, in place of files."""
    found: dict[str, np.ndarray] = {}

    def frames(path: str) -> Iterator[tuple[np.ndarray, float]]:
        return iter([(frame, 16.0) for frame in found[path]])

    monkeypatch.setattr(metrics, "video_frames", frames)
    return found


def noise(frames: int, seed: int = 0, size: tuple[int, int] = (16, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [3, 100, 101, 102, 250])
def test_change_and_flicker_are_mean_differences(files: dict[str, Any], count: int) -> None:
    files["a"] = noise(count)
    found = measure_video("a")
    x = files["a"].astype(float)
    assert found.frames == count and (found.width, found.height, found.fps) == (20, 16, 16.0)
    assert found.change == pytest.approx(np.abs(np.diff(x, axis=0)).mean())
    assert found.flicker == pytest.approx(np.abs(np.diff(x, n=2, axis=0)).mean() / 2)
    assert [look.frame for look in found.looks] == list(range(0, count, 100))


def test_a_fade_is_no_flicker_and_a_blink_is(files: dict[str, Any]) -> None:
    fade = np.arange(0, 120, 2, dtype=np.uint8)[:, None, None, None]
    files["fade"] = np.broadcast_to(fade, (60, 16, 20, 3)).copy()
    files["blink"] = np.where(np.arange(60)[:, None, None, None] % 2, 100, 102).astype(
        np.uint8
    ) * np.ones((1, 16, 20, 3), np.uint8)
    assert measure_video("fade").change == measure_video("blink").change == 2.0
    assert measure_video("fade").flicker == 0.0
    assert measure_video("blink").flicker == 2.0


def test_drift_is_that_of_looks_window_by_window(files: dict[str, Any]) -> None:
    first = noise(100)
    x = first.astype(float)
    files["a"] = np.concatenate([first, first // 2, first // 4 + 64])
    found = measure_video("a")
    look = found.looks[0]
    assert look.brightness == pytest.approx(x.mean(), rel=1e-5)
    assert look.contrast == pytest.approx(np.mean([frame.std() for frame in x]), rel=1e-5)
    assert look.saturation == pytest.approx((x.max(-1) - x.min(-1)).mean(), rel=1e-5)
    edges = (np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()) / 2
    assert look.sharpness == pytest.approx(edges, rel=1e-5)
    assert found.drift["contrast"] == pytest.approx(-0.75 * look.contrast, rel=0.02)
    drifts = to_json({"a": found}, None)["videos"]["a"]["drift"]
    assert len(drifts) == 3 and set(drifts[0].values()) == {0.0}


def test_psnr_and_ssim_are_the_definition_s(files: dict[str, Any]) -> None:
    files["a"] = noise(19)
    shift = np.random.default_rng(1).integers(-9, 10, files["a"].shape)
    files["b"] = np.clip(files["a"].astype(int) + shift, 0, 255).astype(np.uint8)
    found = compare_videos("a", "b")
    squared = np.square(files["a"].astype(float) - files["b"])
    assert found.frames == 19 == len(found.psnr_of) == len(found.ssim_of)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / squared.mean()), rel=1e-4)
    each = 10 * np.log10(255**2 / squared.mean(axis=(1, 2, 3)))
    assert np.allclose(found.psnr_of, each, rtol=1e-4)
    assert found.largest == 9 and 0.9 < found.ssim < 1
    same = compare_videos("a", "a")
    assert same.psnr == math.inf and same.ssim == pytest.approx(1.0)
    assert to_json({}, same)["comparison"]["psnr"] is None
    files["short"] = files["a"][:5]
    assert compare_videos("a", "short").frames == 5


def test_what_cannot_be_measured_is_refused(files: dict[str, Any]) -> None:
    files.update(two=noise(2), none=noise(0), other=noise(3, size=(32, 32)), a=noise(3),
                 tiny=noise(3, size=(8, 8)))  # fmt: skip
    with pytest.raises(InputError, match="two has 2 frames; at least 3"):
        measure_video("two")
    with pytest.raises(InputError, match="a is 20x16 and other 32x32"):
        compare_videos("a", "other")
    with pytest.raises(InputError, match="smaller than 11 pixels"):
        compare_videos("tiny", "tiny")
    with pytest.raises(InputError, match="no frame in common"):
        compare_videos("a", "none")


def test_the_extra_is_named_where_it_is_missing(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    files["a"] = noise(3)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ResourceError, match=r"pip install 'livereel\[metrics\]'"):
        compare_videos("a", "a")


def test_the_command_writes_tables_json_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from livereel.engine import Video

    a, b = (str(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    Video(frames=noise(5, size=(32, 48)), fps=16).save(a)
    Video(frames=noise(5, seed=1, size=(32, 48)), fps=16).save(b)
    written, plot = tmp_path / "metrics.json", tmp_path / "metrics.png"
    command = ["eval", "--metrics", a, b, "--json", str(written), "--plot", str(plot)]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert f"| {a} | 5 |" in out and " dB |" in out
    values = json.loads(written.read_text())
    assert set(values["videos"]) == {a, b} and values["comparison"]["frames"] == 5
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert set(tmp_path.iterdir()) == {Path(a), Path(b), written, plot}
    assert cli.main(["eval", "--metrics", a]) == 0
    assert "SSIM" not in capsys.readouterr().out
    for wrong in (["--metrics", a, b, a], ["--metrics", "none.mp4"], ["--plot", "x.png"]):
        assert cli.main(["eval", *wrong]) == 2
