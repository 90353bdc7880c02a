"""Folders of random weights load as trained models' do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from livereel.benchmarks import models, random_folder
from livereel.engine import cli
from livereel.engine.engine import Engine

from .conftest import smaller

TEXT = {
    "model_type": "umt5", "architectures": ["UMT5EncoderModel"], "d_model": 16, "d_kv": 4,
    "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 512,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def test_a_folder_streams_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = smaller("wan2.1-1.3b")
    told = {k: v for k, v in model.transformer.config.items() if k != "attention_head_dim"}
    model = replace(model, transformer=replace(model.transformer, config=told))
    monkeypatch.setattr(models, "MODELS", {"wan2.1-1.3b": model})
    folder = tmp_path / "wan"
    random_folder.write("wan2.1-1.3b", folder, torch.device("cpu"), TEXT)
    engine = Engine.load(folder, device="cpu", dtype="float32")
    assert engine.config == models.MODELS["wan2.1-1.3b"].stream
    chunk = next(iter(engine.open("a large red circle", width=32, height=32)))
    assert chunk.frames.shape == (1, 32, 32, 3)
    assert cli.main(["info", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out


def test_other_models_and_places_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for name, place, said in (
        ("cogvideox-2b", "new", "none of Wan's models"),
        ("wan2.1-1.3b", "there", "exists already"),
    ):
        options = [name, str(tmp_path / place), "--device", "cpu"]
        assert random_folder.main(options) == 2
        assert said in capsys.readouterr().err
