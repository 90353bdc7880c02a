"""A Self-Forcing checkpoint from its `.pt` to a stream, against diffusers' transformer.

The oracle knows nothing of rings and caches: each pass is one forward over everything so far, with
a timestep for each token and a mask that says which chunk sees which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from livereel.engine.checkpoint.convert import convert
from livereel.engine.config import StreamConfig
from livereel.engine.engine import Engine
from livereel.engine.models.wan.keys import transformer_to_original
from livereel.engine.sampling.noise import normal

PROMPT = "a red ball moving left"
SEED = 20
# Self-Forcing lists its steps unwarped, and warps them with shift 5.
TIMESTEPS = [1000 * 5 * s / (1 + 4 * s) for s in (1.0, 0.75, 0.5, 0.25)]


def random_transformer(patch: int) -> WanTransformer3DModel:
    torch.manual_seed(patch)
    model = WanTransformer3DModel(
        patch_size=(1, patch, patch), num_attention_heads=2, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=12, freq_dim=32, ffn_dim=64, num_layers=2,
    )  # fmt: skip
    return model.eval()


def save_as_trained(model: WanTransformer3DModel, path: Path) -> None:
    """As Self-Forcing saves: Wan's names, wrapped by FSDP as a whole and block by block."""
    state = model.state_dict()
    names = transformer_to_original(list(state))
    average = {
        "model._fsdp_wrapped_module."
        + re.sub(r"^(blocks\.\d+\.)", r"\1_fsdp_wrapped_module.", names[name]): tensor
        for name, tensor in state.items()
    }
    last = {"model." + names[name]: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"generator": last, "generator_ema": average}, path)


@pytest.fixture(scope="module")
def converted(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[WanTransformer3DModel, Engine]]:
    """The random transformer of a patch size, and the engine on what became of its checkpoint."""

    @lru_cache
    def make(patch: int) -> tuple[WanTransformer3DModel, Engine]:
        folder = tmp_path_factory.mktemp("self_forcing")
        model = random_transformer(patch)
        save_as_trained(model, folder / "self_forcing_dmd.pt")
        out = convert(
            folder / "self_forcing_dmd.pt",
            folder / "model",
            vae=tiny_folder,
            text=tiny_folder,
            num_heads=2,
        )
        return model, Engine.load(out, device="cpu", dtype="float32")

    return make


