from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from livereel.engine.errors import InputError
from livereel.engine.sampling import schedule
from livereel.engine.sampling.clip import sample_clip
from livereel.engine.sampling.guidance import Guidance
from livereel.engine.sampling.named import scheduler_of
from livereel.engine.sampling.solvers import Euler, Renoise, UniPC


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    """Tiny, and random enough everywhere that text, time and position all matter."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=16,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class AsDenoiser:
    """diffusers' transformer behind our protocol."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer = transformer

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        flow: Tensor = self.transformer(latents, timestep, text, return_dict=False)[0]
        return flow


NOISE = (1, 4, 3, 6, 8)  # [B, C, T, H, W]: 9 frames of 48x64
TEXT = (1, 7, 16)  # [B, L, D]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_equals_the_wan_pipeline_of_diffusers(
    transformer: WanTransformer3DModel, kind: str, scale: float, batched: bool
) -> None:
    scheduler = (
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        if kind == "unipc"
        else FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    config = json.loads(scheduler.to_json_string())
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer
    )
    pipeline.set_progress_bar_config(disable=True)
    noise, text, negative = randn(0, *NOISE), randn(1, *TEXT), randn(2, *TEXT)
    theirs = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        latents=noise,
        height=48,
        width=64,
        num_frames=9,
        num_inference_steps=8,
        guidance_scale=scale,
        output_type="latent",
    ).frames
    ours = sample_clip(
        AsDenoiser(transformer),
        noise=noise,
        text=text,
        negative_text=negative,
        schedule=schedule.from_diffusers(config, 8),
        solver=scheduler_of(config).solver,
        guidance=Guidance(scale=scale, batched=batched),
    )
    assert ours.shape == theirs.shape
    assert (ours - noise).abs().mean() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def halve(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return 0.5 * latents + (timestep / 1000).view(-1, 1, 1, 1, 1).to(latents)


def test_the_callback_sees_every_step_and_the_last_is_the_result() -> None:
    seen: list[tuple[int, Tensor]] = []
    result = sample_clip(
        halve,
        noise=randn(0, *NOISE),
        text=randn(1, *TEXT),
        schedule=schedule.linspace(3),
        solver=Euler,
        callback=lambda i, x: seen.append((i, x)),
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], result)


def test_an_exception_in_the_callback_ends_the_loop() -> None:
    passes = 0

    def counted(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return halve(latents, timestep, text)

    def stop(i: int, x: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_clip(
            counted,
            noise=randn(0, *NOISE),
            text=randn(1, *TEXT),
            schedule=schedule.linspace(3),
            solver=Euler,
            callback=stop,
        )
    assert passes == 1


def test_the_model_is_run_in_the_dtype_of_its_text_and_latents_stay_fp32() -> None:
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def watched(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        seen.add((latents.dtype, timestep.dtype))
        return halve(latents, timestep, text)

    result = sample_clip(
        watched,
        noise=randn(0, *NOISE).bfloat16(),
        text=randn(1, *TEXT).bfloat16(),
        schedule=schedule.wan(3),
        solver=UniPC,
    )
    assert seen == {(torch.bfloat16, torch.float32)}
    assert result.dtype == torch.float32


def test_a_renoising_solver_draws_exactly_the_noise_it_uses() -> None:
    drawn: list[int] = []

    def noise(i: int) -> Tensor:
        drawn.append(i)
        return randn(i, *NOISE)

    def towards_zero(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return latents / (timestep / 1000).view(-1, 1, 1, 1, 1)

    result = sample_clip(
        towards_zero,
        noise=noise,
        text=randn(1, *TEXT),
        schedule=schedule.linspace(4),
        solver=Renoise,
    )
    assert drawn == [0, 1, 2, 3]
    torch.testing.assert_close(result, torch.zeros(NOISE), atol=1e-6, rtol=0)


def test_a_renoising_solver_says_that_one_tensor_of_noise_is_not_enough() -> None:
    with pytest.raises(InputError, match="pass it as a function of the step"):
        sample_clip(
            halve,
            noise=randn(0, *NOISE),
            text=randn(1, *TEXT),
            schedule=schedule.linspace(2),
            solver=Renoise,
        )
