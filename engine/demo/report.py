"""What an evaluation found: scores beside their goals, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much was evaluated, as `evaluate` takes it. Raises `InputError` for a negative number."""

    clips: int
    seconds: float
    streams: int
    stream_minutes: float
    prompt_changes: int
    vae_scenes: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise InputError(f"{name} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which words of a caption hold in a clip.

    `direction` is the motion's class alone, `motion` demands a straight, even path as well; `size`
    is None when the caption names none. `stray` is the trajectory error in pixels a second.
    """

    color: bool
    shape: bool
    direction: bool
    motion: bool
    background: bool
    size: bool | None
    stray: float

    @property
    def wrong(self) -> tuple[str, ...]:
        """The words that do not hold."""
        names = ("color", "shape", "motion", "background", "size")
        return tuple(name for name in names if getattr(self, name) is False)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number. `low` and `high` bound a percentage at 95% confidence (Wilson);
    `count` is how many independent trials it rests on. `goal` is None for what is only told."""

    name: str
    stage: str
    value: float
    unit: str
    goal: float | None
    at_least: bool = True
    low: float | None = None
    high: float | None = None
    count: int

    @property
    def passed(self) -> bool | None:
        """Whether the goal is met; None when there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


@dataclass(frozen=True, kw_only=True)
class Minute:
    """Scores in percent of all streams at one time since their start, in minutes."""

    minute: float
    color: float
    shape: float
    motion: float
    background: float
    windows: int

    @classmethod
    def of(cls, minute: float, verdicts: Sequence[Verdict]) -> Minute:
        """From the verdicts on the windows of that time."""
        words = ("color", "shape", "motion", "background")
        return cls(
            minute=minute,
            windows=len(verdicts),
            **{
                word: 100 * sum(getattr(v, word) for v in verdicts) / max(1, len(verdicts))
                for word in words
            },
        )


@dataclass(frozen=True)
class Failure:
    """A prompt and seed whose result was wrong, and in which words."""

    stage: str
    prompt: str
    seed: int
    wrong: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that an evaluation found."""

    settings: Settings
    scores: tuple[Score, ...]
    minutes: tuple[Minute, ...]
    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether every goal is met."""
        return all(score.passed is not False for score in self.scores)

    def score(self, name: str) -> Score:
        """The score of that name; `KeyError` when it was not measured."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes None."""
        values: dict[str, Any] = _finite(asdict(self))
        for row, score in zip(values["scores"], self.scores, strict=True):
            row["passed"] = score.passed
        return {"passed": self.passed, **values}

    def to_json(self) -> str:
        """`to_dict`, indented."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """A table of scores, intervals, goals and verdicts, and one of the streams by minute."""
        lines = [
            "| | measured | score | 95% interval | goal | |",
            "| --- | --- | ---: | :---: | ---: | :---: |",
        ]
        for score in self.scores:
            sign = "≥" if score.at_least else "≤"
            interval = "" if score.low is None else f"{score.low:.1f} to {score.high:.1f}"
            goal = "" if score.goal is None else f"{sign} {score.goal:g} {score.unit}"
            mark = {True: "yes", False: "**no**", None: ""}[score.passed]
            lines.append(
                f"| {score.stage} | {score.name} | {_number(score.value)} {score.unit} "
                f"| {interval} | {goal} | {mark} |"
            )
        if self.minutes:
            lines += [
                "",
                "| streams at minute | color | shape | motion | background |",
                "| ---: | ---: | ---: | ---: | ---: |",
            ]
            lines += [
                f"| {at.minute:g} | {at.color:.1f} % | {at.shape:.1f} % | {at.motion:.1f} % "
                f"| {at.background:.1f} % |"
                for at in self.minutes
            ]
        return "\n".join(lines) + "\n"


def share(
    name: str,
    stage: str,
    right: Sequence[bool],
    goal: float | None,
    count: int | None = None,
) -> Score:
    """The percentage that is right, with its interval.

    `count` is the number of independent trials when `right` holds several looks at each.
    """
    rate = sum(right) / len(right) if right else 0.0
    trials = len(right) if count is None else min(count, len(right))
    low, high = wilson(rate, trials)
    return Score(
        name=name,
        stage=stage,
        value=100 * rate,
        unit="%",
        goal=goal,
        low=100 * low,
        high=100 * high,
        count=trials,
    )


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Bounds of a binomial rate at 95% confidence (Wilson 1927); 0 to 1 without trials."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    middle = rate + z * z / (2 * count)
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "∞"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
