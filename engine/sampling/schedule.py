"""Flow-matching noise schedules: which noise levels a sampler visits, and what it tells the model.

A noisy latent is `x = (1 - sigma) * x0 + sigma * noise`, so sigma runs from 1 (all noise) to 0 (all
data); the model is told `timestep = 1000 * sigma`, up to the habits of each recipe below.

The published grids differ in small ways that decide whether a clip can be reproduced, so each has
its own function: Wan as diffusers runs it (`wan`), Wan's original code (`wan_original`), the Euler
scheduler of diffusers (`flow_match_euler`), and the lists of few-step distilled models (`warp`,
`from_timesteps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    Levels = npt.NDArray[np.float64]
    Sigma = TypeVar("Sigma", float, Levels)

TRAIN_TIMESTEPS = 1000
_MAX_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """`N` steps: `timesteps` (N values, told to the model) and `sigmas` (N + 1, down to 0).

    Step i goes from `sigmas[i]` to `sigmas[i + 1]`. The functions of this file round sigmas to
    fp32, the precision diffusers keeps them in; what solvers derive from them is worked out in
    fp64. Raises `InputError` unless the lengths fit and sigmas fall from at most 1 to 0.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) < 1 or len(self.sigmas) != len(self.timesteps) + 1:
            raise InputError(
                f"a schedule has one sigma more than timesteps, "
                f"got {len(self.sigmas)} sigmas and {len(self.timesteps)} timesteps"
            )
        falls = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not falls or self.sigmas[0] > 1.0 or self.sigmas[-1] != 0.0:
            raise InputError(f"sigmas must fall from at most 1 to 0, got {self.sigmas}")

    def tail(self, strength: float) -> Schedule:
        """The last `strength` of all steps, at least one, for a clip that starts from another.

        Raises `InputError` unless `strength` lies above 0 and is at most 1.
        """
        left = steps_left(len(self), strength)
        return Schedule(self.sigmas[-left - 1 :], self.timesteps[-left:])

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at the first step's noise level."""
        sigma = self.sigmas[0]
        return (1.0 - sigma) * clean + sigma * noise

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.timesteps)


def steps_left(steps: int, strength: float) -> int:
    """How many of `steps` a start from something clean leaves: at least one.

    Raises `InputError` unless `strength` lies above 0 and is at most 1.
    """
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not 0 < strength <= 1:
        raise InputError(f"strength is {strength!r:.40}; wanted above 0 and at most 1")
    return max(1, int(steps * strength))


def shift(sigma: Sigma, by: float) -> Sigma:
    """Move noise levels towards 1: `by * sigma / (1 + (by - 1) * sigma)`.

    Larger pictures need more of their steps at high noise (Esser et al. 2024, arXiv 2403.03206).
    """
    return by * sigma / (1.0 + (by - 1.0) * sigma)


def linspace(steps: int, *, shift_by: float = 1.0) -> Schedule:
    """Even steps from 1 to 0, then shifted; timesteps are `1000 * sigma` and not rounded."""
    sigmas = shift(np.linspace(1.0, 0.0, _checked(steps) + 1)[:-1], shift_by)
    return _schedule(sigmas, TRAIN_TIMESTEPS * sigmas)


def wan(steps: int, *, shift_by: float = 5.0) -> Schedule:
    """Wan as diffusers runs it: `UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=...)`.

    Even steps from 1 towards 0.001, shifted; the first sigma stays 1e-6 below 1 so that its log
    signal-to-noise ratio is finite, and timesteps are cut to whole numbers.
    """
    sigmas = shift(np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, _checked(steps) + 1)[:-1], shift_by)
    sigmas[0] -= 1e-6
    return _schedule(sigmas, np.trunc(TRAIN_TIMESTEPS * sigmas))


def wan_original(steps: int, *, shift_by: float = 5.0) -> Schedule:
    """Wan's own code: even steps from 0.999 towards 0, shifted; timesteps cut to whole numbers."""
    sigmas = shift(np.linspace(0.999, 0.0, _checked(steps) + 1)[:-1], shift_by)
    return _schedule(sigmas, np.trunc(TRAIN_TIMESTEPS * sigmas))


