"""DDIM for models that predict velocity: Song, Meng and Ermon, "Denoising Diffusion Implicit
Models" (2021), without fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .solvers import widen

if TYPE_CHECKING:
    from torch import Tensor

    from .velocity import VelocitySchedule


@dataclass(frozen=True)
class DDIM:
    """Equal to diffusers' `CogVideoXDDIMScheduler`."""

    schedule: VelocitySchedule

    def takes_noise(self, i: int) -> bool:
        """Never."""
        return False

    def step(
        self, velocity: Tensor, x: Tensor, i: int, state: None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`; keeps no state."""
        velocity, x = widen(velocity, x)
        start, end = self.schedule.starts[i], self.schedule.ends[i]
        x0 = start**0.5 * x - (1.0 - start) ** 0.5 * velocity
        keep = ((1.0 - end) / (1.0 - start)) ** 0.5
        return keep * x + (end**0.5 - start**0.5 * keep) * x0, None
