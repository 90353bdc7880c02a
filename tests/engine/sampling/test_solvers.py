from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from livereel.engine.errors import InputError
from livereel.engine.sampling import schedule
from livereel.engine.sampling.schedule import Schedule
from livereel.engine.sampling.solvers import SOLVERS, Euler, Renoise, Solver, UniPC

SHAPE = (2, 4, 3, 5, 7)  # [B, C, T, H, W]
Model = Callable[[Tensor, float], Tensor]


def random_model(seed: int, dtype: torch.dtype) -> Model:
    """A nonlinear flow with random weights that depends on the latent and on the noise level."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64).to(dtype) / 2

    def flow(x: Tensor, t: float) -> Tensor:
        mixed = torch.einsum("ij,bj...->bi...", mix, x)
        return torch.tanh(mixed * (1 + t / 1000)) * 1.3 - 0.3 * x.roll(1, -1)

    return flow


def randn(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def solve(solver: Solver, model: Model, x: Tensor) -> Tensor:
    state = None
    for i, t in enumerate(solver.schedule.timesteps):
        x, state = solver.step(model(x, t), x, i, state, randn(100 + i, x.dtype))
    return x


def solve_diffusers(scheduler: Any, model: Model, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t)), t, x, return_dict=False)[0]
    return x


def unipc_of_diffusers(steps: int, shift_by: float) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift_by
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift_by", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50])
def test_unipc_equals_diffusers(steps: int, shift_by: float, seed: int) -> None:
    model, noise = random_model(seed, torch.float32), randn(seed)
    theirs = solve_diffusers(unipc_of_diffusers(steps, shift_by), model, noise)
    ours = solve(UniPC(schedule.wan(steps, shift_by=shift_by)), model, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 50])
def test_unipc_equals_diffusers_to_rounding_when_both_run_in_fp64(steps: int) -> None:
    model, noise = random_model(0, torch.float64), randn(0, torch.float64)
    scheduler = unipc_of_diffusers(steps, 5.0)
    scheduler.sigmas = scheduler.sigmas.double()
    theirs = solve_diffusers(scheduler, model, noise)
    ours = solve(UniPC(schedule.wan(steps, shift_by=5.0)), model, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift_by", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_euler_equals_diffusers(steps: int, shift_by: float) -> None:
    model, noise = random_model(1, torch.float32), randn(1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift_by)
    scheduler.set_timesteps(steps)
    theirs = solve_diffusers(scheduler, model, noise)
    ours = solve(Euler(schedule.flow_match_euler(steps, shift_by=shift_by)), model, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_renoise_equals_diffusers_stochastic_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = random_model(2, torch.float32), randn(2)
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(timesteps=[1000.0, 750.0, 500.0, 250.0], sigmas=[1.0, 0.75, 0.5, 0.25])
    drawn = iter(range(100, 200))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor",
        lambda shape, **_: randn(next(drawn)),
    )
    theirs = solve_diffusers(scheduler, model, x)
    ours = solve(Renoise(schedule.linspace(4)), model, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_renoise_with_its_own_noise_stays_on_the_straight_path() -> None:
    x0, noise = randn(3), randn(4)
    solver = Renoise(schedule.from_timesteps(schedule.warp([1000, 750, 500, 250], 5.0)))
    x = noise
    for i, sigma in enumerate(solver.schedule.sigmas[1:]):
        x, _ = solver.step(noise - x0, x, i, None, noise)
        torch.testing.assert_close(x, (1 - sigma) * x0 + sigma * noise)
    torch.testing.assert_close(x, x0)


def test_renoise_wants_noise_but_not_at_the_last_step() -> None:
    solver = Renoise(schedule.linspace(2))
    assert [solver.takes_noise(i) for i in range(2)] == [True, False]
    with pytest.raises(InputError, match="step 0 of the renoise solver needs fresh noise"):
        solver.step(randn(0), randn(1), 0)
    solver.step(randn(0), randn(1), 1)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_the_others_take_no_noise(name: str) -> None:
    solver = SOLVERS[name](schedule.wan(3))
    assert not any(solver.takes_noise(i) for i in range(3))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_straight_flow_is_solved_exactly(name: str) -> None:
    """If the model points straight at x0 from anywhere, every solver arrives there."""
    x0, path = randn(5, torch.float64), schedule.wan(6)
    sigma_of = dict(zip(path.timesteps, path.sigmas, strict=False))
    got = solve(SOLVERS[name](path), lambda x, t: (x - x0) / sigma_of[t], randn(6, torch.float64))
    torch.testing.assert_close(got, x0)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_half_precision_flows_are_handled_in_fp32(name: str) -> None:
    model, noise = random_model(7, torch.float32), randn(7)
    rounded = solve(SOLVERS[name](schedule.wan(4)), lambda x, t: model(x, t).bfloat16(), noise)
    widened = solve(
        SOLVERS[name](schedule.wan(4)), lambda x, t: model(x, t).bfloat16().float(), noise
    )
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, widened)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_step_is_pure(name: str) -> None:
    """The same step taken twice from one state gives the same, and inputs stay as they were."""
    solver, model = SOLVERS[name](schedule.wan(4)), random_model(8, torch.float32)
    x, state = randn(8), None
    for i in range(4):
        before, flow = x.clone(), model(x, 0.0)
        x_next, state_next = solver.step(flow, x, i, state, randn(9))
        again, _ = solver.step(flow, x, i, state, randn(9))
        assert torch.equal(x_next, again)
        assert torch.equal(x, before)
        x, state = x_next, state_next


def test_unipc_needs_a_finite_first_log_snr() -> None:
    with pytest.raises(InputError, match="first sigma below 1"):
        UniPC(Schedule((1.0, 0.5, 0.0), (1000.0, 500.0)))
