from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from livereel.benchmarks import bench_clip, bench_serve, bench_startup, bench_stream, bench_vae
from livereel.benchmarks.baseline_diffusers import Clip
from livereel.benchmarks.compare import read
from livereel.benchmarks.harness import Environment, Spread
from livereel.benchmarks.kernels import harness
from livereel.benchmarks.report import Section, to_json
from livereel.benchmarks.subject import Subject
from livereel.engine import cli
from livereel.engine.cli import bench_runs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the harness is asked to report."""
    seen: dict[str, Any] = {}

    def report(benches: dict[str, Any], **options: Any) -> int:
        seen.update(ops=list(benches), **options)
        assert all(callable(cases) for cases in benches.values())
        return 1

    monkeypatch.setattr(harness, "report", report)
    return seen


def test_options_reach_the_harness_and_its_code_comes_back(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    options = f"gate_residual norm_modulate --runs 3 --json {path}"
    assert cli.main(["bench", "kernels", *options.split()]) == 1
    assert asked == {"ops": ["gate_residual", "norm_modulate"], "rounds": 3, "path": path}


def test_every_bench_runs_by_default(asked: dict[str, Any]) -> None:
    assert cli.main(["bench", "kernels"]) == 1
    assert {"norm_modulate", "rms_norm_silu", "to_pixels"} <= set(asked["ops"])
    assert asked["path"] is None


def test_mistakes_are_one_line(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "kernels", "dance"]) == 2
    assert "unknown kernel 'dance'; known are" in capsys.readouterr().err
    assert cli.main(["bench", "kernels", "--json", str(tmp_path / "no" / "file.json")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert asked == {}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "kernels", "gate_residual"]) == 2
    assert capsys.readouterr().err == (
        "livereel: kernel benchmarks run on a CUDA device, and torch sees none here\n"
    )


def test_count_says_what_the_demo_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "count.json"
    options = f"--frames 9 --window 9 --steps 3 --json {path}"
    assert cli.main(["bench", "count", *options.split()]) == 0
    out = capsys.readouterr().out
    assert out.startswith("demo, ") and "window 9" in out and "DiT pass, each of 3" in out
    said = json.loads(path.read_text())
    assert (said["frames"], said["latents"], said["chunk"][0]["times"]) == (9, 3, 3)
    assert said["clip"][0]["work"]["flops"]["linear"] > 0


def test_count_tells_mistakes_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        ("--model wan9", "unknown model 'wan9'"),
        ("--size 17x16", "size 17x16 does not fit"),
        ("--chunk 64", "window counts the chunk itself"),
        ("--dtype int8", "--dtype"),
    ):
        assert cli.main(["bench", "count", *options.split()]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_compare_fails_when_something_is_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(__file__).parents[3] / "benchmarks" / "results" / "stream-cpu-2-cores.json"
    assert cli.main(["bench", "compare", str(run), str(run)]) == 0
    assert capsys.readouterr().out.endswith("0 of 20 figures are slower\n")
    values = json.loads(run.read_text())
    for timing in values["sections"]["decode"]["timings"]:
        timing["seconds"] = [2 * seconds for seconds in timing["seconds"]]
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(values))
    assert cli.main(["bench", "compare", str(run), str(slow)]) == 1
    assert "slower  decode: livereel, frames a second" in capsys.readouterr().out
    assert cli.main(["bench", "compare", str(run), str(slow), "--ratios"]) == 0
    assert cli.main(["bench", "compare", str(run), str(slow), "--by", "60"]) == 0
    assert cli.main(["bench", "compare", str(run), str(tmp_path / "none.json")]) == 2


def test_startup_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = {}

    def measure(startup: bench_startup.Startup, *, runs: int, baseline: bool) -> Section:
        told.update(startup=startup, runs=runs, baseline=baseline)
        figures = {bench_startup.TOTAL: Spread(3.0, 2.9, 3.1)}
        return Section(title="startup of demo", figures=figures)

    monkeypatch.setattr(bench_startup, "measure", measure)
    path = tmp_path / "startup.json"
    options = f"--device cpu --dtype float32 --runs 2 --empty-cache --json {path}"
    assert cli.main(["bench", "startup", *options.split()]) == 0
    assert told == {
        "startup": bench_startup.Startup(device="cpu", dtype="float32", empty_cache=True),
        "runs": 2,
        "baseline": False,
    }
    assert "cold process to first frame, s 3.00 [2.90, 3.10]" in capsys.readouterr().out
    assert read(path).sections["startup"].title == "startup of demo"
    options = "--device cpu --baseline diffusers"  # which wants to know the dtype
    assert cli.main(["bench", "startup", *options.split()]) == 0
    assert told["baseline"] and told["startup"].dtype in ("float32", "bfloat16")


def test_startup_tells_in_one_line_why_a_process_did_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(startup: bench_startup.Startup, *, runs: int, baseline: bool) -> Section:
        raise RuntimeError("python -m it failed:\nTraceback\nInputError: no such thing")

    monkeypatch.setattr(bench_startup, "measure", measure)
    assert cli.main(["bench", "startup"]) == 2
    said = "livereel: a process did not start: InputError: no such thing\n"
    assert capsys.readouterr().err == said
    assert cli.main(["bench", "startup", "--model", "none"]) == 2
    assert "unknown model 'none'" in capsys.readouterr().err
    both = ["--baseline", "none", "--baseline", "diffusers"]
    assert cli.main(["bench", "startup", *both]) == 2
    assert "--baseline none goes with no other" in capsys.readouterr().err


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a model is loaded with, and what is measured; neither is done."""
    told: dict[str, Any] = {"measured": []}
    stand_in = SimpleNamespace(model=SimpleNamespace(frames=81))

    def load(name: str, **options: Any) -> Any:
        told["load"] = {"name": name, **options}
        return stand_in

    def measure(subject: Any, baselines: list[str], **options: Any) -> Section:
        told["measured"].append((subject, baselines, options))
        return Section(title="measured", figures={"first frame, s": Spread(1.0, 1.0, 1.0)})

    stand_in.at = lambda **changes: changes
    monkeypatch.setattr(Subject, "load", load)
    monkeypatch.setattr(bench_runs, "_ceilings", lambda subject: "top")
    monkeypatch.setattr(bench_runs, "_loops", lambda subject: True)
    monkeypatch.setattr(bench_stream, "measure", measure)
    monkeypatch.setattr(bench_stream, "title", str)
    monkeypatch.setattr(bench_vae, "measure", lambda *a, **k: measure(*a, **k))
    monkeypatch.setattr(bench_clip, "measure", lambda *a, **k: measure(*a[:2], clip=a[2], **k))
    return told


