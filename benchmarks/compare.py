"""Reads what `report.to_json` wrote, checked, and says what of it became slower.

The noise of a figure is what lies between its quartiles. One is called slower, or faster, when the
two runs' quartiles do not meet and the medians are further apart than a share that was asked for:
a run whose rounds agree too well would else find news in nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from livereel.engine.checkpoint.folder import read_json
from livereel.engine.errors import CheckpointError, InputError

from .harness import Environment, Spread, Timing
from .report import Goal, Section, Spent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOST_BYTES = 16 << 20
_MOST_ENTRIES = 10_000
RATE = "frames a second"
"""Figures whose name ends so are better when larger, and so are ratios; all others when smaller."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run's sections and where it ran."""

    environment: Environment
    sections: Mapping[str, Section]

    def figures(self) -> Iterator[tuple[str, Spread]]:
        """All medians with their quartiles, by a name that says the section: rates, ratios, and
        whatever else was measured."""
        for where, section in self.sections.items():
            for timing in section.timings:
                yield f"{where}: {timing.name}, {RATE}", timing.fps
            for name, spread in section.figures.items():
                yield f"{where}: {name}", spread
        yield from self.ratios()

    def ratios(self) -> Iterator[tuple[str, Spread]]:
        """How much faster ours was than each peer in the same run: comparable across machines."""
        for where, section in self.sections.items():
            for name, spread in section.ratios.items():
                yield f"{where}: {name}, x", spread


def read(path: Path) -> Result:
    """Read a result's JSON. Raises `InputError`, in one sentence, for what is none."""
    try:
        values = read_json(path, limit=_MOST_BYTES)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    try:
        known = {field.name for field in fields(Environment)}
        environment = _mapping(values["environment"])
        sections = _mapping(values["sections"]).items()
        return Result(
            environment=Environment(**{k: v for k, v in environment.items() if k in known}),
            sections={name: _section(_mapping(section)) for name, section in sections},
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path} is no result of a benchmark's --json ({reason})") from error


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure in two runs. `gain` is above 1 where the second is better."""

    name: str
    before: Spread
    after: Spread
    gain: float
    beyond_noise: bool

    def __str__(self) -> str:
        """`slower  decode: livereel, frames a second  158 [154, 159] -> 120 [119, 121]  -24%`."""
        what = ("faster" if self.gain > 1 else "slower") if self.beyond_noise else "same"
        share = self.after.median / self.before.median - 1
        return f"{what:7} {self.name:52} {self.before} -> {self.after}  {share:+.1%}"


def apart(before: Result, after: Result) -> dict[str, str]:
    """Sections of both that were measured in another dtype or on another road, as a bfloat16 model
    is on a chip without it, and how so: their figures tell nothing of each other."""
    found = {}
    for name in before.sections.keys() & after.sections.keys():
        one, two = before.sections[name].setup, after.sections[name].setup
        differ = [key for key in ("dtype", "device", "road") if one.get(key) != two.get(key)]
        if differ:
            found[name] = ", ".join(f"{key} {one.get(key)} and {two.get(key)}" for key in differ)
    return found


def without(result: Result, names: Collection[str]) -> Result:
    """All other sections."""
    kept = {name: x for name, x in result.sections.items() if name not in names}
    return replace(result, sections=kept)


def compare(before: Result, after: Result, *, by: float, ratios: bool) -> list[Change]:
    """Every figure, or every ratio, that both runs have; `by` is the least share that counts.

    Raises `InputError` when there is none.
    """
    one, two = (dict(result.ratios() if ratios else result.figures()) for result in (before, after))
    changes = [_change(name, one[name], two[name], by) for name in one if name in two]
    if not changes:
        raise InputError(f"the two results have no {'ratio' if ratios else 'figure'} in common")
    return changes


def _change(name: str, before: Spread, after: Spread, by: float) -> Change:
    larger = name.endswith((RATE, ", x"))
    gain = after.median / before.median if larger else before.median / after.median
    apart = after.low > before.high or after.high < before.low
    return Change(
        name=name,
        before=before,
        after=after,
        gain=gain,
        beyond_noise=apart and not 1 - by <= gain <= 1 / (1 - by),
    )


def _section(values: Mapping[str, Any]) -> Section:
    return Section(
        title=str(values["title"]),
        timings=[_timing(_mapping(timing)) for timing in _list(values["timings"])],
        ratios={name: _spread(x) for name, x in _mapping(values["ratios"]).items()},
        figures={name: _spread(x) for name, x in _mapping(values["figures"]).items()},
        notes=[str(note) for note in _list(values["notes"])],
        goals=[_goal(_mapping(goal)) for goal in _list(values["goals"])],
        setup={name: _plain(x) for name, x in _mapping(values.get("setup", {})).items()},
        contents={name: str(x) for name, x in _mapping(values.get("contents", {})).items()},
        stages={
            name: {stage: _seconds(x) for stage, x in _mapping(stages).items()}
            for name, stages in _mapping(values.get("stages", {})).items()
        },
        work=[_spent(_mapping(spent)) for spent in _list(values.get("work", []))],
    )


def _timing(values: Mapping[str, Any]) -> Timing:
    seconds = tuple(_above_zero(x) for x in _list(values["seconds"]))
    if not seconds:
        raise ValueError("a timing without rounds")
    return Timing(
        name=str(values["name"]),
        settings=str(values["settings"]),
        frames=int(_above_zero(values["frames"])),
        warmup_s=tuple(_above_zero(x) for x in _list(values["warmup_s"])),
        seconds=seconds,
    )


def _goal(values: Mapping[str, Any]) -> Goal:
    return Goal(
        what=str(values["what"]),
        value=float(values["value"]),
        bound=float(values["bound"]),
        at_least=bool(values["at_least"]),
        unit=str(values["unit"]),
    )


def _spent(values: Mapping[str, Any]) -> Spent:
    known = [field.name for field in fields(Spent) if field.name != "name"]
    return Spent(name=str(values["name"]), **{name: _above_zero(values[name]) for name in known})


def _plain(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{value!r:.20} is neither text nor a whole number")
    return value


def _seconds(value: object) -> float:
    return 0.0 if value == 0 else _above_zero(value)


def _spread(values: object) -> Spread:
    known = _mapping(values)
    return Spread(*(_above_zero(known[name]) for name in ("median", "low", "high")))


def _above_zero(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.20} is no number")
    if not 0 < value < math.inf:
        raise ValueError(f"{value} is not above zero")
    return float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or len(value) > _MOST_ENTRIES:
        raise TypeError("no object where one is wanted")
    return value


def _list(value: object) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise TypeError("no list where one is wanted")
    return value
