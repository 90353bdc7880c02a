from __future__ import annotations

import pytest

from livereel.engine.errors import CheckpointError
from livereel.engine.sampling.ddim import DDIM
from livereel.engine.sampling.dpm import DPMSolverSDE
from livereel.engine.sampling.guidance import dynamic
from livereel.engine.sampling.named import SCHEDULERS, scheduler_of, stream_solver
from livereel.engine.sampling.solvers import Euler, Renoise


def test_a_scheduler_is_found_by_its_class() -> None:
    found = scheduler_of({"_class_name": "CogVideoXDPMScheduler"})
    assert (found.solver, found.guidance) == (DPMSolverSDE, dynamic)
    steady = scheduler_of({"_class_name": "CogVideoXDDIMScheduler"}).guidance(6.0, 50)
    assert {steady(t).scale for t in (999.0, 19.0)} == {6.0}
    for name in (None, ["x"], "LCMScheduler"):
        with pytest.raises(CheckpointError, match=r"scheduler .* is none of FlowMatchEuler"):
            scheduler_of({"_class_name": name})
    assert len(SCHEDULERS) == 4


def test_a_stream_s_solver_goes_by_its_name() -> None:
    times = (999.0, 499.0)
    assert isinstance(stream_solver("euler", times, shift=5.0), Euler)
    assert isinstance(stream_solver("renoise", times, shift=5.0), Renoise)
    ddim = stream_solver("ddim", times, shift=3.0)
    assert isinstance(ddim, DDIM)
    assert ddim.schedule.starts[0] == 0.0
    assert ddim.schedule.ends[-1] == 1.0
    other = stream_solver("ddim", times, shift=1.0)
    assert isinstance(other, DDIM)
    assert other.schedule.starts[1] > ddim.schedule.starts[1]
    tail = stream_solver("dpm", times, shift=3.0, strength=0.5)
    assert isinstance(tail, DPMSolverSDE)
    assert tail.schedule.timesteps == (499.0,)