def embed(folder: Path, prompt: str, length: int) -> Tensor:
    """The prompt through transformers alone, zero-padded."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    states = encoder(**tokenizer(prompt, return_tensors="pt")).last_hidden_state
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


@torch.no_grad()
def oracle(
    model: WanTransformer3DModel,
    mask: Callable[[list[int], int], None],
    text: Tensor,
    chunks: list[int],
    size: tuple[int, int],
) -> list[Tensor]:
    """Clean latents of each chunk: few steps, each to x0 and back up with fresh noise.

    `mask` makes the model causal for chunks of these lengths, and so many tokens a frame.
    """
    patch = model.config.patch_size[1]
    tokens = (size[0] // patch) * (size[1] // patch)
    clean = torch.zeros(1, 4, 0, *size)
    for index, length in enumerate(chunks):
        mask(chunks[: index + 1], tokens)
        shape = (1, 4, length, *size)
        x = normal(SEED, index, 0, shape)
        for step, t in enumerate(TIMESTEPS):
            times = torch.cat([torch.zeros(1, clean.shape[2]), torch.full((1, length), t)], dim=1)
            flow = model(
                torch.cat([clean, x], dim=2), times.repeat_interleave(tokens, dim=1), text,
                return_dict=False,
            )[0][:, :, clean.shape[2] :]  # fmt: skip
            x = x - t / 1000 * flow
            if step + 1 < len(TIMESTEPS):
                sigma = TIMESTEPS[step + 1] / 1000
                x = (1 - sigma) * x + sigma * normal(SEED, index, step + 1, shape)
        clean = torch.cat([clean, x], dim=2)
    return list(clean.split(chunks, dim=2))


@pytest.mark.parametrize(
    ("changes", "chunks", "patch", "size"),
    [
        # As published, until frames have left the window.
        ({}, [3] * 9, 2, (4, 6)),
        ({}, [3] * 8, 1, (3, 5)),
        ({"chunk_latents": 1, "first_chunk_latents": 1, "window": 4}, [1] * 7, 1, (3, 5)),
        ({"chunk_latents": 2, "first_chunk_latents": 1, "window": 5}, [1, 2, 2, 2, 2], 2, (2, 6)),
        ({"chunk_latents": 3, "first_chunk_latents": 1, "window": 6}, [1, 3, 3, 3], 1, (5, 1)),
        ({"chunk_latents": 5, "first_chunk_latents": 5, "window": 10}, [5, 5, 5], 1, (1, 3)),
    ],
)
def test_the_stream_equals_one_forward_under_a_mask(
    converted: Callable[[int], tuple[WanTransformer3DModel, Engine]],
    block_causal: Callable[..., None],
    changes: dict[str, int],
    chunks: list[int],
    patch: int,
    size: tuple[int, int],
) -> None:
    model, engine = converted(patch)
    assert engine.config.timesteps == pytest.approx(TIMESTEPS) and engine.config.window == 21
    engine = with_changes(engine, changes)
    past = engine.config.window - engine.config.chunk_latents
    assert_equal_streams(
        engine, model, lambda *made: block_causal(model, *made, past), chunks, size
    )


@pytest.mark.parametrize(
    ("changes", "chunks", "size"),
    [
        ({"sinks": 2, "window": 3}, [3] * 4, (4, 6)),
        ({"anchors": 2, "anchor_every": 4, "window": 4}, [3] * 6, (4, 6)),
        (
            {"sinks": 1, "anchors": 2, "anchor_every": 3, "window": 4, "chunk_latents": 2,
             "first_chunk_latents": 1},
            [1, 2, 2, 2, 2, 2, 2],
            (2, 4),
        ),
    ],
)  # fmt: skip
def test_sinks_and_anchors_are_seen_as_if_nothing_lay_between(
    converted: Callable[[int], tuple[WanTransformer3DModel, Engine]],
    sparse_past: Callable[..., None],
    changes: dict[str, int],
    chunks: list[int],
    size: tuple[int, int],
) -> None:
    model, engine = converted(2)
    engine = with_changes(engine, changes)
    config = engine.config

    def seen(first: int) -> list[int]:
        newest = first - (config.window - config.chunk_latents)
        old = [i for i in range(config.sinks, newest) if i % config.anchor_every == 0]
        kept = old[max(0, len(old) - config.anchors) :]
        return [i for i in range(first) if i < config.sinks or i in kept or i >= newest]

    firsts = [sum(chunks[:i]) for i in range(len(chunks))]
    assert any(len(seen(first)) < first for first in firsts)
    assert_equal_streams(
        engine,
        model,
        lambda made, tokens: sparse_past(model, made, tokens, list(map(seen, firsts[: len(made)]))),
        chunks,
        size,
    )


def with_changes(engine: Engine, changes: dict[str, int]) -> Engine:
    stream = StreamConfig.from_dict(engine.config.to_dict() | changes)
    return replace(engine, folder=replace(engine.folder, stream=stream))


def assert_equal_streams(
    engine: Engine,
    model: WanTransformer3DModel,
    mask: Callable[[list[int], int], None],
    chunks: list[int],
    size: tuple[int, int],
) -> None:
    """The engine's stream and the oracle's give the same clean latents."""
    session = engine.open(PROMPT, seed=SEED, height=8 * size[0], width=8 * size[1])
    text = embed(engine.folder.path, PROMPT, engine.config.max_sequence_length)
    expected = oracle(model, mask, text, chunks, size)
    for chunk, wanted in zip(islice(session, len(chunks)), expected, strict=True):
        own = session._state.pending
        assert own is not None and own.shape == wanted.shape
        assert float((own - wanted).abs().max() / wanted.abs().max()) <= 1e-4
        assert chunk.frames.shape[1:3] == (8 * size[0], 8 * size[1])
