"""CogVideoX's schedules and solvers against diffusers'."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.sampling import velocity
from livereel.engine.sampling.ddim import DDIM
from livereel.engine.sampling.dpm import DPMSolverSDE
from livereel.engine.sampling.velocity import VelocitySchedule

PUBLISHED: dict[str, Any] = dict(
    beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085, clip_sample=False,
    num_train_timesteps=1000, prediction_type="v_prediction", rescale_betas_zero_snr=True,
    set_alpha_to_one=True, timestep_spacing="trailing",
)  # fmt: skip


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_table_equals_diffusers(shift: float) -> None:
    theirs = CogVideoXDDIMScheduler(**PUBLISHED, snr_shift_scale=shift)
    ours = velocity.signal(shift)
    np.testing.assert_allclose(ours, theirs.alphas_cumprod.numpy(), rtol=1e-12, atol=1e-16)
    assert ours[-1] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 25, 30, 50, 1000])
def test_timesteps_equal_diffusers(steps: int) -> None:
    theirs = CogVideoXDPMScheduler(**PUBLISHED, snr_shift_scale=1.0)
    theirs.set_timesteps(steps)
    ours = velocity.from_diffusers(json.loads(theirs.to_json_string()), steps)
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    assert ours == velocity.trailing(steps, snr_shift=1.0)
    assert len(ours) == steps


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 7, 50])
def test_ddim_equals_diffusers(steps: int, shift: float) -> None:
    theirs = CogVideoXDDIMScheduler(**PUBLISHED, snr_shift_scale=shift)
    theirs.set_timesteps(steps)
    ours = DDIM(velocity.trailing(steps, snr_shift=shift))
    generator = torch.Generator().manual_seed(0)
    x = y = torch.randn(1, 4, 3, 2, 2, generator=generator)
    for i, t in enumerate(theirs.timesteps.tolist()):
        v = torch.randn(x.shape, generator=generator)
        assert not ours.takes_noise(i)
        x, _ = ours.step(v, x, i)
        y = theirs.step(v, t, y, return_dict=False)[0]
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
def test_dpm_equals_diffusers(steps: int, shift: float) -> None:
    theirs = CogVideoXDPMScheduler(**PUBLISHED, snr_shift_scale=shift)
    theirs.set_timesteps(steps)
    ours = DPMSolverSDE(velocity.trailing(steps, snr_shift=shift))
    draws, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(0)
    x = y = torch.randn(1, 4, 3, 2, 2, generator=generator)
    state = old = None
    times = theirs.timesteps.tolist()
    for i, t in enumerate(times):
        v = torch.randn(x.shape, generator=generator)
        same = torch.Generator()
        same.set_state(draws.get_state())
        y, old = theirs.step(v, old, t, times[i - 1] if i else None, y, generator=draws)
        noise = torch.randn(x.shape, generator=same)
        if i > 0 and times[i] - 1000 // steps >= 0:
            noise = torch.randn(x.shape, generator=same)
        assert ours.takes_noise(i) == (t - 1000 // steps >= 0)
        x, state = ours.step(v, x, i, state, noise)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_dpm_wants_its_noise() -> None:
    solver = DPMSolverSDE(velocity.trailing(4, snr_shift=1.0))
    x = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(InputError, match="step 1 of the DPM solver needs fresh noise"):
        solver.step(x, x, 1)


def test_a_list_of_timesteps_goes_from_each_to_the_next() -> None:
    even = velocity.trailing(50, snr_shift=3.0)
    ours = velocity.from_timesteps(even.timesteps, snr_shift=3.0)
    np.testing.assert_allclose(ours.starts, even.starts)
    np.testing.assert_allclose(ours.ends, even.ends)
    half = velocity.from_timesteps((998.5, 0.5), snr_shift=3.0)
    table = velocity.signal(3.0)
    assert half.starts[0] == pytest.approx((table[998] + table[999]) / 2)
    assert half.ends == (half.starts[1], 1.0)


def test_the_tail_of_a_schedule_starts_from_a_noised_clip() -> None:
    plan = velocity.trailing(10, snr_shift=3.0)
    tail = plan.tail(0.35)
    assert tail.timesteps == plan.timesteps[-3:]
    clean, noise = torch.randn(2, 1, 2, 3, 2, 2)
    theirs = CogVideoXDDIMScheduler(**PUBLISHED, snr_shift_scale=3.0)
    expected = theirs.add_noise(clean, noise, torch.tensor([int(tail.timesteps[0])]))
    torch.testing.assert_close(tail.noised(clean, noise), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="strength is 0; wanted above 0"):
        plan.tail(0)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="a start and an end for each timestep, got 1, 2 and 1"):
        VelocitySchedule((0.0,), (0.5, 1.0), (999.0,))
    with pytest.raises(InputError, match="signal must grow in every step"):
        VelocitySchedule((0.5,), (0.5,), (999.0,))
    with pytest.raises(InputError, match="steps must be from 1 to 1000, got 0"):
        velocity.trailing(0, snr_shift=1.0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"prediction_type": "epsilon"}, "must have prediction_type 'v_prediction'"),
        ({"timestep_spacing": "leading"}, "must have timestep_spacing 'trailing'"),
        ({"beta_end": 0.02}, "must have beta_end 0.012"),
        ({"snr_shift_scale": 0}, "snr_shift_scale must be a number above 0"),
        ({"snr_shift_scale": "3"}, "snr_shift_scale must be"),
    ],
)
def test_another_setting_is_refused(values: dict[str, Any], sentence: str) -> None:
    config = {**PUBLISHED, "_class_name": "CogVideoXDDIMScheduler", **values}
    with pytest.raises(CheckpointError, match=sentence):
        velocity.from_diffusers(config, 10)


def test_diffusers_defaults_are_refused_as_they_are_no_velocity() -> None:
    with pytest.raises(CheckpointError, match="must have prediction_type"):
        velocity.from_diffusers({"_class_name": "CogVideoXDPMScheduler"}, 10)
