"""Which schedule and which solver go with a name, in a diffusers folder or in `livereel.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from . import schedule, velocity
from .ddim import DDIM
from .dpm import DPMSolverSDE
from .guidance import Guidance, dynamic
from .solvers import SOLVERS, Euler, UniPC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .solvers import Solver, Timetable


def _steady(scale: float, steps: int) -> Callable[[float], Guidance]:
    return lambda timestep: Guidance(scale=scale)


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """How the clips of a diffusers folder are sampled.

    `timetable` makes a schedule of the folder's `scheduler_config.json` for a number of steps,
    which `solver` walks down; `guidance` makes of a scale, for a number of steps, what the model is
    guided with at each timestep.
    """

    timetable: Callable[[Mapping[str, Any], int], Timetable]
    solver: Callable[[Any], Solver]
    guidance: Callable[[float, int], Callable[[float], Guidance]] = _steady


SCHEDULERS: dict[str, Scheduler] = {
    "FlowMatchEulerDiscreteScheduler": Scheduler(timetable=schedule.from_diffusers, solver=Euler),
    "UniPCMultistepScheduler": Scheduler(timetable=schedule.from_diffusers, solver=UniPC),
    "CogVideoXDDIMScheduler": Scheduler(timetable=velocity.from_diffusers, solver=DDIM),
    "CogVideoXDPMScheduler": Scheduler(
        timetable=velocity.from_diffusers, solver=DPMSolverSDE, guidance=dynamic
    ),
}
"""By class name; those who published CogVideoX advise dynamic guidance with its DPM solver."""

_VELOCITY_SOLVERS: dict[str, Callable[[velocity.VelocitySchedule], Solver]] = {
    "ddim": DDIM,
    "dpm": DPMSolverSDE,
}


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """What a folder's `scheduler_config.json` names.

    Raises `CheckpointError` for a scheduler that has no counterpart here.
    """
    name = config.get("_class_name")
    found = SCHEDULERS.get(name) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(f"scheduler {name!r:.64} is none of {', '.join(SCHEDULERS)}")
    return found


def stream_solver(
    name: str, timesteps: Sequence[float], *, shift: float, strength: float = 1.0
) -> Solver:
    """The solver of that name in `livereel.json` over the last `strength` of these timesteps.

    Those of models that predict velocity divide the signal-to-noise ratio by `shift`.
    """
    if name in _VELOCITY_SOLVERS:
        table = velocity.from_timesteps(timesteps, snr_shift=shift)
        return _VELOCITY_SOLVERS[name](table.tail(strength))
    return SOLVERS[name](schedule.from_timesteps(timesteps).tail(strength))
