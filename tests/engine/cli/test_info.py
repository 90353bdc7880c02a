from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from livereel.engine import __version__, cli, memory
from livereel.engine.checkpoint.folder import open_folder


def test_json_has_model_memory_and_machine(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", model, "--json", "--size", "128x64", "--dtype", "bfloat16"]) == 0
    facts = json.loads(capsys.readouterr().out)
    need = memory.estimate(open_folder(model), width=128, height=64, dtype="bfloat16")
    assert facts["livereel"] == __version__
    assert facts["model"]["parameters"] == {"transformer": 10, "vae": 10}
    assert facts["model"]["size_step"] == 16
    assert facts["model"]["stream"]["window"] == 3
    assert facts["model"]["memory"]["total"] == need.total
    assert facts["model"]["memory"]["kv_ring"] == need.kv_ring
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_free"] > 0
    assert facts["machine"]["roads"]["torch"].startswith("2.")
    assert facts["model"]["roads"]["VAE norms"] == "native"


def test_text_says_the_same_for_people(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", model]) == 0
    out = capsys.readouterr().out
    assert "64x48 at 16 fps; sizes are multiples of 16" in out
    assert "window 3, sinks 0" in out
    assert "2 at 1000, 500, renoise" in out
    assert "KV ring" in out


def test_anchors_are_told_where_there_are_any(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(model, "livereel.json")
    values = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**values, "anchors": 2, "anchor_every": 8}))
    assert cli.main(["info", model]) == 0
    assert "sinks 0, anchors 2 (every 8)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nothing"], ["--size", "3x3"], ["--size", "big"]])
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    given = arguments if arguments == ["nothing"] else [model, *arguments]
    assert cli.main(["info", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("livereel: ")
    assert err.count("\n") == 1


def test_a_model_of_whole_clips_is_not_said_to_stream(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.remove(f"{model}/livereel.json")
    assert cli.main(["info", model]) == 0
    out = capsys.readouterr().out
    assert re.search("^clips +whole ones only", out, re.MULTILINE)
    assert "window" not in out
    assert cli.main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["streams"] is False


def test_a_core_that_is_not_built_is_said_and_no_error(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "livereel.engine.native", None)
    assert cli.main(["info", model]) == 0
    assert re.search(r"^native core +not built$", capsys.readouterr().out, re.MULTILINE)
