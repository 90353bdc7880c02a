"""The demo's object against where it should be, on scenes whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from livereel.engine import Video, cli
from livereel.engine.demo import objects
from livereel.engine.demo.objects import Objects, compare_objects, to_line
from livereel.engine.demo.scenes import Scene, parse
from livereel.engine.errors import InputError

SCENE = Scene(
    caption=parse("a red circle moving right on a gray background"), center=(120.0, 50.0),
    radius=20.0,
)  # fmt: skip


def test_what_is_seen_of_a_drawn_scene_is_where_it_was_drawn() -> None:
    for name in ("a red circle moving right", "a blue star moving up", "a pink square moving down"):
        scene = replace(SCENE, caption=parse(f"{name} on a gray background"))
        found = Objects.seen(scene.render(3, 12))
        metrics = compare_objects([found], [Objects.drawn(scene, 3, 12)])
        assert metrics.found == 1.0 and metrics.frames == 12 == len(metrics.error_of)
        assert metrics.trajectory_error < 0.3
        assert metrics.velocity_error < 0.3
        assert metrics.mask_iou is not None and metrics.mask_iou > 0.93


def test_an_object_that_is_off_or_too_fast_is_measured_so() -> None:
    truth = Objects.drawn(SCENE, 0, 12)
    off = replace(SCENE, center=(123.0, 54.0))
    metrics = compare_objects([Objects.seen(off.render(0, 12))], [truth])
    assert metrics.trajectory_error == pytest.approx(5.0, abs=0.3)  # across the edge of the torus
    assert metrics.velocity_error < 0.3
    assert metrics.mask_iou == pytest.approx(_circles(5.0, 20.0), abs=0.03)
    fast = SCENE.render(0, 24)[::2]
    metrics = compare_objects([Objects.seen(fast)], [truth])
    assert metrics.velocity_error == pytest.approx(SCENE.speed, abs=0.2)
    assert metrics.error_of[8] == pytest.approx(8 * SCENE.speed, abs=0.4)
    assert metrics.iou_of[0] > 0.93 > metrics.iou_of[8]


def test_frames_without_an_object_count_as_not_found_and_lie_nowhere() -> None:
    frames = SCENE.render(0, 10)
    frames[4:6] = 128
    metrics = compare_objects([Objects.seen(frames)], [Objects.drawn(SCENE, 0, 10)])
    assert metrics.found == 0.8
    assert metrics.trajectory_error < 0.3
    assert math.isnan(metrics.error_of[4]) and metrics.iou_of[4] == 0.0


def test_where_nothing_is_found_there_is_no_error_to_tell() -> None:
    nothing, there = Objects(np.full((4, 2), np.nan)), Objects(np.zeros((4, 2)))
    assert compare_objects([nothing], [there]).found == 0.0
    assert math.isnan(compare_objects([nothing], [there]).trajectory_error)
    assert math.isnan(compare_objects([there], [nothing]).found)


def test_a_track_alone_can_be_the_truth() -> None:
    path = np.array([SCENE.position(i) for i in range(10)])
    metrics = compare_objects([Objects.seen(SCENE.render(0, 10))], [Objects(path)])
    assert metrics.mask_iou is None and metrics.iou_of == ()
    assert "trajectory error 0." in to_line(metrics) and "IoU" not in to_line(metrics)


def test_clips_are_pooled() -> None:
    truth = Objects(np.zeros((4, 2)))
    near, far = (
        Objects(np.full((4, 2), 3.0)),
        Objects(np.array([[np.nan, np.nan]] * 2 + [[0, 4]] * 2)),
    )
    metrics = compare_objects([near, far], [truth, truth])
    assert metrics.clips == 2 and metrics.found == 0.75
    assert metrics.trajectory_error == pytest.approx(math.sqrt((4 * 18 + 2 * 16) / 6))
    assert metrics.error_of[0] == pytest.approx(math.sqrt(18))


def test_what_cannot_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Objects(np.zeros((4, 2)))
    with pytest.raises(InputError, match="all of one length"):
        compare_objects([path], [Objects(np.zeros((5, 2)))])
    with pytest.raises(InputError, match="all of one length"):
        compare_objects([path, path], [path])
    with pytest.raises(InputError, match="no frame"):
        Objects.seen(np.zeros((0, 16, 16, 3), np.uint8))
    monkeypatch.setattr(objects, "MAX_PIXELS", 3 * 16 * 16)
    with pytest.raises(InputError, match="at most 3 frames of 16x16; cut the video first"):
        Objects.seen(np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="square"):
        Objects.seen(np.zeros((3, 16, 20, 3), np.uint8))
    with pytest.raises(InputError, match="alike"):
        compare_objects([Objects.drawn(SCENE, 0, 2)], [Objects.drawn(SCENE, 0, 2, 64)])


def test_two_videos_are_compared_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    Video(frames=SCENE.render(0, 12, size=64), fps=16).save(a)
    off = replace(SCENE, center=(123.0, 54.0))
    Video(frames=off.render(0, 9, size=64), fps=16).save(b)
    written = tmp_path / "metrics.json"
    assert cli.main(["eval", "--metrics", a, b, "--objects", "--json", str(written)]) == 0
    assert "Object: found in 100.0 % of the frames" in capsys.readouterr().out
    found = json.loads(written.read_text())["objects"]
    assert found["frames"] == 9 and found["trajectory_error"] == pytest.approx(5.0, abs=0.5)


def _circles(apart: float, radius: float) -> float:
    """Intersection over union of two circles."""
    lens = 2 * radius**2 * math.acos(apart / (2 * radius))
    lens -= apart / 2 * math.sqrt(4 * radius**2 - apart**2)
    return lens / (2 * math.pi * radius**2 - lens)
