"""`livereel export`: mistakes are told in a sentence, before and after the work."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from livereel.engine.cli import main


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--window", "3"], "window is 3; an exported chunk of 3 latent frames"),
        (["--size", "50x32"], "multiples of 16"),
        (["--target", "sm_89"], "--target is for --format tensorrt-rtx and aoti"),
        (["--lint"], "is no package to check"),
        (["--format", "coreml"], "invalid choice"),
    ],
)
def test_what_cannot_be_exported_is_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
    told: str,
) -> None:  # fmt: skip
    out = tmp_path / "package"
    assert main(["export", "--model", str(tiny_folder), "-o", str(out), *options]) == 2
    assert told in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "told"),
    [(False, "are compiled where such a GPU is; torch sees none here"), (True, "not for sm_80")],
)
def test_a_gpu_is_compiled_for_where_it_is(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gpus: bool, told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    options = ["--model", str(tiny_folder), "--format", "aoti", "--target", "sm_80"]
    assert main(["export", *options, "-o", str(tmp_path / "package")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and told in said[0]
    assert not any(tmp_path.iterdir())


def test_a_place_that_is_taken_is_left_alone(
    tiny_folder: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", str(tiny_folder), "-o", str(exported)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "--model", str(exported), "-o", "elsewhere"]) == 2
    assert "is a package already" in capsys.readouterr().err


def test_models_of_whole_clips_are_refused(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", str(clip_folder), "-o", str(tmp_path / "package")]) == 2
    assert "only models that stream are exported" in capsys.readouterr().err


def test_models_of_two_dits_are_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    file = model / "model_index.json"
    index = json.loads(file.read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.9}
    file.write_text(json.dumps(index))
    assert main(["export", "--model", str(model), "-o", str(tmp_path / "package")]) == 2
    assert "has two DiTs, of which streams know one" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["onnx_ir", "onnxscript"])
def test_a_missing_library_is_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, module: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["export", "--model", str(tiny_folder), "-o", str(tmp_path / "package")]) == 2
    assert f"export needs {module}: pip install 'livereel[export]'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_lint_prints_every_outputs_difference(
    tiny_folder: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lint = ["export", "--lint", "--model", str(tiny_folder), "-o", str(exported)]
    assert main(lint) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {tuple(line.split()[:2]) for line in lines}
    graphs = json.loads((exported / "manifest.json").read_text())["graphs"]
    for name, graph in graphs.items():
        assert {(name, output["name"]) for output in graph["outputs"]} <= rows


def test_lint_finds_other_weights(
    tiny_folder: Path, exported: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    recipe = json.loads((model / "livereel.json").read_text())
    (model / "livereel.json").write_text(json.dumps({**recipe, "fps": 12}))
    assert main(["export", "--lint", "--model", str(model), "-o", str(exported)]) == 2
    assert "exported from another model" in capsys.readouterr().err
