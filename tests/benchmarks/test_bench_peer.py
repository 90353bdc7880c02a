"""The benchmark's own logic against a simulated engine and peer, whose work moves a fake clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import livereel.engine
from livereel.benchmarks import bench_peer, peer
from livereel.benchmarks.bench_peer import Bench
from livereel.benchmarks.harness import Spread
from livereel.benchmarks.peer import DEFAULTS, Setting
from livereel.benchmarks.peer import Peer as RealPeer
from livereel.benchmarks.report import Goal, Section, to_json
from livereel.engine.config import StreamConfig

BEST = Setting(dtype="bfloat16", channels_last=True)


@dataclass
class World:
    """One clock, and how long each thing takes in it."""

    now: float = 0.0
    ours_s: float = 0.5
    peer_s: dict[Setting, float] = field(
        default_factory=lambda: {
            DEFAULTS: 4.0,
            Setting(channels_last=True): 5.0,
            Setting(dtype="bfloat16"): 2.0,
            BEST: 1.0,
            Setting(dtype="bfloat16", channels_last=True, compiled=True): 3.0,
        }
    )
    offset: float = 0.0  # of the peer's frames from ours
    clips: list[dict[str, Any]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now


class FakeEngine:
    dtype, device = torch.bfloat16, "cpu"

    def __init__(self, world: World) -> None:
        self.world = world

    def decode(self, latents: Tensor) -> Tensor:
        self.world.now += self.world.ours_s
        return torch.zeros(1, 3, 33, 2, 2)

    def generate(self, prompt: str, *, seconds: float, seed: int) -> Any:
        self.world.now += self.world.ours_s
        stats = [SimpleNamespace(passes=4), SimpleNamespace(passes=5)]
        return SimpleNamespace(frames=[0] * round(16 * seconds), stats=stats)

    def open(self, prompt: str, *, seed: int) -> Iterator[Any]:
        while True:
            self.world.now += self.world.ours_s
            yield SimpleNamespace(frames=[0] * 12)


class FakePeer:
    world: World

    def __init__(self, folder: Path, stream: Any, setting: Setting = DEFAULTS) -> None:
        self.folder, self.stream, self.setting = folder, stream, setting

    def having(self, setting: Setting) -> FakePeer:
        return type(self)(self.folder, self.stream, setting)

    def random_latents(self, frames: int, *, seed: int) -> Tensor:
        return torch.zeros(1, 4, 9, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        self.world.now += self.world.peer_s[self.setting]
        return torch.full((1, 3, 33, 2, 2), self.world.offset)

    def clip(self, prompt: str, **arguments: Any) -> list[int]:
        self.world.now += self.world.peer_s[self.setting]
        self.world.clips.append(arguments)
        return [0] * int(arguments["frames"])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    load = SimpleNamespace(load=lambda model: FakeEngine(world))
    monkeypatch.setattr(livereel.engine, "Engine", load, raising=False)
    monkeypatch.setattr(peer, "Peer", type("PeerHere", (FakePeer,), {"world": world}))
    return world


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    recipe = {"window": 3, "timesteps": [1000, 750, 500, 250], "width": 128, "height": 128}
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "livereel.json").write_text(json.dumps(recipe))
    return Bench(model=str(tmp_path), clock=world.clock, rounds=3, seconds=2.0)


def test_decode_compares_with_the_defaults_and_with_the_fastest(bench: Bench) -> None:
    section = bench_peer.decode(bench)
    assert section.title == "decode: 33 frames of 128x128"
    assert [t.settings for t in section.timings] == [
        "bfloat16 on cpu (defaults)",
        "float32 (defaults)",
        "bfloat16, channels-last",
    ]
    assert [t.fps for t in section.timings] == [Spread(f, f, f) for f in (66.0, 8.25, 33.0)]
    assert section.ratios == {
        "livereel over diffusers": Spread(8.0, 8.0, 8.0),
        "livereel over diffusers, best": Spread(2.0, 2.0, 2.0),
    }
    assert [goal.bound for goal in section.goals] == [4.0, 1.8]
    assert all(goal.met for goal in section.goals)


def test_nothing_is_reported_when_the_decoders_differ(bench: Bench, world: World) -> None:
    world.offset = 0.1
    with pytest.raises(SystemExit, match=r"frames differ \(26\.0 dB"):
        bench_peer.decode(bench)


def test_stream_gives_the_peer_as_many_passes_a_frame(bench: Bench, world: World) -> None:
    section = bench_peer.stream(bench)
    assert {(clip["frames"], clip["passes"]) for clip in world.clips} == {(33, 5)}
    assert section.title.startswith("stream: 32 frames (diffusers 33) of 128x128")
    assert section.timings[0].fps.median == 64.0
    ratio = (4.0 / 33) / (0.5 / 32)
    assert section.ratios["livereel over diffusers"].median == pytest.approx(ratio)


def test_the_best_is_compiled_only_when_that_is_faster(bench: Bench, world: World) -> None:
    def job(one: Any) -> Any:
        return lambda: len(one.clip("", frames=33))

    defaults: Any = peer.Peer(Path(), None)  # type: ignore[arg-type]
    best, notes = bench_peer.find_best(bench, defaults, job)
    assert best.setting == BEST
    assert len(notes) == 5
    world.peer_s[Setting(dtype="bfloat16", channels_last=True, compiled=True)] = 0.5
    best, _ = bench_peer.find_best(bench, defaults, job)
    assert best.setting.compiled


def test_a_peer_that_does_not_compile_is_at_its_best_without(bench: Bench, world: World) -> None:
    del world.peer_s[Setting(dtype="bfloat16", channels_last=True, compiled=True)]
    section = bench_peer.decode(bench)
    assert section.timings[2].settings == str(BEST)
    assert any("torch.compile failed" in note for note in section.notes)


def test_a_probe_reports_load_first_frame_and_steady_rate(bench: Bench, world: World) -> None:
    ours = bench_peer.probe(bench, "livereel")
    assert ours["first frame, s"] == 0.5
    assert ours["frames a second"] == 24.0
    assert 0.01 < ours["peak memory, GB"] < 100
    theirs = bench_peer.probe(bench, "diffusers")
    assert theirs["first frame, s"] == 4.0
    assert theirs["frames a second"] == 33 / 4.0
    assert world.clips[-1]["passes"] == 5  # four timesteps and the cache's own


def test_start_takes_the_medians_of_fresh_processes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def fresh(arguments: list[str]) -> dict[str, float]:
        started.append(arguments[2])
        figure = float(len(started))
        keys = ("load, s", "first frame, s", "frames a second", "peak memory, GB")
        return dict.fromkeys(keys, figure)

    monkeypatch.setattr(bench_peer.harness, "fresh", fresh)
    section = bench_peer.start(bench)
    assert started == ["--probe=livereel", "--probe=diffusers"] * 3
    assert section.figures["livereel: load, s"] == Spread(3.0, 2.0, 4.0)
    assert section.figures["diffusers: load, s"].median == 4.0
    assert [goal.met for goal in section.goals] == [False, False, True, False]


@pytest.mark.parametrize(("seconds", "frames"), [(2.0, 33), (2.0625, 33), (0.05, 1), (0.1, 5)])
def test_whole_clips_are_one_frame_and_then_fours(seconds: float, frames: int) -> None:
    assert Bench(seconds=seconds).clip_frames(16.0) == frames


def test_a_probes_arguments_are_read_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Bench, str]] = []

    def probe(bench: Bench, who: str) -> dict[str, float]:
        seen.append((bench, who))
        return {"load, s": 1.0}

    monkeypatch.setattr(bench_peer, "probe", probe)
    module, *options = bench_peer.probe_arguments(bench, "diffusers")[1:]
    assert module == "livereel.benchmarks.bench_peer"
    assert bench_peer.main(options) == 0
    [(read, who)] = seen
    assert (read.model, read.prompt, read.seconds) == (bench.model, bench.prompt, bench.seconds)
    assert who == "diffusers"
    assert json.loads(capsys.readouterr().out) == {"load, s": 1.0}


def test_main_prints_writes_json_and_fails_on_a_missed_goal(
    bench: Bench, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(bench_peer.SECTIONS, "decode", lambda _: bench_peer.decode(bench))
    path = tmp_path / "figures.json"
    arguments = ["--only", "decode", "--json", str(path)]
    assert bench_peer.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "commit" in printed
    assert "met     livereel over diffusers: 8x (goal: at least 4x)" in printed
    values = json.loads(path.read_text())
    assert values["sections"]["decode"]["timings"][0]["seconds"] == [0.5, 0.5, 0.5]
    assert values["sections"]["decode"]["goals"][1] == {
        "what": "livereel over diffusers, best:", "value": 2.0, "bound": 1.8, "at_least": True,
        "unit": "x", "met": True,
    }  # fmt: skip
    assert values["environment"]["versions"]["torch"] == torch.__version__

    world.ours_s = 2.0
    assert bench_peer.main(arguments) == 1
    assert "MISSED  livereel over diffusers: 2x" in capsys.readouterr().out


def test_goals_have_two_sides() -> None:
    assert Goal(what="", value=2.0, bound=2.0).met
    assert not Goal(what="", value=1.9, bound=2.0).met
    assert Goal(what="", value=2.0, bound=2.0, at_least=False).met
    assert not Goal(what="", value=2.1, bound=2.0, at_least=False).met


def test_an_empty_section_is_a_title_and_json() -> None:
    section = Section(title="nothing")
    assert str(section) == "nothing"
    environment = bench_peer.Environment.capture(threads=1, packages=[], repo=Path())
    assert json.loads(to_json(environment, {"a": section}))["sections"]["a"]["title"] == "nothing"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (DEFAULTS, "float32 (defaults)"),
        (BEST, "bfloat16, channels-last"),
        (Setting(dtype="bfloat16", compiled=True), "bfloat16, torch.compile"),
    ],
)
def test_settings_read_as_they_are(setting: Setting, text: str) -> None:
    assert str(setting) == text


@pytest.mark.parametrize(("scale", "passes", "steps"), [(2.0, 13, 6), (1.0, 5, 5), (2.0, 1, 1)])
def test_a_guided_step_of_the_peers_is_two_passes(scale: float, passes: int, steps: int) -> None:
    asked: dict[str, Any] = {}

    def pipeline(prompt: str, **options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(frames=[np.zeros((5, 2, 2, 3), np.float32)])

    one = object.__new__(RealPeer)
    values = {"window": 3, "timesteps": [1000, 500], "guidance_scale": scale}
    one.stream, one.pipeline = StreamConfig.from_dict(values), pipeline
    assert one.clip("a", frames=5, passes=passes, seed=0).shape == (5, 2, 2, 3)
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (steps, scale)
