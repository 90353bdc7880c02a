from __future__ import annotations

import sys
from pathlib import Path

import pytest

from livereel.engine import cli
from livereel.engine.cli import replicas


@pytest.mark.parametrize("text", ["0", "4-2", "1-", "-3", "two", "1-2-3", "1025", "1-99999"])
def test_numbers_of_replicas_that_cannot_be_are_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--ray", f"--replicas={text}"]) == 2
    assert "must be a number from 1 to 1024 or two such as 1-4" in capsys.readouterr().err


def test_replicas_want_ray_and_ray_its_package(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "livereel.engine.serve.ray_app", raising=False)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a red ball"}')
    batch = ["batch", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out")]
    for command in (batch, ["serve"]):
        assert cli.main([*command, "--model", model, "--replicas", "2"]) == 2
        assert "--replicas goes with --ray" in capsys.readouterr().err
        assert cli.main([*command, "--model", model, "--ray", "--replicas", "1-4"]) == 2
        assert "--ray needs the package ray: pip install" in capsys.readouterr().err
    for option, value in (("--decoder", "tiny"), ("--provider", "cpu")):
        assert cli.main([*batch, "--model", model, "--ray", option, value]) == 2
        assert f"{option} does not go with --ray" in capsys.readouterr().err


def test_a_range_is_read() -> None:
    assert replicas._replicas("3") == (3, 3)
    assert replicas._replicas("1-8") == (1, 8)
