"""Shots: where cuts and blends land, what they begin with, and the file that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.media.storyboard import MAX_SHOTS, Shot, Storyboard
from livereel.engine.media.writer import open_sink
from livereel.engine.types import Chunk

ONE, TWO = "a red ball moving left", "a blue ball"


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.mark.parametrize("at", [1, 5, 13, 14, 20])
def test_a_cut_lands_on_its_frame_and_starts_anew(engine: Engine, at: int) -> None:
    """Behind it is a stream of its own, of which nothing was seen before."""
    session = engine.open(ONE, seed=3)
    session.cut(TWO, at=at)
    before: list[Chunk] = []
    while session._state.pts < at:
        before.append(next(session))
    after = [next(session), next(session)]
    assert [chunk.pts for chunk in after] == [at, at + 1]
    assert after[0].applied == ("cut",) and not any(chunk.applied for chunk in before)
    assert [len(chunk.frames) for chunk in after] == [1, 12]
    whole = engine.open(ONE, seed=3)
    assert np.array_equal(frames_of(before), frames_of(islice(whole, len(before)))[:at])
    fresh = engine.open(TWO, seed=3, start_frame=12 * len(before))  # with noise not yet used
    assert np.array_equal(frames_of(after), frames_of(islice(fresh, 2)))


def test_a_shot_s_first_frames_become_the_sinks(engine: Engine) -> None:
    from dataclasses import replace

    folder = replace(engine.folder, stream=replace(engine.config, sinks=1, window=4))
    pinned = replace(engine, folder=folder)
    session = pinned.open(ONE)
    list(islice(session, 3))
    old = session._state.sinks
    session.cut(TWO)
    list(islice(session, 4))
    new = session._state.sinks
    assert old is not None and new is not None and old.shape == new.shape
    assert not np.allclose(old, new)
    assert session._sampler.layout.visible(session._state.latent)[0] == 0


def test_a_shot_can_begin_with_a_picture(engine: Engine) -> None:
    picture = np.full((32, 48, 3), 200, np.uint8)
    session = engine.open(ONE)
    session.cut(TWO, image=picture, at=4)
    chunks = list(islice(session, 3))
    assert chunks[2].stats.passes == 0 and chunks[2].pts == 4
    alone = next(engine.open(TWO, image=picture))
    assert np.array_equal(chunks[2].frames, alone.frames)
    session.reset()  # to the shot's first frame
    assert np.array_equal(next(session).frames, alone.frames)


def test_a_storyboard_is_played_to_its_end(engine: Engine) -> None:
    board = Storyboard((
        Shot(prompt=ONE, seconds=1), Shot(prompt=TWO, seconds=0.5),
        Shot(prompt=ONE, seconds=1, cut=False), Shot(prompt=TWO, seconds=0.3),
    ))  # fmt: skip
    assert board.starts(16) == [0, 16, 24, 40, 45]
    chunks = list(engine.play(board, seed=1))
    assert sum(len(chunk.frames) for chunk in chunks) == 45
    taken = {chunk.pts: chunk.applied for chunk in chunks if chunk.applied}
    # The shot from 16 on has chunks of 1 and 12 frames: the blend waits for the next.
    assert taken == {16: ("cut",), 29: ("update",), 40: ("cut",)}
    plain = frames_of(islice(engine.open(ONE, seed=1), 3))
    assert np.array_equal(frames_of(chunks)[:16], plain[:16])


def test_a_failed_chunk_is_cut_when_it_is_made_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from livereel.engine.errors import ResourceError

    session = engine.open(ONE)
    next(session)
    session.cut(TWO, at=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(engine.runner), "decode", lambda *_: (_ for _ in ()).throw(MemoryError())
        )
        with pytest.raises(ResourceError):
            next(session)
    assert next(session).applied == ("cut",)


GOOD = """
[[shot]]
prompt = "one"
seconds = 2

[[shot]]
prompt = "two"
seconds = 1.5
join = "blend"

[[shot]]
prompt = "three"
seconds = 1
image = "first.png"
"""


def test_a_file_lists_shots(tmp_path: Path) -> None:
    (tmp_path / "shots.toml").write_text(GOOD)
    board = Storyboard.load(tmp_path / "shots.toml")
    assert board == Storyboard((
        Shot(prompt="one", seconds=2), Shot(prompt="two", seconds=1.5, cut=False),
        Shot(prompt="three", seconds=1, image=tmp_path / "first.png"),
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must hold"), ("shot = 1", "must hold"), ("a = 1\n" + GOOD, "must hold"),
        ("[[shot]", "is not TOML"), ("shot = [1]", "shot 1: it must be a table"),
        (GOOD.replace("seconds = 1.5", ""), "shot 2: it has no seconds"),
        (GOOD.replace('"two"', '" "'), "shot 2: a shot's prompt is empty"),
        (GOOD.replace('"two"', "2"), "shot 2: prompt must be a text, got 2"),
        (GOOD.replace("1.5", "0"), "shot 2: a shot's seconds are 0"),
        (GOOD.replace("1.5", "nan"), "seconds are nan"), (GOOD.replace("1.5", "true"), "True"),
        (GOOD.replace("blend", "wipe"), "join is 'wipe'; wanted cut or blend"),
        (GOOD.replace("image", "sound"), "shot 3: 'sound' is unknown"),
        (GOOD.replace('"first.png"', "3"), "image must be a file's name"),
        (GOOD.replace('join = "blend"', 'join = "blend"\nimage = "a.png"'), "starts with a cut"),
        (GOOD * (MAX_SHOTS // 3 + 1), "1 to 500 shots, got 501"), ("#" * (1 << 20 | 1), "longer"),
    ],
)  # fmt: skip
def test_what_is_no_storyboard_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "shots.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        Storyboard.load(tmp_path / "shots.toml")


def test_a_file_that_cannot_be_read_and_a_shot_without_a_frame(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Storyboard.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not TOML"):
        Storyboard.load(tmp_path / "bytes.toml")
    with pytest.raises(InputError, match="shot 2 is shorter than a frame at 16"):
        Storyboard((Shot(prompt="a", seconds=1), Shot(prompt="a", seconds=0.01))).starts(16)


def test_bad_cuts_are_refused(engine: Engine) -> None:
    session = engine.open(ONE)
    for at in (-1, 1.5, True):
        with pytest.raises(InputError, match="at is"):
            session.cut(TWO, at=at)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompt is empty"):
        session.cut(" ")
    with pytest.raises(InputError, match="wanted uint8 of shape"):
        session.cut(TWO, image=np.zeros((3, 3, 3), np.uint8))


def test_the_command_plays_a_script(tmp_path: Path, tiny_folder: Path) -> None:
    from livereel.engine.cli import main
    from livereel.engine.media.reader import read_video

    sink = open_sink(f"{tmp_path}/pictures/", fps=16)
    sink.write(np.full((1, 32, 48, 3), 90, np.uint8))
    picture = next(iter(sink.close().iterdir()))
    script = tmp_path / "shots.toml"
    script.write_text(GOOD.replace("first.png", str(picture)))
    command = ["generate", "-o", str(tmp_path / "clip.mp4"), "--model", str(tiny_folder),
               "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    assert main([*command, "--script", str(script)]) == 0
    assert len(read_video(tmp_path / "clip.mp4", 1000)[0]) == 72
    assert main(command) == 2
    assert main([*command, "a ball", "--script", str(script)]) == 2
    assert main([*command, "--script", str(script), "--frames", "3"]) == 2
