"""What can be made from more than a prompt: a clip to go on from, frames to change."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.config import MAX_GIVEN
from livereel.engine.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.sampling.noise import normal
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"


def noise_video(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def take(session: Session, count: int) -> list[Chunk]:
    return list(islice(session, count))


def test_a_stream_goes_on_from_a_clip_as_from_its_own_frames(engine: Engine) -> None:
    """With the latents that a stream made itself given to it, what follows is what followed."""
    whole = engine.open(PROMPT, seed=2)
    expected = take(whole, 2)
    made = whole._state.recent
    assert made is not None and made.shape[2] == 4
    expected += take(whole, 2)
    other = engine.open(PROMPT, seed=2, clip=noise_video(13))
    other._state.given = made
    chunks = take(other, 4)
    assert chunks[0].stats.passes == 0
    assert np.array_equal(frames_of(chunks), frames_of(expected))


@pytest.mark.parametrize(
    ("length", "sizes", "encoded"),
    [(1, [1, 12], 1), (5, [5, 12], 5), (9, [9, 12], 9), (13, [1, 12, 12], 13),
     (16, [1, 12, 12], 13), (17, [5, 12, 12], 17)],
)  # fmt: skip
def test_a_clip_of_any_length_is_shown_and_gone_on_from(
    engine: Engine, length: int, sizes: list[int], encoded: int
) -> None:
    video = noise_video(length)
    chunks = take(engine.open(PROMPT, clip=video), len(sizes))
    assert [len(chunk.frames) for chunk in chunks] == sizes
    x = torch.from_numpy(video[-encoded:]).permute(3, 0, 1, 2).unsqueeze(0) / 127.5 - 1
    kept = engine.decode(engine.encode(x))[0].permute(1, 2, 3, 0)
    shown = ((kept + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(frames_of(chunks[:-1]) - shown).max() <= 1


def test_a_stream_that_was_given_a_clip_restores_and_resets(engine: Engine) -> None:
    session = engine.open(PROMPT, clip=noise_video(17), seed=4)
    first = take(session, 1)
    snapshot = session.snapshot()
    rest = frames_of(take(session, 3))
    assert np.array_equal(frames_of(take(engine.restore(snapshot), 3)), rest)
    session.reset()
    again = frames_of(take(session, 4))
    assert np.array_equal(again, np.concatenate([frames_of(first), rest]))


def test_a_fed_stream_takes_frames_as_its_chunks_need_them(engine: Engine) -> None:
    video = noise_video(25)
    session = engine.open(PROMPT, strength=0.5, seed=1)
    chunks: list[Chunk] = []
    for start, stop in ((0, 3), (3, 9), (9, 13), (13, 25)):  # not as the chunks are cut
        session.push(video[start:stop])
        if start != 3:
            chunks += take(session, 1)
    assert [len(chunk.frames) for chunk in chunks] == [1, 12, 12]
    assert [chunk.stats.passes for chunk in chunks] == [1, 2, 2]  # 1 of 3 steps, and the cache's
    same = engine.generate(PROMPT, video=video, strength=0.5, seed=1)
    assert np.array_equal(same.frames, frames_of(chunks))
    other = engine.generate(PROMPT, video=noise_video(25, seed=9), strength=0.5, seed=1)
    assert not np.array_equal(other.frames, same.frames)


def test_strength_says_how_much_of_the_frames_is_kept(engine: Engine) -> None:
    """The first level of noise is mixed into the frames' latents."""
    video = noise_video(13)
    session = engine.open(PROMPT, strength=0.5)
    seen: list[torch.Tensor] = []
    plan = session._sampler.plan

    def watched(*args: Any) -> Any:
        made = plan(*args)
        assert made.noise[0] is not None
        seen.append(made.noise[0])
        return made

    object.__setattr__(session._sampler, "plan", watched)
    list(islice(session.through(video), 2))
    x = torch.from_numpy(video).permute(3, 0, 1, 2).unsqueeze(0) / 127.5 - 1
    latents = engine.runner.vae.normalize(engine.encode(x))
    for chunk, part in enumerate((latents[:, :, :1], latents[:, :, 1:])):
        noise = normal(0, chunk, 0, part.shape)
        torch.testing.assert_close(seen[chunk], 0.4 * part + 0.6 * noise, rtol=0, atol=1e-5)


def test_the_newest_frames_win(engine: Engine) -> None:
    session = engine.open(PROMPT, strength=1.0)
    assert session.push(noise_video(20)) == 0
    assert session.push(noise_video(10)) == 6  # there is room for two chunks of 12
    assert session.push(np.zeros((100, 32, 48, 3), np.uint8)) == 24 + 76
    assert session._feed is not None and not session._feed.take(24).any()


