"""Solvers of the flow ODE: from a predicted flow at one noise level to the latent at the next.

A solver is a frozen dataclass bound to a `Schedule`. `step` is pure: latent and state in, latent
and state out; the state is None before the first step. Coefficients are Python floats (fp64) from
the schedule, known without asking the device; latents are handled in fp32 whatever the model's
dtype. With `x = (1 - sigma) * x0 + sigma * noise` the model predicts `flow = noise - x0`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .schedule import Schedule


class Timetable(Protocol):
    """What the sampling loops need of a schedule, whatever its noise levels are counted in."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the model is told at each step."""

    def tail(self, strength: float) -> Timetable:
        """The last `strength` of all steps; raises `InputError` unless it is in (0, 1]."""

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at the first step's noise level."""

    def __len__(self) -> int:
        """The number of steps."""


class Solver(Protocol):
    """What the sampling loops need of a solver."""

    @property
    def schedule(self) -> Timetable:
        """The noise levels it walks down."""

    def takes_noise(self, i: int) -> bool:
        """Whether step i needs fresh noise, so that a loop draws only what is used."""

    def step(
        self, flow: Tensor, x: Tensor, i: int, state: Any = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Take `x` over step i, given the `flow` predicted at `x`; some solvers want velocity.

        All tensors share a shape. Gives the next latent (fp32, or fp64 if `x` is) and the state to
        hand to step i + 1.
        """


@dataclass(frozen=True)
class Euler:
    """One straight step along the flow: `x' = x + (sigma' - sigma) * flow`."""

    schedule: Schedule

    def takes_noise(self, i: int) -> bool:
        """Never."""
        return False

    def step(
        self, flow: Tensor, x: Tensor, i: int, state: None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`; keeps no state."""
        flow, x = widen(flow, x)
        return x + (self.schedule.sigmas[i + 1] - self.schedule.sigmas[i]) * flow, None


@dataclass(frozen=True)
class Renoise:
    """The few-step recipe of distilled models: all the way to x0, then back up with fresh noise.

    `x0 = x - sigma * flow`, then `x' = (1 - sigma') * x0 + sigma' * noise`; the last step gives x0.
    Used by consistency models (Song et al. 2023), CausVid and Self-Forcing.
    """

    schedule: Schedule

    def takes_noise(self, i: int) -> bool:
        """At every step but the last, which ends at sigma 0."""
        return self.schedule.sigmas[i + 1] > 0.0

    def step(
        self, flow: Tensor, x: Tensor, i: int, state: None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`; keeps no state. Raises `InputError` when noise is due and missing."""
        flow, x = widen(flow, x)
        x0 = x - self.schedule.sigmas[i] * flow
        if not self.takes_noise(i):
            return x0, None
        if noise is None:
            raise InputError(f"step {i} of the renoise solver needs fresh noise, got none")
        sigma = self.schedule.sigmas[i + 1]
        return (1.0 - sigma) * x0 + sigma * noise.to(x), None


@dataclass(frozen=True)
class UniPCState:
    """What the next step looks back on; every tensor has the latent's shape.

    `x` is the corrected latent the last step left from, `x0` the clean latent predicted there and
    `x0_before` the one a step earlier (None after the first step).
    """

    x: Tensor
    x0: Tensor
    x0_before: Tensor | None


@dataclass(frozen=True)
class UniPC:
    """UniPC of order 2 with B(h) = e^h - 1, predicting x0 (Zhao et al. 2023): Wan's own solver.

    Each step first corrects the latent it was given, now that the flow there is known (UniC), then
    predicts the next one (UniP). Equal to diffusers' `UniPCMultistepScheduler` with flow sigmas;
    as there, the first and the last step are of order 1. The first sigma must be below 1.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        if self.schedule.sigmas[0] >= 1.0:
            raise InputError("UniPC needs a first sigma below 1, as the wan schedules have")

    def takes_noise(self, i: int) -> bool:
        """Never."""
        return False

    def step(
        self,
        flow: Tensor,
        x: Tensor,
        i: int,
        state: UniPCState | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, UniPCState]:
        """See `Solver.step`. The state must be the one that step i - 1 gave."""
        flow, x = widen(flow, x)
        x0 = x - self.schedule.sigmas[i] * flow
        if state is not None:
            x = self._correct(x0, i, state)
        after = self._predict(x, x0, i, None if state is None else state.x0)
        return after, UniPCState(x=x, x0=x0, x0_before=None if state is None else state.x0)

    def _predict(self, x: Tensor, x0: Tensor, i: int, x0_before: Tensor | None) -> Tensor:
        """UniP: the latent at `sigmas[i + 1]` from the x0 predicted at `sigmas[i]` and before."""
        span = _Span(self.schedule.sigmas[i], self.schedule.sigmas[i + 1])
        after = span.keep * x + span.gain * x0
        if x0_before is None or self._order(i) == 1:
            return after
        ratio = span.ratio(self.schedule.sigmas[i - 1])
        return after + span.gain * 0.5 / ratio * (x0_before - x0)

    def _correct(self, x0: Tensor, i: int, state: UniPCState) -> Tensor:
        """UniC: the latent at `sigmas[i]` anew, by the x0 that the model has since seen there."""
        span = _Span(self.schedule.sigmas[i - 1], self.schedule.sigmas[i])
        x = span.keep * state.x + span.gain * state.x0
        if state.x0_before is None or self._order(i - 1) == 1:
            return x + span.gain * 0.5 * (x0 - state.x0)
        ratio = span.ratio(self.schedule.sigmas[i - 2])
        past, now = span.corrector_weights(ratio)
        x = x + span.gain * past / ratio * (state.x0_before - state.x0)
        return x + span.gain * now * (x0 - state.x0)

    def _order(self, i: int) -> int:
        return min(2, i + 1, len(self.schedule) - i)


class _Span:
    """The coefficients of one UniPC step, in the log-SNR time `log((1 - sigma) / sigma)`."""

    def __init__(self, start: float, end: float) -> None:
        self.start = _log_snr(start)
        self.h = _log_snr(end) - self.start
        self.keep = end / start  # of the latent left from
        self.gain = -(1.0 - end) * math.expm1(-self.h)  # of the predicted x0

    def ratio(self, before: float) -> float:
        """How far back the previous noise level lies, in spans (negative)."""
        return (_log_snr(before) - self.start) / self.h

    def corrector_weights(self, ratio: float) -> tuple[float, float]:
        """Weights of the past and the present difference: `[[1, 1], [ratio, 1]] @ w = b`."""
        growth = math.expm1(-self.h)
        phi_2 = growth / -self.h - 1.0
        phi_3 = phi_2 / -self.h - 0.5
        b_1, b_2 = phi_2 / growth, 2.0 * phi_3 / growth
        past = (b_1 - b_2) / (1.0 - ratio)
        return past, b_1 - past


def _log_snr(sigma: float) -> float:
    return math.inf if sigma == 0.0 else math.log1p(-sigma) - math.log(sigma)


def widen(flow: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A prediction and a latent in fp32, or in fp64 if the latent is."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return flow.to(dtype), x.to(dtype)


SOLVERS: dict[str, Callable[[Schedule], Solver]] = {
    "euler": Euler,
    "renoise": Renoise,
    "unipc": UniPC,
}
"""Solvers by the names that `livereel.json` gives them."""
