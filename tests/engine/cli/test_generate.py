from __future__ import annotations

import json
import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from livereel.engine import Engine, cli, memory
from livereel.engine.cli import arguments
from livereel.engine.media import writer
from livereel.engine.media.reader import read_video
from livereel.engine.text.encoder import PromptWarning

PROMPT = "a red circle moving right"


def generate(output: Path | str, model: str, *options: str, prompt: str = PROMPT) -> int:
    return cli.main(["generate", prompt, "-o", str(output), "--model", model, *options])


def outputs(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {"model", "picture.png"}


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_a_prompt_becomes_a_file(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    path = tmp_path / f"clip{ending}"
    assert generate(path, model, "--frames", "10") == 0
    frames, fps = read_video(path, 100)
    assert frames.shape == (10, 48, 64, 3)
    assert fps == pytest.approx(16, rel=0.05)
    assert fake.loaded == {"model": model, "device": "auto", "dtype": "auto"}
    assert fake.asked == {
        "prompt": PROMPT,
        "seed": 0,
        "steps": None,
        "width": 64,
        "height": 48,
        "image": None,
        "last_image": None,
        "clip": None,
        "strength": None,
        "loras": {},
        "frames": 10,
        "fps": 16,
    }
    out, err = capsys.readouterr()
    assert f"{path}: 10 frames of 64x48" in out
    assert re.search(
        r"first frame after [\d.]+ s, [\d.]+ frames a second, peak memory [\d.]+ [MG]B$",
        out.strip(),
    )
    assert "10/10 frames" in err


@pytest.mark.parametrize(
    ("options", "frames", "fps"),
    [
        ([], 80, 16),
        (["--seconds", "1"], 16, 16),
        (["--seconds", "0.6"], 10, 16),
        (["--seconds", "1", "--fps", "24"], 24, 24),
        (["--frames", "5", "--fps", "12.5"], 5, 12.5),
        (["--seconds", "0.1", "--fps", "7.5"], 1, 7.5),
    ],
)
def test_seconds_give_the_rounded_number_of_frames(
    tmp_path: Path, model: str, fake: Any, options: list[str], frames: int, fps: float
) -> None:
    assert generate(tmp_path / "clip.mp4", model, *options) == 0
    assert fake.asked["frames"] == frames
    back, rate = read_video(tmp_path / "clip.mp4", 999)
    assert (len(back), rate) == (frames, pytest.approx(fps))


def test_options_reach_the_engine(tmp_path: Path, model: str, fake: Any) -> None:
    Image.new("RGB", (200, 100), (10, 200, 30)).save(tmp_path / "picture.png")
    options = "--seed 18446744073709551615 --steps 2 --size 96x32 --device cpu --dtype bfloat16"
    image = str(tmp_path / "picture.png")
    folder = f"{tmp_path}/frames/"
    assert generate(folder, model, "--frames", "3", "--image", image, *options.split()) == 0
    assert fake.loaded == {"model": model, "device": "cpu", "dtype": "bfloat16"}
    asked = fake.asked
    assert (asked["seed"], asked["steps"]) == (2**64 - 1, 2)
    assert asked["image"].shape == (32, 96, 3)
    assert tuple(asked["image"][5, 5]) == (10, 200, 30)
    assert sorted(os.listdir(folder)) == [f"frame_{i:06d}.png" for i in range(3)]


def test_a_model_without_a_recipe_makes_the_clip_as_a_whole(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    os.remove(f"{model}/livereel.json")
    options = ["--frames", "5", "--size", "64x48", "--fps", "8", "--steps", "30"]
    assert generate(tmp_path / "clip.mp4", model, *options) == 0
    assert read_video(tmp_path / "clip.mp4", 9)[0].shape == (5, 48, 64, 3)
    assert fake.asked["steps"] == 30
    err = capsys.readouterr().err
    assert "2/2 steps" in err and "5/5 frames" in err
    assert generate(tmp_path / "clip.mp4", model, "--image", "picture.png") == 2
    assert "from text alone" in capsys.readouterr().err


def test_the_real_engine_s_frames_arrive_unchanged(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--frames", "14", "--seed", "3", "--device", "cpu", "--dtype", "float32"]
    folder = f"{tmp_path}/frames/"
    assert generate(folder, str(tiny_folder), *options, "--size", "32x48", prompt="a red ball") == 0
    engine = Engine.load(tiny_folder, device="cpu", dtype="float32")
    frames = engine.generate("a red ball", frames=14, seed=3, width=32, height=48).frames
    written = [np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())]
    assert np.array_equal(np.stack(written), frames)
    assert generate(folder, str(tiny_folder), "--frames", "2", prompt="a green ball") == 0
    err = capsys.readouterr().err
    assert re.search("^livereel: warning: .*green", err, re.MULTILINE)


def test_a_sheet_is_written_beside(tmp_path: Path, model: str, fake: Any) -> None:
    sheet = tmp_path / "sheet.png"
    assert generate(tmp_path / "clip.mp4", model, "--frames", "20", "--sheet", str(sheet)) == 0
    picture = np.asarray(Image.open(sheet))
    assert {0, 40, 80, 120, 160} <= set(np.unique(picture).tolist())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_a_playable_file(
    tmp_path: Path,
    model: str,
    fake: Any,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def stop(index: int) -> None:
        if index == 3:
            os.kill(os.getpid(), number)

    fake.before_chunk = stop
    before = signal.getsignal(number)
    sheet = str(tmp_path / "sheet.png")
    assert generate(tmp_path / "clip.mp4", model, "--frames", "40", "--sheet", sheet) == code
    assert len(read_video(tmp_path / "clip.mp4", 99)[0]) == 12
    assert outputs(tmp_path) == {"clip.mp4", "sheet.png"}
    assert "stopped after 12 of 40 frames" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_stop_while_frames_are_written_loses_none_of_them(
    tmp_path: Path, model: str, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = writer._VideoSink._encode
    calls = 0

    def interrupted(self: Any, frame: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (6, 9):  # within the second chunk, and while the file is closed
            os.kill(os.getpid(), signal.SIGINT)
        encode(self, frame)

    monkeypatch.setattr(writer._VideoSink, "_encode", interrupted)
    assert generate(tmp_path / "clip.mp4", model, "--frames", "40") == 130
    assert calls == 9
    frames, _ = read_video(tmp_path / "clip.mp4", 99)
    assert frames[:, 0, 0, 0].tolist() == pytest.approx([0] * 4 + [40] * 4, abs=3)


def test_a_stop_before_the_first_frame_leaves_nothing(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.before_chunk = lambda index: os.kill(os.getpid(), signal.SIGINT)
    assert generate(tmp_path / "clip.mp4", model) == 130
    assert outputs(tmp_path) == set()
    assert "before the first frame" in capsys.readouterr().err


def test_a_stop_while_the_model_loads_leaves_nothing(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(arguments, "load_engine", load)
    assert generate(tmp_path / "clip.mp4", model) == 143
    assert outputs(tmp_path) == set()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "memory ran out; try a smaller size"),
        (ImportError("LiveReel's native core is not built"), "LiveReel's native core is not built"),
    ],
)
def test_what_the_machine_lacks_is_told_in_a_line(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str],
    error: Exception, told: str,
) -> None:  # fmt: skip
    def fail(index: int) -> None:
        raise error

    fake.before_chunk = fail
    assert generate(tmp_path / "clip.mp4", model, "--frames", "8") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"livereel: {told}") and err.count("\n") == 1
    assert outputs(tmp_path) == set()


def test_a_failing_engine_leaves_nothing(tmp_path: Path, model: str, fake: Any) -> None:
    def fail(index: int) -> None:
        if index == 1:
            raise RuntimeError("a bug")

    fake.before_chunk = fail
    with pytest.raises(RuntimeError, match="a bug"):
        generate(tmp_path / "clip.mp4", model)
    assert outputs(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seconds", "0"], "--seconds: must be a number above 0 .* got '0'"),
        (["--seconds", "-1"], "--seconds"),
        (["--seconds", "nan"], "got 'nan'"),
        (["--seconds", "inf"], "got 'inf'"),
        (["--seconds", "1e9"], "at most 86400"),
        (["--seconds", "soon"], "got 'soon'"),
        (["--seconds", "0.01"], "0.01 seconds at 16 frames a second are 0 frames"),
        (["--seconds", "80000", "--fps", "240"], "19200000 frames"),
        (["--seconds", "1", "--frames", "9"], "not allowed with"),
        (["--frames", "0"], "--frames: must be a whole number from 1"),
        (["--frames", "2.5"], "got '2.5'"),
        (["--fps", "0"], "--fps"),
        (["--fps", "1000"], "from 0.1 to 240"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--steps", "0"], "--steps"),
        (["--steps", "3"], "knows 2 steps, got 3"),
        (["--size", "64"], "such as 128x128"),
        (["--size", "100x50"], "multiples of 16, such as 96x48 or 112x64"),
        (["--size", "96x50"], "such as 96x48 or 96x64"),
        (["--size", "8x8"], "such as 16x16$"),
        (["--size", "0x48"], "such as 16x48$"),
        (["--size", "16000x16000"], "at most 8192"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--dtype", "int8"], "--dtype"),
        (["--image", "missing.png"], "no picture missing.png"),
        (["--video", "missing.mp4"], "no video missing.mp4"),
        (["--extend", "missing.mp4"], "no video missing.mp4"),
        (["--strength", "0.5"], "--strength goes with --video"),
        (["--video", "a.mp4", "--strength", "0"], "must be a number above 0 and at most 1"),
        (["--video", "a.mp4", "--extend", "b.mp4"], "not allowed with"),
        (["--last-image", "a.png"], "streams arrive at no picture"),
        (["--lora", "none.safetensors:0.5"], "--lora: none.safetensors does not exist"),
        (["--lora", "model/livereel.json"], "livereel.json is not a whole safetensors file"),
        (["--decoder", "none.safetensors"], "--decoder: none.safetensors does not exist"),
        (["--tile"], "--tile: this model streams"),
        (["--sheet", "sheet.jpg"], "must end in .png"),
        (["--model", "wan-9000"], 'unknown model .wan-9000.: give "demo"'),
        (["--model", "/"], "no model_index.json"),
        (["-o", "clip.avi"], "unknown ending '.avi'"),
        (["-o", "missing/clip.mp4"], "the folder missing does not exist"),
        (["-o", "missing/frames/"], "does not exist"),
        (["-o", "model"], "is a folder"),
        (["-o", "clip.gif", "--fps", "60"], "at most 50"),
        (["--device", "cuda:99"], "GPU"),
        (["--loud"], "unrecognized arguments: --loud"),
        (["--sec", "3"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_loaded(
    tmp_path: Path,
    model: str,
    fake: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate("clip.mp4", model, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("livereel: ")
    assert err.count("\n") == 1
    assert re.search(said, re.sub(r" \(see livereel .*\)$", "", err.strip()))
    assert fake.loaded is None
    assert outputs(tmp_path) == set()


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "empty"), (" \n\t", "empty"), ("a" * 10_001, "10001 characters")]
)
def test_a_prompt_must_say_something(
    tmp_path: Path,
    model: str,
    fake: Any,
    capsys: pytest.CaptureFixture[str],
    prompt: str,
    said: str,
) -> None:
    assert generate(tmp_path / "clip.mp4", model, prompt=prompt) == 2
    assert re.search(f"^livereel: PROMPT: .*{said}", capsys.readouterr().err)
    assert fake.loaded is None


def test_a_stream_that_arrives_at_pictures_is_given_the_last_one(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(model) / "livereel.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "goal_channels": 20}))
    last = str(tmp_path / "last.png")
    Image.new("RGB", (128, 96), (10, 200, 30)).save(last)
    clip = tmp_path / "clip.mp4"
    assert generate(clip, model, "--frames", "6", "--last-image", last) == 0
    assert fake.asked["last_image"].shape == (48, 64, 3) and fake.asked["frames"] == 6
    capsys.readouterr()
    assert generate(clip, model, "--last-image", last, "--video", str(clip)) == 2
    assert "--last-image does not go with --video" in capsys.readouterr().err


def test_too_little_memory_is_told_before_loading(
    tmp_path: Path,
    model: str,
    fake: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_ram", lambda: 50_000_000)
    assert generate(tmp_path / "clip.mp4", model, "--device", "cpu") == 2
    assert "too little memory" in capsys.readouterr().err
    assert fake.loaded is None
    assert outputs(tmp_path) == set()


def test_the_engine_s_warnings_are_one_line_and_others_are_not_shown(
    tmp_path: Path, model: str, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(index: int) -> None:
        if index == 0:
            warnings.warn("from a library", UserWarning, stacklevel=1)
            warnings.warn("unknown word\n'dog'", PromptWarning, stacklevel=1)

    fake.before_chunk = warn
    shown = warnings.showwarning
    assert generate(tmp_path / "clip.mp4", model, "--frames", "4") == 0
    err = capsys.readouterr().err
    assert "livereel: warning: unknown word 'dog'\n" in err
    assert "library" not in err
    assert warnings.showwarning is shown


def test_a_video_is_gone_on_from_and_changed(tmp_path: Path, tiny_folder: Path) -> None:
    clip, longer, other = (tmp_path / f"{name}.mp4" for name in ("clip", "longer", "other"))
    model = str(tiny_folder)
    options = ("--dtype", "float32", "--device", "cpu")
    assert generate(clip, model, "--frames", "13", *options) == 0
    assert generate(longer, model, "--extend", str(clip), "--frames", "12", *options) == 0
    assert read_video(longer, 100)[0].shape == (25, 32, 48, 3)
    assert generate(other, model, "--video", str(clip), "--strength", "0.4", *options) == 0
    assert read_video(other, 100)[0].shape == (13, 32, 48, 3)
    assert generate(other, model, "--video", str(clip), "--seconds", "1", *options) == 2


def test_a_model_that_makes_clips_from_text_alone_refuses_others(
    tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--image": "text alone", "--last-image": "text alone", "--extend": "only a stream"}
    for option, said in options.items():
        assert generate(tmp_path / "clip.mp4", str(clip_folder), option, "x") == 2
        assert said in capsys.readouterr().err
