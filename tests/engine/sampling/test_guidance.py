from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from livereel.engine.errors import InputError
from livereel.engine.sampling.guidance import Guidance, dynamic, guided_flow


class CountingDenoiser:
    """A flow that depends on every input of its own batch row, and the batch sizes it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        self.batches.append(len(latents))
        times = timestep.flatten(1).mean(1) if timestep.ndim > 1 else timestep
        row = times / 1000 + text.square().mean((1, 2))
        return torch.sin(latents) * row.view(-1, 1, 1, 1, 1)


def inputs(timestep_shape: tuple[int, ...] = (2,)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 3, 2, 2, generator=generator)
    timestep = 1000 * torch.rand(timestep_shape, generator=generator)
    text, negative = torch.randn(2, 2, 5, 8, generator=generator)
    return latents, timestep, text, negative


@pytest.mark.parametrize("timestep_shape", [(2,), (2, 3)])
def test_batched_equals_two_passes(timestep_shape: tuple[int, ...]) -> None:
    latents, timestep, text, negative = inputs(timestep_shape)
    batched, two = CountingDenoiser(), CountingDenoiser()
    one = guided_flow(batched, latents, timestep, text, negative, Guidance(scale=5.0))
    other = guided_flow(two, latents, timestep, text, negative, Guidance(scale=5.0, batched=False))
    torch.testing.assert_close(one, other)
    assert batched.batches == [4]
    assert two.batches == [2, 2]


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_extrapolates_from_the_negative(batched: bool) -> None:
    latents, timestep, text, negative = inputs()
    plain = CountingDenoiser()
    positive_flow = plain(latents, timestep, text)
    negative_flow = plain(latents, timestep, negative)
    guided = guided_flow(
        plain, latents, timestep, text, negative, Guidance(scale=3.0, batched=batched)
    )
    torch.testing.assert_close(guided, 3 * positive_flow - 2 * negative_flow)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_scale_one_or_less_is_one_pass_of_the_prompt(scale: float) -> None:
    latents, timestep, text, negative = inputs()
    denoiser = CountingDenoiser()
    flow = guided_flow(denoiser, latents, timestep, text, negative, Guidance(scale=scale))
    assert denoiser.batches == [2]
    assert torch.equal(flow, denoiser(latents, timestep, text))


def test_guidance_needs_a_negative_text_of_the_same_shape() -> None:
    latents, timestep, text, negative = inputs()
    guidance = Guidance(scale=2.0)
    with pytest.raises(InputError, match=r"negative text of shape \(2, 5, 8\), got none"):
        guided_flow(CountingDenoiser(), latents, timestep, text, None, guidance)
    with pytest.raises(InputError, match=r"got shape \(2, 4, 8\)"):
        guided_flow(CountingDenoiser(), latents, timestep, text, negative[:, :4], guidance)


def test_dynamic_guidance_goes_by_the_timestep() -> None:
    """Values of diffusers' formula at 50 steps; at t = 50 the prompt alone counts."""
    at = dynamic(6.0, 50)
    for t in (999, 499, 119, 19):
        expected = 1 + 6.0 * (1 - math.cos(math.pi * ((50 - t) / 50) ** 5.0)) / 2
        assert at(float(t)).scale == pytest.approx(expected)
        assert 1.0 <= at(float(t)).scale <= 7.0
    assert not at(50.0).enabled
    assert at(0.0).scale == pytest.approx(7.0)
