from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from livereel.engine import cli
from livereel.engine.demo import evaluate
from livereel.engine.demo.report import Report, Score, Settings


@pytest.fixture
def asked(fake: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the evaluation is called with; it reports a single score."""
    seen: dict[str, Any] = {}

    def stand_in(
        engine: Any, *, progress: Callable[[str, int, int], None], **options: Any
    ) -> Report:
        seen.update(engine=engine, **options)
        for done in range(3):
            progress("clips", done, 2)
        score = Score(name="color", stage="clips", value=98.0, unit="%", goal=97.0, count=2)
        settings = Settings(seconds=2.0, **options)
        return Report(settings=settings, scores=(score,), minutes=(), failures=())

    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    return seen


def test_options_reach_the_evaluation(
    tmp_path: Path,
    model: str,
    fake: Any,
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = "--clips 2 --streams 3 --minutes 0.5 --changes 4 --scenes 5 --seed 6 --device cpu"
    scores = tmp_path / "scores.json"
    assert cli.main(["eval", "--model", model, *options.split(), "--json", str(scores)]) == 0
    assert asked == {
        "engine": fake,
        "clips": 2,
        "streams": 3,
        "stream_minutes": 0.5,
        "prompt_changes": 4,
        "vae_scenes": 5,
        "seed": 6,
    }
    assert fake.loaded == {"model": model, "device": "cpu", "dtype": "auto"}
    out, err = capsys.readouterr()
    assert out.startswith("| | measured | score |")
    assert "| clips | color | 98.0 % |" in out
    assert err == "2/2 clips\n"
    assert json.loads(scores.read_text())["passed"] is True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--clips 0 --streams 0 --changes 0 --scenes 0", "nothing to score"),
        ("--clips -1", "--clips"),
        ("--minutes 0", "--minutes"),
        ("--minutes nan", "--minutes"),
        ("--minutes 1441", "at most 1440"),
        ("--json missing/scores.json", "cannot write missing/scores.json"),
        ("--model none", "unknown model"),
        ("--follow 2", "follows no control"),
        ("--arrive 2", "arrives at no picture"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_loaded(
    model: str,
    fake: Any,
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    options: str,
    said: str,
) -> None:
    assert cli.main(["eval", "--model", model, *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("livereel: ")
    assert said in err
    assert err.count("\n") == 1
    assert fake.loaded is None