def test_a_fed_stream_waits_for_frames_or_its_end(engine: Engine) -> None:
    session = engine.open(PROMPT, strength=1.0, frames=13)
    made: list[Chunk] = []
    reader = threading.Thread(target=lambda: made.extend(session))
    reader.start()
    session.push(noise_video(1))
    session.push(noise_video(12))
    reader.join(60)
    assert [len(chunk.frames) for chunk in made] == [1, 12]
    waiting = engine.open(PROMPT, strength=1.0)
    reader = threading.Thread(target=lambda: made.extend(waiting))
    reader.start()
    waiting.close()
    reader.join(60)
    assert not reader.is_alive() and len(made) == 2
    with pytest.raises(InputError, match="closed"):
        waiting.push(noise_video(1))


def test_controls_reset_and_restore_reach_a_fed_stream(engine: Engine) -> None:
    session = engine.open(PROMPT, strength=0.5)
    session.push(noise_video(13))
    first = take(session, 2)
    snapshot = session.snapshot()
    session.update(strength=1.0)
    session.push(noise_video(12, seed=1))
    assert [chunk.stats.passes for chunk in take(session, 1)] == [3 + 1]
    session.reset()
    session.push(noise_video(12, seed=2))
    assert [len(chunk.frames) for chunk in take(session, 1)] == [1]
    restored = engine.restore(snapshot, strength=0.5)
    restored.push(noise_video(9, seed=1))  # its encoder starts anew, with a frame that stands alone
    assert [len(chunk.frames) for chunk in take(restored, 1)] == [12]
    assert len(first) == 2


def test_a_chunk_that_fails_gives_its_frames_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open(PROMPT, strength=0.5)
    session.push(noise_video(1))
    with monkeypatch.context() as patch:
        patch.setattr(
            type(engine.runner), "encode", lambda *_: (_ for _ in ()).throw(MemoryError())
        )
        with pytest.raises(ResourceError):
            next(session)
    assert len(next(session).frames) == 1


@pytest.mark.parametrize(("steps", "strength"), [(5, 0.5), (2, 1.0)])
def test_a_clip_changed_by_strength_equals_diffusers(
    clip_folder: Path, steps: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import WanVideoToVideoPipeline
    from diffusers.pipelines.wan import pipeline_wan_video2video
    from PIL import Image

    video = noise_video(9)
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    ours = engine.generate(PROMPT, video=video, strength=strength, steps=steps, seed=3,
                           width=48, height=32)  # fmt: skip
    pipeline = WanVideoToVideoPipeline.from_pretrained(clip_folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = normal(3, 0, 0, (1, 4, 3, 4, 6))
    monkeypatch.setattr(pipeline_wan_video2video, "randn_tensor", lambda *_, **__: noise)
    theirs = pipeline(
        [Image.fromarray(frame) for frame in video], PROMPT, negative_prompt="", height=32,
        width=48, num_inference_steps=steps, guidance_scale=5.0, strength=strength,
        max_sequence_length=512, output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(ours.frames / 255 - theirs).max() <= 2e-3 + 0.5 / 255


def test_a_video_of_another_length_is_changed_as_far_as_asked(clip_folder: Path) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    made = engine.generate(PROMPT, video=noise_video(7), steps=1, width=48, height=32)
    assert len(made.frames) == 7
    with pytest.raises(InputError, match="9 frames are wanted of a video that has 7"):
        engine.generate(PROMPT, video=noise_video(7), frames=9, width=48, height=32)
    with pytest.raises(InputError, match="only a stream goes on from a clip"):
        engine.generate(PROMPT, clip=noise_video(7), width=48, height=32)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"strength": 0}, "strength is 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": True}, "strength is True"),
        ({"clip": noise_video(1), "strength": 0.5}, "from an image, from a clip or from frames"),
        ({"clip": noise_video(1)[:0]}, "frames are uint8"),
        ({"clip": noise_video(1)[:, 1:]}, "wanted uint8 of shape"),
        (
            {"clip": np.zeros((MAX_GIVEN * 4 + 1, 32, 48, 3), np.uint8)},
            "at most 1021 frames, got 1025",
        ),
    ],
)
def test_bad_inputs_are_refused(engine: Engine, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        engine.open(PROMPT, **arguments)


def test_a_stream_that_is_not_fed_takes_no_frames(engine: Engine) -> None:
    session = engine.open(PROMPT)
    with pytest.raises(InputError, match="takes no frames"):
        session.push(noise_video(1))
    with pytest.raises(InputError, match="takes no frames"):
        session.update(strength=0.5)
    fed = engine.open(PROMPT, strength=0.5)
    with pytest.raises(InputError, match=r"wanted uint8 \[F, 32, 48, 3\]"):
        fed.push(noise_video(1)[0])
