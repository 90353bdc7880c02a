"""The runners' benchmark: every contender in a process of its own, figures under its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from livereel.benchmarks import bench_runners, harness
from livereel.engine.errors import LiveReelError
from livereel.engine.manifest import MANIFEST

SAID = (
    "out.y4m: 160 frames of 128x128; loaded in 0.31 s, first frame after 0.042 s, 61.5 frames a "
    "second\n"
)
READ = {
    "load, s": 0.31, "first frame, s": 0.042, "load and first frame, s": 0.31 + 0.042,
    "frames a second": 61.5,
}  # fmt: skip


def program(folder: Path, script: str) -> Path:
    file = folder / "livereel-run"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_the_programs_figures_are_read() -> None:
    assert bench_runners.read_program(SAID) == READ
    with pytest.raises(LiveReelError, match="said nothing of its speed: out of memory"):
        bench_runners.read_program("out of memory")


def test_the_program_streams_an_encoded_prompt_on_the_threads_asked_for(
    exported: Path, tmp_path: Path
) -> None:
    said = f'[ -s "$3" ] && [ $OMP_NUM_THREADS = 3 ] && printf "{SAID.strip()}" >&2'
    assert bench_runners.run_program(program(tmp_path, said), exported, 1.0, 3) == READ
    failing = program(tmp_path, "echo 'the package is for another chip' >&2; exit 2")
    with pytest.raises(LiveReelError, match=r"failed \(2\): the package is for another chip"):
        bench_runners.run_program(failing, exported, 1.0, 3)


def test_packages_that_cannot_stand_side_by_side_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((exported / MANIFEST).read_text())
    changes = {"twin": {}, "other": {"format": "aoti", "dtype": "bfloat16"}}
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({**values, **change}))
    for arguments, sentence in (
        ([f"{tmp_path}/twin"], "2 packages of 1 formats"),
        ([f"{tmp_path}/other"], "differ in dtype: bfloat16, float32"),
        (["--program", f"{tmp_path}/missing"], "no program that can be run"),
        (["--program", f"{program(tmp_path, '')}"], "none of these is one"),
    ):
        assert bench_runners.main([f"{exported}", *arguments]) == 2
        assert sentence in capsys.readouterr().err


def test_torch_runs_the_model_in_the_packages_dtype(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fresh(arguments: list[str], **_: Any) -> dict[str, float]:
        asked.append(" ".join(arguments[-4:]))
        return {"frames a second": float(len(asked))}

    monkeypatch.setattr(harness, "fresh", fresh)
    section = bench_runners.measure(
        [exported], program=None, model="demo", processes=2, seconds=1.0, threads=1
    )
    assert asked == ["--model demo --dtype float32", f"--model {exported} --dtype auto"] * 2
    assert {name: figure.median for name, figure in section.figures.items()} == {
        "torch: frames a second": 2.0,
        "onnx: frames a second": 3.0,
    }


def test_a_stream_is_measured(exported: Path) -> None:
    figures = bench_runners.probe(str(exported), "auto", 2.0, torch.get_num_threads())
    assert set(figures) == {*READ, "peak memory, GB"}
    assert all(value > 0 for value in figures.values())
