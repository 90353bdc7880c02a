"""DPM-Solver++ of order 2 with fresh noise, for models that predict velocity: Lu et al.,
"DPM-Solver++" (2022), 2M in its stochastic form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .solvers import widen

if TYPE_CHECKING:
    from torch import Tensor

    from .velocity import VelocitySchedule


@dataclass(frozen=True)
class DPMSolverSDE:
    """Equal to diffusers' `CogVideoXDPMScheduler`, but that one draws the noise of all steps
    between the first and the last twice and drops the first draw."""

    schedule: VelocitySchedule

    def takes_noise(self, i: int) -> bool:
        """At every step but one that ends in data."""
        return self.schedule.ends[i] < 1.0

    def step(
        self,
        velocity: Tensor,
        x: Tensor,
        i: int,
        state: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Solver.step`; the state is the clean latent predicted in the step before. Raises
        `InputError` when noise is due and missing."""
        velocity, x = widen(velocity, x)
        start, end = self.schedule.starts[i], self.schedule.ends[i]
        x0 = start**0.5 * x - (1.0 - start) ** 0.5 * velocity
        if not self.takes_noise(i):
            return x0, x0
        if noise is None:
            raise InputError(f"step {i} of the DPM solver needs fresh noise, got none")
        now = _log_snr(start)
        span = _log_snr(end) - now
        aim = x0
        if state is not None:
            past = span / (2.0 * (now - _log_snr(self.schedule.starts[i - 1])))
            aim = (1.0 + past) * x0 - past * state
        keep = ((1.0 - end) / (1.0 - start)) ** 0.5 * math.exp(-span)
        gain = -math.expm1(-2.0 * span)
        x = keep * x + gain * end**0.5 * aim + ((1.0 - end) * gain) ** 0.5 * noise.to(x)
        return x, x0


def _log_snr(share: float) -> float:
    """Half the logarithm of the signal-to-noise ratio."""
    return -math.inf if share == 0.0 else 0.5 * (math.log(share) - math.log1p(-share))
