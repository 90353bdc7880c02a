"""What a benchmark says: figures with settings beside them, ratios, goals met or missed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .harness import speedup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .harness import Environment, Spread, Timing


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and what it was to be."""

    what: str
    value: float
    bound: float
    at_least: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        """`met     decode over diffusers 4.27x (goal: at least 4x)`."""
        side = "at least" if self.at_least else "at most"
        return (
            f"{'met' if self.met else 'MISSED':6}  {self.what} {self.value:.3g}{self.unit} "
            f"(goal: {side} {self.bound:g}{self.unit})"
        )


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a figure, and thereby what is not. `passes` are forwards of the DiT for each
    frame, that which writes the cache among them; `vae` is "full", "tiny" or "none"."""

    passes: int
    cache_pass: bool
    vae: str
    text: bool = False
    conversion: bool = True
    encode: bool = False

    def __str__(self) -> str:
        """`5 passes, the cache pass among them, full VAE, conversion; not text, encode`."""
        own = ", the cache pass among them" if self.cache_pass else ""
        parts = {"text": self.text, "conversion": self.conversion, "encode": self.encode}
        inside = [f"{self.passes} passes{own}"] if self.passes else []
        inside += [f"{self.vae} VAE"] if self.vae != "none" else []
        inside += [name for name, there in parts.items() if there]
        outside = ["cache pass"] if self.passes and not self.cache_pass else []
        outside += [name for name, there in parts.items() if not there]
        said = ", ".join(inside) or "nothing"
        return f"{said}; not {', '.join(outside)}" if outside else said


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A stage's seconds, beside what it computes and what the chip could do.

    `flops` and `moved` bytes are counted from the graph; `ceiling_flops` and `ceiling_bytes` a
    second were measured on the same chip in the same run.
    """

    name: str
    seconds: float
    flops: float
    moved: float
    ceiling_flops: float
    ceiling_bytes: float

    @property
    def share(self) -> float:
        """The least seconds that the ceilings allow, over those it took."""
        least = max(self.flops / self.ceiling_flops, self.moved / self.ceiling_bytes)
        return least / self.seconds

    def __str__(self) -> str:
        """`roofline, DiT: 0.57 TFLOP/s, 21 GB/s, 44% of what this chip allows`."""
        rate, bandwidth = self.flops / self.seconds / 1e12, self.moved / self.seconds / 1e9
        return (
            f"roofline, {self.name}: {rate:.3g} TFLOP/s, {bandwidth:.3g} GB/s, {self.share:.0%} of "
            f"what this chip allows"
        )


@dataclass(frozen=True, kw_only=True)
class Section:
    """One comparison: who made how many frames a second, the ratios, and what was aimed at.

    `ratios` are of the first of `timings` over each of the others; `figures` are medians of what
    is no frame rate; `notes` are lines of plain text. `setup` says what was measured at what size,
    `contents` what is in the figures of each contender, `stages` where a chunk of theirs spends its
    seconds, `work` what the first of them computes.
    """

    title: str
    timings: Sequence[Timing] = ()
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    figures: Mapping[str, Spread] = field(default_factory=dict)
    notes: Sequence[str] = ()
    goals: Sequence[Goal] = ()
    setup: Mapping[str, str | int] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    work: Sequence[Spent] = ()

    @classmethod
    def compare(
        cls,
        title: str,
        timings: Sequence[Timing],
        *,
        goals: Sequence[float] = (),
        notes: Sequence[str] = (),
        contents: Mapping[str, str] | None = None,
    ) -> Section:
        """The first of `timings` against the others; `goals` are the least ratio over each."""
        ours, *others = timings
        ratios = {f"{ours.name} over {theirs.name}": speedup(ours, theirs) for theirs in others}
        return cls(
            title=title,
            timings=timings,
            ratios=ratios,
            notes=notes,
            contents=contents or {},
            goals=[
                Goal(what=f"{name}:", value=ratio.median, bound=bound, unit="x")
                for (name, ratio), bound in zip(ratios.items(), goals, strict=False)
            ],
        )

    def __str__(self) -> str:
        """A block of the printed report."""
        lines = [self.title]
        for timing in self.timings:
            rate = f"{timing.fps} frames a second"
            lines.append(f"  {timing.name:16} {timing.settings:44} {rate}")
            if timing.name in self.contents:
                lines.append(f"    in it: {self.contents[timing.name]}")
        named = {timing.name for timing in self.timings}
        lines += [f"  in {who}: {what}" for who, what in self.contents.items() if who not in named]
        lines += [f"  {name} {ratio}x" for name, ratio in self.ratios.items()]
        lines += [f"  {name} {figure}" for name, figure in self.figures.items()]
        for name, stages in self.stages.items():
            each = ", ".join(f"{stage} {1000 * s:.1f}" for stage, s in stages.items())
            lines.append(f"  {name}, ms of a chunk: {each}")
        lines += [f"  {spent}" for spent in self.work]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {goal}" for goal in self.goals]
        return "\n".join(lines)


def to_json(environment: Environment, sections: Mapping[str, Section]) -> str:
    """Every figure, each round's among them."""
    return json.dumps(
        {
            "environment": dataclasses.asdict(environment),
            "sections": {name: _section(section) for name, section in sections.items()},
        },
        indent=2,
    )


def _section(section: Section) -> dict[str, Any]:
    values = dataclasses.asdict(section)
    for timing, shown in zip(section.timings, values["timings"], strict=True):
        shown["fps"] = dataclasses.asdict(timing.fps)
    for goal, shown in zip(section.goals, values["goals"], strict=True):
        shown["met"] = goal.met
    return values