def test_stream_measures_at_every_setting(
    loaded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    options = (
        f"--model wan2.1-1.3b --random-weights --size 64x64 128x64 --steps 4 2 --chunk 3 "
        f"--decoder tiny --dtype float32 --runs 3 --warmup 0 --json {out} --plot {page}"
    )
    assert cli.main(["bench", "stream", *options.split()]) == 0
    assert loaded["load"] == {
        "name": "wan2.1-1.3b", "device": "auto", "dtype": "float32", "decoder": "tiny",
        "random": True,
    }  # fmt: skip
    subjects = [subject for subject, _, _ in loaded["measured"]]
    assert [(x["size"], x["steps"]) for x in subjects] == [
        ((64, 64), 4), ((128, 64), 4), ((64, 64), 2),
    ]  # fmt: skip
    _, baselines, how = loaded["measured"][0]
    assert baselines == ["loop", "diffusers"] and how == {"runs": 3, "warmup": 0, "top": "top"}
    assert len(read(out).sections) == 3 and "<h3>measured</h3>" in page.read_text()
    assert capsys.readouterr().out.count("measured") == 3


def test_baselines_are_the_ones_asked_for(
    loaded: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for options, wanted in (
        ("--baseline none", []),
        ("--baseline diffusers-fast --baseline loop", ["diffusers-fast", "loop"]),
    ):
        assert cli.main(["bench", "stream", *options.split()]) == 0
        assert loaded["measured"][-1][1] == wanted
    for options in ("--baseline none --baseline loop", "--baseline slow", "--runs 0", "--size 3"):
        assert cli.main(["bench", "stream", *options.split()]) == 2
    assert cli.main(["bench", "stream", "--model", "wan9"]) == 2
    err = capsys.readouterr().err
    assert "goes with no other" in err and "unknown model 'wan9'" in err


def test_vae_is_measured_at_the_models_length(loaded: dict[str, Any]) -> None:
    loaded_at: dict[str, Any] = {}
    assert cli.main(["bench", "vae", "--frames", "9", "--baseline", "diffusers"]) == 0
    [(subject, baselines, options)] = loaded["measured"]
    loaded_at.update(subject)
    assert loaded_at == {"size": None} and baselines == ["diffusers"]
    assert options["frames"] == 9 and options["runs"] == 7


def test_a_clip_is_guided_and_beside_the_fastest(loaded: dict[str, Any]) -> None:
    assert cli.main(["bench", "clip", "--steps", "4", "--size", "64x32"]) == 0
    [(subject, baselines, options)] = loaded["measured"]
    assert subject == {"size": (64, 32)} and baselines == ["diffusers-fast"]
    assert options == {
        "clip": Clip(frames=81, steps=4, guidance=5.0), "runs": 3, "top": "top",
    }  # fmt: skip
    assert cli.main(["bench", "clip", "--steps", "0"]) == 2


def test_the_command_line_knows_all_baselines() -> None:
    assert tuple(bench_clip.BASELINES) == bench_runs.CLIP_BASELINES
    assert tuple(bench_stream.BASELINES) == bench_runs.STREAM_BASELINES
    assert tuple(bench_vae.BASELINES) == bench_runs.VAE_BASELINES


def test_serve_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[str] = []
    monkeypatch.setattr(bench_serve, "main", given.extend)
    path = tmp_path / "serve.json"
    options = f"--streams 1 3 --fps 4 --seconds 5 --json {path}"
    assert cli.main(["bench", "serve", *options.split()]) == 0
    assert given == [
        "--model=demo", "--seconds=5.0", "--fps=4.0", f"--json={path}", "--streams", "1", "3",
    ]  # fmt: skip
    assert cli.main(["bench", "serve", "--streams", "0"]) == 2


def test_what_ran_elsewhere_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for dtype in ("bfloat16", "float32"):
        section = Section(
            title="a", setup={"dtype": dtype}, ratios={"livereel over loop": Spread(2.0, 2.0, 2.0)}
        )
        environment = Environment.capture(threads=1, packages=(), repo=tmp_path)
        paths.append(tmp_path / f"{dtype}.json")
        paths[-1].write_text(to_json(environment, {"a": section}))
    assert cli.main(["bench", "compare", *map(str, paths), "--ratios"]) == 0
    assert "not compared: a (dtype bfloat16 and float32)" in capsys.readouterr().out


def test_report_writes_a_page_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = Path(__file__).parents[3] / "benchmarks" / "results"
    for path in committed.glob("*.json"):
        shutil.copy(path, tmp_path)
    assert cli.main(["bench", "report", str(tmp_path)]) == 0
    assert "left out: demo-scores.json" in capsys.readouterr().out
    assert "livereel over diffusers" in (tmp_path / "report.html").read_text()
    assert "| livereel over diffusers |" in (tmp_path / "report.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert cli.main(["bench", "report", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
