"""Noise schedules of models that predict velocity, such as CogVideoX.

A noisy latent is `x = sqrt(a) x0 + sqrt(1 - a) noise`; the share of the signal `a`, also called
`alphas_cumprod`, comes from a table of 1000 timesteps, and `velocity = sqrt(a) noise - sqrt(1 - a)
x0` (Salimans and Ho, "Progressive Distillation", 2022). The table's signal-to-noise ratios are
divided by a shift (Esser et al. 2024, arXiv 2403.03206) and then scaled so that its last entry is
noise alone (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, InputError
from .schedule import TRAIN_TIMESTEPS, steps_left

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

_BETAS = (0.00085, 0.012)
_MAX_STEPS = 1000


@dataclass(frozen=True)
class VelocitySchedule:
    """`N` steps: `timesteps` (told to the model), and the share of the signal at each step's start
    and end.

    A step's end need not be the next one's start: diffusers counts both down from the step's own
    timestep, by rounded strides. The last end is 1, all signal, unless that counting misses it.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.ends) == len(self.timesteps) >= 1:
            raise InputError(
                f"a schedule has a start and an end for each timestep, got {len(self.starts)}, "
                f"{len(self.ends)} and {len(self.timesteps)}"
            )
        pairs = zip(self.starts, self.ends, strict=True)
        if any(not 0 <= start < end <= 1 for start, end in pairs):
            raise InputError("signal must grow in every step, from at least 0 to at most 1")

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.timesteps)

    def tail(self, strength: float) -> VelocitySchedule:
        """The last `strength` of all steps, at least one, for a clip that starts from another.

        Raises `InputError` unless `strength` lies above 0 and is at most 1.
        """
        left = steps_left(len(self), strength)
        return VelocitySchedule(self.starts[-left:], self.ends[-left:], self.timesteps[-left:])

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at the first step's noise level."""
        share: float = self.starts[0]
        noisy: Tensor = share**0.5 * clean + (1.0 - share) ** 0.5 * noise
        return noisy


def trailing(steps: int, *, snr_shift: float) -> VelocitySchedule:
    """CogVideoX as diffusers runs it: 50 steps are at 999, 979, ... 19."""
    if not 1 <= steps <= _MAX_STEPS:
        raise InputError(f"steps must be from 1 to {_MAX_STEPS}, got {steps}")
    table = signal(snr_shift)
    even = np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / steps)[:steps]
    timesteps = np.round(even).astype(np.int64) - 1
    after = timesteps - TRAIN_TIMESTEPS // steps
    ends = np.where(after >= 0, table[after], 1.0)
    return VelocitySchedule(
        tuple(table[timesteps].tolist()),
        tuple(ends.tolist()),
        tuple(float(t) for t in timesteps.tolist()),
    )


def from_timesteps(timesteps: Sequence[float], *, snr_shift: float) -> VelocitySchedule:
    """The schedule that goes from each of these timesteps, descending, to the next, and from the
    last one to data. Between the table's entries the share of the signal is interpolated."""
    table = signal(snr_shift)
    starts = np.interp(timesteps, np.arange(TRAIN_TIMESTEPS), table).tolist()
    return VelocitySchedule(tuple(starts), (*starts[1:], 1.0), tuple(timesteps))


@lru_cache(maxsize=8)
def signal(snr_shift: float) -> npt.NDArray[np.float64]:
    """Share of the signal at timesteps 0 to 999: betas even in their roots, shifted, scaled so that
    the last is 0 and the first stays."""
    first, last = _BETAS
    betas = np.linspace(first**0.5, last**0.5, TRAIN_TIMESTEPS) ** 2
    shares = np.cumprod(1.0 - betas)
    roots = np.sqrt(shares / (snr_shift + (1.0 - snr_shift) * shares))
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    scaled: npt.NDArray[np.float64] = np.square(roots)
    scaled.flags.writeable = False
    return scaled


def from_diffusers(config: Mapping[str, Any], steps: int) -> VelocitySchedule:
    """The schedule that a `CogVideoXDDIMScheduler`'s or `CogVideoXDPMScheduler`'s config describes.

    Raises `CheckpointError` naming a setting that has no counterpart here.
    """
    for key, known in _KNOWN.items():
        value = config.get(key, _DEFAULTS.get(key, known))
        if value != known:
            name = str(config.get("_class_name"))[:64]
            raise CheckpointError(f"{name} must have {key} {known!r}, got {value!r:.64}")
    shift = config.get("snr_shift_scale", 3.0)
    if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not 0 < shift <= 1000:
        raise CheckpointError(
            f"snr_shift_scale must be a number above 0 and at most 1000, got {shift!r:.64}"
        )
    return trailing(steps, snr_shift=float(shift))


_KNOWN: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": _BETAS[0],
    "beta_end": _BETAS[1],
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
}
_DEFAULTS = {  # where diffusers' differ
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