def flow_match_euler(steps: int, *, shift_by: float = 1.0) -> Schedule:
    """diffusers' `FlowMatchEulerDiscreteScheduler(shift=...)`.

    Even steps from 1 to a smallest sigma, shifted twice: once on its own, once with the rest.
    """
    smallest = shift(1.0 / TRAIN_TIMESTEPS, shift_by)
    sigmas = shift(np.linspace(1.0, smallest, _checked(steps)), shift_by)
    return _schedule(sigmas, TRAIN_TIMESTEPS * sigmas)


def warp(timesteps: Sequence[float], shift_by: float) -> tuple[float, ...]:
    """Shift a list of timesteps: [1000, 750, 500, 250] by 5 is [1000, 937.5, 833.33, 625].

    Self-Forcing (arXiv 2506.08009) and LongLive list their steps unshifted and warp them so.
    """
    return tuple(TRAIN_TIMESTEPS * shift(t / TRAIN_TIMESTEPS, shift_by) for t in timesteps)


def from_timesteps(timesteps: Sequence[float], *, table_shift: float | None = None) -> Schedule:
    """The schedule of a few-step model that was distilled at these timesteps.

    `sigma = t / 1000`; a warped list is exact so. CausVid (arXiv 2412.07772) does not warp: its
    model is told the listed timestep, while sigma is the nearest of 1000 even sigmas shifted by
    `table_shift` (8).
    """
    told = np.array(timesteps, dtype=np.float64)
    sigmas = told / TRAIN_TIMESTEPS
    if table_shift is not None:
        table = shift(np.linspace(1.0, 0.0, TRAIN_TIMESTEPS + 1)[:-1], table_shift)
        sigmas = table[np.abs(table - sigmas[:, None]).argmin(axis=1)]
    return _schedule(sigmas, told)


def subset(timesteps: Sequence[float], steps: int) -> tuple[float, ...]:
    """`steps` of a model's timesteps, evenly spread and always with the first.

    A live stream that must catch up runs fewer of the steps its model knows, never unknown ones.
    Raises `InputError` unless `1 <= steps <= len(timesteps)`.
    """
    count = len(timesteps)
    if not 1 <= steps <= count:
        raise InputError(f"steps must be from 1 to the {count} this model knows, got {steps}")
    return tuple(timesteps[(2 * i * count + steps) // (2 * steps)] for i in range(steps))


def from_diffusers(config: Mapping[str, Any], steps: int) -> Schedule:
    """The schedule that a diffusers folder's `scheduler/scheduler_config.json` describes.

    Raises `CheckpointError` naming the scheduler, or its setting, that has no counterpart here.
    """
    name = config.get("_class_name")
    if name not in _KNOWN:
        raise CheckpointError(f"scheduler {name!r:.64} is none of {', '.join(_KNOWN)}")
    for key, known in _KNOWN[name].items():
        value = config.get(key, _DEFAULTS.get(key, known))
        if value != known:
            raise CheckpointError(f"{name} must have {key} {known!r}, got {value!r:.64}")
    unipc = name == "UniPCMultistepScheduler"
    key = "flow_shift" if unipc else "shift"
    by = config.get(key, 1.0)
    if isinstance(by, bool) or not isinstance(by, (int, float)) or not 0 < by <= 1000:
        raise CheckpointError(f"{name} must have a {key} above 0 and at most 1000, got {by!r:.64}")
    return (wan if unipc else flow_match_euler)(steps, shift_by=float(by))


_SIGMAS = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "shift_terminal": None,
}
_KNOWN: dict[str, dict[str, Any]] = {
    "UniPCMultistepScheduler": {
        **_SIGMAS,
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "disable_corrector": [],
        "thresholding": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS,
        "stochastic_sampling": False,
        "invert_sigmas": False,
    },
}
_DEFAULTS = {"use_flow_sigmas": False, "prediction_type": "epsilon"}  # where diffusers' differ


def _schedule(sigmas: Levels, timesteps: Levels) -> Schedule:
    """`sigmas` without their final 0, which is added here."""
    rounded = sigmas.astype(np.float32).tolist()
    return Schedule((*rounded, 0.0), tuple(timesteps.tolist()))


def _checked(steps: int) -> int:
    if not 1 <= steps <= _MAX_STEPS:
        raise InputError(f"steps must be from 1 to {_MAX_STEPS}, got {steps}")
    return steps
