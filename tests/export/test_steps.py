"""Step modules: a model's parts with all state among their arguments, at fixed shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.layers.upsample import Upsample2xConv
from livereel.export.steps import FoldedUpsample, Plan, Step


@pytest.fixture(scope="module")
def plan(tiny_folder: Path) -> Plan:
    folder = open_folder(tiny_folder)
    return Plan(folder, folder.stream, torch.float32)


@pytest.fixture(scope="module")
def steps(plan: Plan) -> dict[str, Step]:
    return {name: step for _, steps in plan.parts() for name, step in steps.items()}


def test_graphs_are_named_and_share_their_parts_weights(steps: dict[str, Step]) -> None:
    assert {name: step.weights for name, step in steps.items()} == {
        "text_encode": "text_encoder",
        "text_kv": "transformer",
        "denoise_first": "transformer",
        "denoise": "transformer",
        "vae_decode_first": "vae",
        "vae_decode_one": "vae",
        "vae_decode": "vae",
        "vae_encode_first": "vae",
        "vae_encode": "vae",
    }


@torch.inference_mode()
def test_state_has_the_shape_that_the_next_call_wants(steps: dict[str, Step]) -> None:
    for name in ("vae_decode", "vae_encode"):
        for earlier in (f"{name}_first", name):
            step = steps[earlier]
            made = dict(zip(step.outputs, step.module(*step.inputs.values()), strict=True))
            for output, given in step.state.items():
                assert made[output].shape == steps[name].inputs[given].shape


@torch.inference_mode()
def test_decoding_step_by_step_equals_the_model(steps: dict[str, Step], engine: Engine) -> None:
    latents = torch.randn(1, 4, 5, 4, 6)
    whole = engine.runner.decode(latents)[0]
    frames: list[Tensor] = []
    caches: tuple[Tensor, ...] = ()
    for name, part in zip(
        ("vae_decode_first", "vae_decode_one", "vae_decode"),
        latents.split([1, 1, 3], dim=2),
        strict=True,
    ):
        made, *caches = steps[name].module(part, *caches)
        frames.append(made)
    torch.testing.assert_close(torch.cat(frames, dim=2), whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_text_is_zero_where_it_is_masked(steps: dict[str, Step], engine: Engine) -> None:
    ids = engine.runner.text_encoder.tokenizer("a red ball")["input_ids"]
    tokens, mask = torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)
    tokens[0, : len(ids)] = torch.tensor(ids)
    mask[0, : len(ids)] = 1
    text = steps["text_encode"].module(tokens, mask)
    torch.testing.assert_close(text, engine.runner.encode_text("a red ball", 8))


@torch.inference_mode()
def test_a_folded_upsample_is_the_same_convolution() -> None:
    conv = Upsample2xConv(6, 4)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(FoldedUpsample(conv)(x), conv(x))


def test_latents_are_described_without_weights(plan: Plan, engine: Engine) -> None:
    latent, vae = plan.latent, engine.runner.vae
    assert (latent.height, latent.width, latent.past) == (4, 6, 3)
    x = torch.randn(1, 4, 1, 1, 1)
    scale = [torch.tensor(values).view(1, -1, 1, 1, 1) for values in (latent.std, latent.mean)]
    torch.testing.assert_close(x * scale[0] + scale[1], vae.denormalize(x))


def test_a_size_that_does_not_fit_is_told(plan: Plan) -> None:
    odd = replace(plan, stream=replace(plan.stream, width=50))
    with pytest.raises(InputError, match=r"50x32 does not fit this model: .* multiples of 16"):
        _ = odd.latent
