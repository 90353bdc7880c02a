from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from livereel.engine import CheckpointError, cli


@pytest.fixture
def asked(model: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the converter is called with; it gives the tiny model folder for an answer."""
    seen: dict[str, Any] = {}

    def convert(source: str, out: Path, **options: Any) -> Path:
        seen.update(source=source, out=out, **options)
        if source.endswith("broken.pt"):
            raise CheckpointError("broken.pt is\ntruncated")
        return Path(model)

    module = ModuleType("convert")
    module.convert = convert  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "livereel.engine.checkpoint.convert", module)
    return seen


def test_options_reach_the_converter(
    tmp_path: Path, model: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "self_forcing.pt"
    source.write_bytes(b"")
    out = tmp_path / "new"
    options = f"--vae {source} --recipe self-forcing --heads 4 --dtype bfloat16"
    assert cli.main(["convert", str(source), "-o", str(out), *options.split()]) == 0
    assert asked == {
        "source": str(source),
        "out": out,
        "vae": str(source),
        "text": None,
        "recipe": "self-forcing",
        "num_heads": 4,
        "dtype": torch.bfloat16,
    }
    assert capsys.readouterr().out == f"{model}: transformer 0.00 M, vae 0.00 M\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.pt", "-o", "new"], "missing.pt does not exist"),
        (["model", "-o", "model"], "model exists already"),
        (["model", "-o", "new", "--vae", "missing.pth"], "missing.pth does not exist"),
        (["model", "-o", "new", "--recipe", "dreams"], "--recipe"),
        (["model"], "required: -o"),
        (["broken.pt", "-o", "new"], "broken.pt is truncated"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"")
    assert cli.main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("livereel: ")
    assert said in err
    assert err.count("\n") == 1
    assert asked == {} or arguments[0] == "broken.pt"
