"""LoRAs in the engine: by the definition, over diffusers' model, and out without a trace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"
LAYERS = {"blocks.0.attn1.to_q": (48, 48), "blocks.1.attn2.to_v": (48, 48),
          "blocks.0.ffn.net.0.proj": (64, 48)}  # fmt: skip


def lora(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in LAYERS.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, inputs) * 0.3
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, 2) * 0.3
    return tensors


def save(folder: Path) -> list[Path]:
    paths = [folder / "one.safetensors", folder / "two.safetensors"]
    for seed, path in enumerate(paths):
        save_file(lora(seed), path)
    return paths


@pytest.fixture
def tuned(tiny_folder: Path, tmp_path: Path) -> Engine:
    """An engine that knows two."""
    engine = Engine.load(tiny_folder, device="cpu", dtype="float32")
    for path in save(tmp_path):
        engine.load_lora(path)
    assert engine.loras is not None and engine.loras.names == ("one", "two")
    return engine


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    assert isinstance(engine.runner, TorchRunner)
    return {name: x.clone() for name, x in engine.runner.modules.state_dict().items()}


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def take(session: Session, count: int) -> np.ndarray:
    return frames_of(islice(session, count))


def test_two_at_once_are_what_the_definition_says(tuned: Engine, tiny_folder: Path) -> None:
    from diffusers import WanTransformer3DModel

    theirs = WanTransformer3DModel.from_pretrained(tiny_folder / "transformer").eval()
    strengths = {"one": 0.8, "two": -0.5}

    def beside(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            for seed, strength in enumerate(strengths.values()):
                down, up = (lora(seed)[f"transformer.{name}.lora_{x}.weight"] for x in "AB")
                output = output + strength * (inputs[0] @ down.T @ up.T)
            return output

        return hook

    for name in LAYERS:
        theirs.get_submodule(name).register_forward_hook(beside(name))
    assert tuned.loras is not None and isinstance(tuned.runner, TorchRunner)
    tuned.loras.use(strengths)
    x, text, t = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 8, 12), torch.tensor([500.0])
    with torch.no_grad():
        expected = theirs(x, t, text, return_dict=False)[0]
        torch.testing.assert_close(tuned.runner.transformer(x, t, text), expected,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_taken_out_they_leave_no_trace(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    engine = Engine.load(tiny_folder, device="cpu", dtype=dtype)
    for path in save(tmp_path):
        engine.load_lora(path)
    before, shown = weights(engine), take(engine.open(PROMPT, seed=1), 2)
    assert engine.loras is not None
    for strengths in ({"one": 1.0}, {"one": 0.3, "two": 2.0}, {"two": -1.0}):
        assert engine.loras.use(strengths) and not engine.loras.use(strengths)
        changed = {name for name, x in weights(engine).items() if not torch.equal(x, before[name])}
        assert changed == {f"transformer.{name}.weight" for name in LAYERS}
    changed_frames = take(engine.open(PROMPT, seed=1, loras={"one": 2.0, "two": 2.0}), 2)
    assert not np.array_equal(changed_frames, shown)
    assert np.array_equal(take(engine.open(PROMPT, seed=1), 2), shown)
    assert all(torch.equal(x, before[name]) for name, x in weights(engine).items())


def test_a_change_that_fails_is_made_again(tuned: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(tuned)
    assert tuned.loras is not None
    with monkeypatch.context() as patch:
        put, done = tuned.loras._put, []

        def fail_at_the_second(*given: Any) -> None:
            done.append(given)
            if len(done) == 2:
                raise MemoryError
            put(*given)

        patch.setattr(tuned.loras, "_put", fail_at_the_second)
        with pytest.raises(MemoryError):
            tuned.loras.use({"one": 1.0})
    assert tuned.loras.use({})
    assert all(torch.equal(x, before[name]) for name, x in weights(tuned).items())


def test_they_change_at_a_chunk_s_edge(tuned: Engine) -> None:
    plain, other = tuned.open(PROMPT, seed=1), tuned.open(PROMPT, seed=1, loras={"one": 1.0})
    expected, changed = take(plain, 2), take(other, 2)
    assert not np.array_equal(expected, changed)
    other.update(loras={})
    assert not np.array_equal(take(plain, 1), take(other, 1))  # the past is another
    session = tuned.open(PROMPT, seed=1)
    first = take(session, 2)
    session.update(loras={"one": 1.0, "two": 0.5})
    chunk = next(session)
    assert chunk.applied == ("update",) and np.array_equal(first, expected)
    again = tuned.open(PROMPT, seed=1)
    take(again, 2)
    assert not np.array_equal(next(again).frames, chunk.frames)


def test_sessions_in_turn_each_have_their_own(tuned: Engine) -> None:
    alone = [take(tuned.open(PROMPT, loras=loras), 4) for loras in ({}, {"one": 1.0})]
    sessions = [tuned.open(PROMPT, loras=loras) for loras in ({}, {"one": 1.0})]
    turns: list[list[Chunk]] = [[], []]
    for _ in range(4):
        for session, made in zip(sessions, turns, strict=True):
            made.append(next(session))
    assert all(np.array_equal(frames_of(a), b) for a, b in zip(turns, alone, strict=True))


def test_a_session_is_restored_with_its_own(tuned: Engine) -> None:
    """Also from clean latents, of which keys are computed anew, while others are in the weights."""
    session = tuned.open(PROMPT, loras={"one": 2.0})
    take(session, 3)
    exact, light = session.snapshot(), session.snapshot(light=True)
    rest = next(session).frames.astype(int)
    next(tuned.open(PROMPT, loras={"two": 2.0}))
    found = [tuned.restore(x, loras={"one": 2.0}) for x in (exact, light)]
    assert np.array_equal(next(found[0]).frames, rest)
    assert np.abs(next(found[1]).frames - rest).max() <= 2
    assert np.abs(next(tuned.restore(light)).frames - rest).max() > 2


def test_whole_clips_have_them_too(clip_folder: Path, tmp_path: Path) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    engine.load_lora(save(tmp_path)[0], "style")
    asked: dict[str, Any] = dict(frames=5, steps=2, width=48, height=32)
    plain = engine.generate(PROMPT, **asked).frames
    assert not np.array_equal(engine.generate(PROMPT, loras={"style": 1.0}, **asked).frames, plain)
    assert np.array_equal(engine.generate(PROMPT, **asked).frames, plain)


def test_mistakes_are_told_at_once(tuned: Engine, tmp_path: Path) -> None:
    session = tuned.open(PROMPT)
    for loras, sentence in (
        ({"three": 1.0}, "no LoRA 'three'; known: 'one', 'two'"),
        ({"one": float("nan")}, "strength nan"), ({"one": 1e9}, "strength 1000000000.0"),
        ({"one": True}, "strength True"),
    ):  # fmt: skip
        for call in (session.update, lambda loras: tuned.open(PROMPT, loras=loras)):
            with pytest.raises(InputError, match=sentence):
                call(loras=loras)
    with pytest.raises(InputError, match="a LoRA 'one' already"):
        tuned.load_lora(tmp_path / "one.safetensors")
    with pytest.raises(InputError, match="part is 'vae'; wanted transformer"):
        tuned.load_lora(tmp_path / "one.safetensors", "x", part="vae")
