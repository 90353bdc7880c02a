from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from livereel.engine import Engine, InputError, ResourceError
from livereel.engine.batch import JOURNAL, Journal, make_clips, write_clips
from livereel.engine.media.reader import read_video
from livereel.engine.orders import Order, Step

ABOUT = {"model": "m", "decoder": "own"}


def order(line: int = 1, prompt: str = "a red ball", frames: int = 3) -> Order:
    return Order(
        line=line, prompt=prompt, seed=0, frames=frames, fps=16, width=64, height=48, steps=None
    )


def test_a_journal_knows_what_was_made_and_what_has_changed_since(tmp_path: Path) -> None:
    first, second = order(1), order(2)
    with Journal(tmp_path / "out", ABOUT) as journal:
        assert not journal.has(first)
        (tmp_path / "out" / first.name).touch()
        journal.add(first)
        journal.add(second)  # whose file somebody deletes
        with pytest.raises(InputError, match="another livereel batch"):
            Journal(tmp_path / "out", ABOUT)
    with Journal(tmp_path / "out", ABOUT) as journal:
        assert journal.has(first)
        assert not journal.has(second)
        assert not journal.has(order(1, "a blue ball"))
    with pytest.raises(InputError, match="another model"):
        Journal(tmp_path / "out", {**ABOUT, "model": "n"})


def test_a_folder_of_other_clips_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "000001.mp4").write_text("mine")
    with pytest.raises(InputError, match="of no batch known here"):
        Journal(tmp_path, ABOUT)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        Journal(tmp_path / "file", ABOUT)


def drawn(orders: list[Order]) -> Iterator[Step]:
    """Frames as an engine gives them, a chunk of each clip in turn."""
    for at in range(0, max(o.frames for o in orders), 2):
        for o in orders:
            if at < o.frames:
                yield o, np.full((min(2, o.frames - at), 48, 64, 3), 40 * o.line, np.uint8)
                if at + 2 >= o.frames:
                    yield o, None


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_batch import ABOUT, drawn, order
from livereel.engine.batch import Journal, write_clips

out, moment = Path(sys.argv[1]), sys.argv[2]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def add(self, made, write=Journal.add):
    if made.line == 2 and moment == "after the rename":
        die()
    if made.line == 2 and moment == "in the journal's line":
        os.write(self._fd, b'{{"file": "000002.m')
        die()
    write(self, made)

Journal.add = add
seen = 0
def told(step):
    global seen
    seen += step[0].line == 2
    if seen == 1 and moment == "in a clip":
        die()

with Journal(out, ABOUT) as journal:
    if moment == "in the journal's first line":
        os.ftruncate(journal._fd, 5)
        die()
    orders = [order(1, frames=2), order(2, frames=5), order(3, frames=5)]
    write_clips(drawn(orders), out, journal, told)
"""


@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        ("in the journal's first line", 0),
        ("in a clip", 1),
        ("after the rename", 1),
        ("in the journal's line", 1),
    ],
)
def test_killed_at_any_moment_the_work_goes_on_and_ends_with_one_whole_clip_a_line(
    tmp_path: Path, moment: str, kept: int
) -> None:
    out = tmp_path / "out"
    child = CHILD.format(tests=str(Path(__file__).parent))
    ended = subprocess.run([sys.executable, "-c", child, out, moment], check=False)
    assert ended.returncode == -signal.SIGKILL
    orders = [order(1, frames=2), order(2, frames=5), order(3, frames=5)]
    before = {path.name: path.stat().st_ino for path in out.glob("*.mp4")}
    with Journal(out, ABOUT) as journal:
        wanted = [o for o in orders if not journal.has(o)]
        assert len(wanted) == 3 - kept
        write_clips(drawn(wanted), out, journal, lambda step: None)
    assert sorted(os.listdir(out)) == ["000001.mp4", "000002.mp4", "000003.mp4", JOURNAL]
    for o in orders:
        assert len(read_video(out / o.name, 99)[0]) == o.frames
    if kept:
        assert (out / "000001.mp4").stat().st_ino == before["000001.mp4"]  # not made again
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    assert lines[0] == ABOUT
    assert sorted(line["file"] for line in lines[1:]) == [o.name for o in orders]


def test_a_clip_that_fails_leaves_nothing_and_the_others_are_written(tmp_path: Path) -> None:
    good, bad = order(1), order(2)
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    steps: list[Step] = [
        (good, frames), (bad, frames), (bad, ResourceError("no memory")), (good, None)
    ]  # fmt: skip
    told: list[Step] = []
    with Journal(tmp_path, ABOUT) as journal:
        write_clips(steps, tmp_path, journal, told.append)
        assert journal.has(good) and not journal.has(bad)
    assert [type(got).__name__ for _, got in told] == [
        "ndarray", "ndarray", "ResourceError", "NoneType"
    ]  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == [good.name, JOURNAL]


def test_clips_made_side_by_side_are_those_made_alone(engine: Engine) -> None:
    torch.set_num_threads(2)
    width, height = engine.config.width, engine.config.height
    orders = [
        Order(
            line=line, prompt=prompt, seed=line, frames=frames, fps=16, width=width, height=height,
            steps=steps,
        )
        for line, prompt, frames, steps in [
            (1, "a red ball", 14, None), (2, " ", 5, None), (3, "a blue ball", 3, 2)
        ]
    ]  # fmt: skip
    made: dict[int, list[object]] = {1: [], 2: [], 3: []}
    for o, got in make_clips(engine, orders, most=2):
        made[o.line].append(got)
    assert isinstance(made[2][0], InputError)  # and the third takes its place
    torch.set_num_threads(1)  # as each of two side by side had
    for o in (orders[0], orders[2]):
        assert made[o.line][-1] is None
        alone = engine.generate(
            o.prompt, seed=o.seed, frames=o.frames, steps=o.steps, width=width, height=height
        )
        np.testing.assert_array_equal(np.concatenate(made[o.line][:-1]), alone.frames)


def test_models_of_whole_clips_make_one_at_a_time(clip_folder: Path) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    o = Order(line=1, prompt="a red ball", seed=0, frames=5, fps=16, width=32, height=32, steps=1)
    (first, frames), last = make_clips(engine, [o], most=4)
    assert (first, last) == (o, (o, None))
    assert isinstance(frames, np.ndarray) and frames.shape == (5, 32, 32, 3)
