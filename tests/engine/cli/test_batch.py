from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from livereel.engine import Engine, cli
from livereel.engine.cli import arguments
from livereel.engine.media.reader import read_video


@pytest.fixture
def run(tiny_folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command over lines, with a model that is loaded already."""
    loads: list[int] = []

    def load(options: Any) -> Engine:
        loads.append(1)
        return engine

    def batch(*lines: str) -> tuple[int, int]:
        """The exit code, and how often the model was loaded."""
        loads.clear()
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        out = str(tmp_path / "out")
        argv = ["batch", str(tmp_path / "in.jsonl"), "--out", out, "--model", str(tiny_folder)]
        return cli.main(argv), len(loads)

    monkeypatch.setattr(arguments, "load_engine", load)
    return batch


RED = '{"prompt": "a red ball", "frames": 6}'
BLUE = '{"prompt": "a blue ball", "frames": 2, "seed": 3}'


def test_each_line_gets_its_clip_and_the_same_again_makes_nothing_twice(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RED, BLUE, RED) == (0, 1)
    assert "clips made: 3, there before: 0, lines left out: 0, failed: 0" in capsys.readouterr().out
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["000001.mp4", "000002.mp4", "000003.mp4", "batch.jsonl"]
    assert [len(read_video(path, 99)[0]) for path in sorted(out.glob("*.mp4"))] == [6, 2, 6]
    assert run(RED, BLUE, RED) == (0, 0)
    assert "clips made: 0, there before: 3" in capsys.readouterr().out
    assert run(RED, RED.replace("red", "blue"), RED) == (0, 1)
    assert "clips made: 1, there before: 2" in capsys.readouterr().out
    assert len(read_video(out / "000002.mp4", 99)[0]) == 6


def test_bad_lines_are_told_and_left_out(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RED, "{", '{"prompt": "a", "size": "33x32"}', BLUE) == (1, 1)
    out, err = capsys.readouterr()
    assert "livereel: line 2: the line is not JSON" in err
    assert "livereel: line 3: size 33x32 does not fit this model" in err
    assert "clips made: 2, there before: 0, lines left out: 2" in out
    assert {path.name for path in (tmp_path / "out").glob("*.mp4")} == {"000001.mp4", "000004.mp4"}
    assert run("{", '{"seed": 1}') == (2, 0)
    assert "no line that a clip can be made of" in capsys.readouterr().err


def test_what_memory_does_not_suffice_for_is_told_and_the_rest_made(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RED, '{"prompt": "a", "size": "8192x8192", "frames": 1}') == (1, 1)
    out, err = capsys.readouterr()
    assert "livereel: line 2: too little memory" in err
    assert "clips made: 1, there before: 0, lines left out: 0, failed: 1" in out


def test_a_stop_keeps_what_was_made_and_says_how_to_go_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from livereel.engine.batch import Journal

    def add(self: Journal, order: Any, write: Any = Journal.add) -> None:
        write(self, order)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        assert run(BLUE, RED) == (130, 1)
    assert "stopped; the same command goes on" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "out")) == ["000001.mp4", "batch.jsonl"]
    assert run(BLUE, RED) == (0, 1)
    assert "clips made: 1, there before: 1" in capsys.readouterr().out
