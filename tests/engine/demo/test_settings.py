"""Settings measured on drawn scenes: with a stand-in that draws the truth, and by the demo."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from livereel.engine import InputError, cli
from livereel.engine.demo import settings as module
from livereel.engine.demo.settings import (
    GIVEN,
    Setting,
    compare_settings,
    course,
    curves,
    seam,
    to_json,
    to_markdown,
)


class Drawer:
    """An engine that goes on with the scene it was drawn from, `off` pixels to the side."""

    streams, folder = True, SimpleNamespace(exported=False)
    config = SimpleNamespace(width=64, height=64, fps=16.0)
    scenes: ClassVar[list[Any]] = []

    def __init__(self, off: int) -> None:
        self.off = off

    def open(
        self, prompt: str, *, seed: int, steps: int | None, clip: Any, frames: int
    ) -> Iterator[SimpleNamespace]:
        scene, first = next(
            s for s in self.scenes if np.array_equal(s[0].render(s[1], GIVEN, 64), clip)
        )
        assert prompt == scene.caption.text
        whole = scene.render(first, frames, size=64)
        whole[GIVEN:] = np.roll(whole[GIVEN:], self.off, axis=2)
        for start, stop in ((0, 1), (1, GIVEN), (GIVEN, GIVEN + 12), (GIVEN + 12, frames)):
            yield SimpleNamespace(frames=whole[start:stop], pts=start)


@pytest.fixture
def drawers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawer]:
    made = {"truth": Drawer(0), "aside": Drawer(2)}
    monkeypatch.setattr(Drawer, "scenes", module._draw(3, 5))
    stand_in = SimpleNamespace(load=lambda model, **_: made[model])
    monkeypatch.setattr(module, "Engine", stand_in)
    return made


def test_a_setting_that_draws_the_truth_is_right_and_one_aside_is_off(drawers: Any) -> None:
    settings = [Setting.read("truth"), Setting.read("aside,dtype=float32")]
    outcome = compare_settings(settings, frames=24, scenes=3, seed=5)
    true, aside, both = outcome.rows
    assert (true.against, both.setting, both.against) == (module.TRUTH, "truth", settings[1].name)
    assert true.picture.psnr == math.inf and true.picture.frames == 72
    assert true.objects is not None and aside.objects is not None and both.objects is not None
    assert true.objects.trajectory_error < 0.5
    assert aside.objects.trajectory_error == pytest.approx(4.0, abs=0.3)  # of the grid of 128
    assert both.objects.trajectory_error == pytest.approx(4.0, abs=0.1)
    assert both.objects.velocity_error < 0.1
    assert outcome.seams["truth"] == pytest.approx(1.0, abs=0.15)
    written = json.loads(json.dumps(to_json(outcome), allow_nan=False))
    assert written["rows"][0]["picture"]["psnr"] is None
    moving = outcome.courses["truth"]
    assert moving is not None and moving.change > moving.flicker > 0
    assert written["courses"]["truth"]["drift"].keys() == moving.drift.keys()
    table = to_markdown(outcome)
    assert f"| {moving.change:.2f} | {moving.flicker:.2f} | " in table
    assert table.count("\n| truth |") == 3 and " px/frame |" in table
    panels = curves(outcome)
    assert {len(x) for named in panels.values() for x in named.values()} == {24}


def test_seams_are_what_changes_where_chunks_meet() -> None:
    even = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    jump = even + 5 * (np.arange(20) >= 8).astype(np.uint8)[:, None, None, None]
    assert seam([even], [8]) == 1.0
    assert seam([jump], [8]) == 6.0
    assert seam([even], []) is None


def test_flicker_and_drift_are_those_of_a_video() -> None:
    even = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    shaken = even + 6 * (np.arange(20) % 2).astype(np.uint8)[:, None, None, None]
    faded, both = course([even]), course([even, shaken])
    assert faded is not None and both is not None
    assert (faded.change, faded.flicker, faded.drift["brightness"]) == (1.0, 0.0, 10.0)
    assert (both.flicker, both.drift["brightness"]) == (3.0, 10.0)
    assert course([even[:2]]) is None


@pytest.mark.parametrize(
    "text", ["demo,", "demo,fast", "demo,dtype", "demo,steps=x", "demo,dtype=a,dtype=b", "demo,a=b"]
)
def test_settings_are_read_or_refused(text: str) -> None:
    found = Setting.read("m,dtype=float32,steps=4,whole,device=cpu")
    assert (found.model, found.steps, found.whole) == ("m", 4, True)
    assert found.loaded == {"dtype": "float32", "device": "cpu"}
    with pytest.raises(InputError, match="is unknown; wanted MODEL"):
        Setting.read(text)


def test_the_command_compares_the_demo_s_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, plot = tmp_path / "a.json", tmp_path / "a.png"
    command = "eval --metrics demo,steps=1 demo,steps=2 --scenes 1 --seconds 0.5"
    assert cli.main([*command.split(), "--json", str(written), "--plot", str(plot)]) == 0
    assert "| demo,steps=1 | the drawn scenes |" in capsys.readouterr().out
    values = json.loads(written.read_text())
    assert len(values["rows"]) == 3 and values["rows"][0]["objects"]["frames"] == 8
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("demo demo,whole", "demo,whole makes whole clips"),
        ("demo none.mp4", "not one of each"),
        ("demo,fast", "'fast' is unknown"),
        ("demo --objects", "--objects is for videos"),
        ("demo --scenes 0", "nothing to measure"),
        ("demo demo", "one or two that differ"),
        ("a.mp4 --objects", "give a second one"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_loaded(
    options: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Engine", None)
    assert cli.main(["eval", "--metrics", *options.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_prompt_is_made_in_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a red circle moving right on a gray background"
    command = ["eval", "--metrics", "demo,steps=2", "demo,steps=3", "--prompt", prompt]
    assert cli.main([*command, "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| demo,steps=2 | demo,steps=3 |" in out and out.count("| demo,steps=3 |") == 2
