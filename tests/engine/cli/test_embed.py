from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from livereel.engine.cli import main
from livereel.engine.engine import Engine


def test_writes_what_the_encoder_gives(
    tiny_folder: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ball.safetensors"
    assert main(["embed", "a red ball", "--model", str(tiny_folder), "-o", str(out)]) == 0
    assert "8 tokens of 12 numbers" in capsys.readouterr().out
    ((name, text),) = load_file(out).items()
    assert name == "text"
    assert torch.equal(text, engine.runner.encode_text("a red ball", 8)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["ball.safetensors"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a red ball"],
        ["", "-o", "x.safetensors"],
        ["a red ball", "-o", "/nonexistent/x.safetensors"],
        ["a red ball", "--model", "nowhere", "-o", "x.safetensors"],
    ],
)
def test_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
