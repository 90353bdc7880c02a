from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.sampling import schedule
from livereel.engine.sampling.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = (1, 2, 3, 7, 27, 37, 50)
SHIFTS = (1.0, 3.0, 5.0, 12.0)


def test_shift_moves_levels_up_and_keeps_both_ends() -> None:
    assert schedule.shift(0.0, 5.0) == 0.0
    assert schedule.shift(1.0, 5.0) == 1.0
    assert schedule.shift(0.5, 1.0) == 0.5
    assert schedule.shift(0.5, 3.0) == 0.75


def test_linspace_is_even_and_tells_exact_timesteps() -> None:
    assert schedule.linspace(4) == Schedule(
        (1.0, 0.75, 0.5, 0.25, 0.0), (1000.0, 750.0, 500.0, 250.0)
    )
    assert schedule.linspace(4, shift_by=3.0).timesteps == pytest.approx((1000, 900, 750, 500))


@pytest.mark.parametrize("shift_by", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_wan_is_bitwise_the_grid_of_diffusers_unipc(steps: int, shift_by: float) -> None:
    theirs = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift_by
    )
    theirs.set_timesteps(steps)
    ours = schedule.wan(steps, shift_by=shift_by)
    assert list(ours.sigmas) == theirs.sigmas.tolist()
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    assert schedule.from_diffusers(json.loads(theirs.to_json_string()), steps) == ours


def test_wan_original_ends_at_92_where_diffusers_ends_at_96() -> None:
    ours = schedule.wan_original(50, shift_by=5.0)
    assert len(ours) == 50
    assert (ours.timesteps[0], ours.timesteps[-1]) == (999.0, 92.0)
    assert ours.sigmas[0] == pytest.approx(5 * 0.999 / (1 + 4 * 0.999), abs=1e-7)
    assert schedule.wan(50, shift_by=5.0).timesteps[-1] == 96.0


@pytest.mark.parametrize("shift_by", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_match_euler_is_the_grid_of_diffusers(steps: int, shift_by: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift_by)
    theirs.set_timesteps(steps)
    ours = schedule.flow_match_euler(steps, shift_by=shift_by)
    assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), abs=2e-7)
    assert ours.timesteps == pytest.approx(theirs.timesteps.tolist(), abs=2e-4)
    assert schedule.from_diffusers(json.loads(theirs.to_json_string()), steps) == ours


def test_warp_gives_the_published_list_of_self_forcing() -> None:
    warped = schedule.warp([1000, 750, 500, 250], 5.0)
    assert warped == pytest.approx((1000.0, 937.5, 2500 / 3, 625.0))
    assert schedule.from_timesteps(warped).sigmas == pytest.approx(
        (1.0, 0.9375, 5 / 6, 0.625, 0.0), abs=1e-7
    )


def test_causvid_tells_its_list_and_takes_sigmas_from_its_table() -> None:
    causvid = schedule.from_timesteps([1000, 757, 522], table_shift=8.0)
    assert causvid.timesteps == (1000.0, 757.0, 522.0)
    table = [8 * (1 - i / 1000) / (1 + 7 * (1 - i / 1000)) for i in range(1000)]
    for told, sigma in zip(causvid.timesteps, causvid.sigmas, strict=False):
        assert sigma == pytest.approx(min(table, key=lambda s: abs(s - told / 1000)), abs=1e-7)
    assert causvid.sigmas[1] != pytest.approx(0.757, abs=1e-4)


def test_a_warped_list_needs_no_table() -> None:
    warped = schedule.warp([1000, 750, 500, 250], 5.0)
    assert schedule.from_timesteps(warped) == schedule.from_timesteps(warped, table_shift=5.0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, (8,)), (2, (8, 4)), (3, (8, 5, 3)), (4, (8, 6, 4, 2)), (8, (8, 7, 6, 5, 4, 3, 2, 1))],
)
def test_subset_is_even_and_keeps_the_first(steps: int, expected: tuple[float, ...]) -> None:
    assert schedule.subset((8, 7, 6, 5, 4, 3, 2, 1), steps) == expected


@pytest.mark.parametrize("count", range(1, 13))
def test_subset_never_repeats_and_its_gaps_differ_by_at_most_one(count: int) -> None:
    for steps in range(1, count + 1):
        picked = schedule.subset(range(count), steps)
        gaps = [b - a for a, b in zip(picked, (*picked[1:], count), strict=True)]
        assert picked[0] == 0
        assert len(picked) == steps
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", [0, -1, 5])
def test_subset_refuses_what_the_model_lacks(steps: int) -> None:
    with pytest.raises(InputError, match=f"1 to the 4 this model knows, got {steps}"):
        schedule.subset((4, 3, 2, 1), steps)


@pytest.mark.parametrize("make", [schedule.linspace, schedule.wan, schedule.wan_original])
def test_no_steps_is_an_error(make: Callable[[int], Schedule]) -> None:
    with pytest.raises(InputError, match="steps must be from 1"):
        make(0)


@pytest.mark.parametrize(
    ("sigmas", "timesteps"),
    [
        ((0.0,), ()),
        ((1.0, 0.0), (1000.0, 500.0)),
        ((1.0, 0.5, 0.5, 0.0), (3.0, 2.0, 1.0)),
        ((1.5, 0.0), (1500.0,)),
        ((1.0, 0.1), (1000.0,)),
        ((1.0, float("nan"), 0.0), (1000.0, 500.0)),
    ],
)
def test_a_schedule_that_is_none_is_refused(
    sigmas: tuple[float, ...], timesteps: tuple[float, ...]
) -> None:
    with pytest.raises(InputError):
        Schedule(sigmas, timesteps)


UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "scheduler 'DDIMScheduler' is none of UniPC"),
        ({}, "scheduler None is none of UniPC"),
        ({**UNIPC, "solver_order": 3}, "UniPC.* must have solver_order 2, got 3"),
        ({**UNIPC, "use_flow_sigmas": False}, "must have use_flow_sigmas True, got False"),
        ({"_class_name": UNIPC["_class_name"]}, "must have use_flow_sigmas True, got False"),
        ({**EULER, "use_dynamic_shifting": True}, "must have use_dynamic_shifting False, got True"),
        ({**EULER, "num_train_timesteps": 500}, "must have num_train_timesteps 1000, got 500"),
        ({**UNIPC, "flow_shift": "5"}, "must have a flow_shift above 0 and at most 1000, got '5'"),
        ({**UNIPC, "flow_shift": 0}, "flow_shift above 0 .* got 0"),
        ({**EULER, "shift": float("nan")}, "shift above 0 .* got nan"),
    ],
)
def test_schedulers_without_a_counterpart_are_refused(
    config: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        schedule.from_diffusers(config, 4)


def test_a_short_scheduler_config_is_filled_with_the_defaults_of_diffusers() -> None:
    assert schedule.from_diffusers(UNIPC, 4) == schedule.wan(4, shift_by=1.0)
    assert schedule.from_diffusers(EULER, 4) == schedule.flow_match_euler(4, shift_by=1.0)


@pytest.mark.parametrize(("strength", "left"), [(1.0, 5), (0.8, 4), (0.79, 3), (0.01, 1)])
def test_a_tail_has_the_last_steps(strength: float, left: int) -> None:
    whole = schedule.wan(5)
    tail = whole.tail(strength)
    assert tail.timesteps == whole.timesteps[-left:] and tail.sigmas == whole.sigmas[-left - 1 :]


@pytest.mark.parametrize("strength", [0, -1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match="strength is"):
        schedule.wan(5).tail(strength)
