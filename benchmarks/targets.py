"""What is aimed at on one H200, and how near results come.

    python -m livereel.benchmarks.targets FOLDER

reads every result in FOLDER and prints, for each target, the figure and its ratio to the target: 1
or more is met. What no result tells is listed, too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

from livereel.engine.checkpoint.folder import read_json
from livereel.engine.errors import CheckpointError, InputError

from .bench_live import CONTROL, INTERVAL
from .bench_startup import GOAL_S, OURS, TOTAL
from .compare import Result, read
from .report import Section

_MOST_BYTES = 16 << 20
Figure = Callable[[Section], "float | None"]
Setup = Mapping[str, "str | int"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on a figure of sections whose setup has all of `setup`; `missing` says what there is
    none of yet that could be measured."""

    name: str
    setup: Setup
    figure: Figure
    bound: float
    unit: str
    at_least: bool = False
    missing: str = ""

    def value(self, sections: Iterable[Section]) -> float | None:
        """The best figure there is of it."""
        found = [
            value
            for section in sections
            if all(section.setup.get(key) == wanted for key, wanted in self.setup.items())
            if (value := self.figure(section)) is not None
        ]
        return (max if self.at_least else min)(found, default=None)

    def ratio(self, value: float) -> float:
        """1 or more where it is met."""
        return value / self.bound if self.at_least else self.bound / value


def chunk_ms(section: Section) -> float | None:
    """The median of our chunks."""
    ours = section.timings[:1]
    return 1000 * statistics.median(ours[0].seconds) if ours else None


def fps(section: Section) -> float | None:
    """Our steady frames a second."""
    return section.timings[0].fps.median if section.timings else None


def first_frame_ms(section: Section) -> float | None:
    """The wait for our first frame, all warm."""
    found = section.figures.get("livereel: first frame, s")
    return None if found is None else 1000 * found.median


def median_of(name: str) -> Figure:
    """A figure by its name."""

    def figure(section: Section) -> float | None:
        found = section.figures.get(name)
        return None if found is None else found.median

    return figure


def ratio_over(peer: str) -> Figure:
    """How many times as fast as a peer ours was."""

    def figure(section: Section) -> float | None:
        found = section.ratios.get(f"livereel over {peer}")
        return None if found is None else found.median

    return figure


def _of(what: str, model: str, *more: Setup, dtype: str = "bfloat16") -> dict[str, str | int]:
    own: dict[str, str | int] = {"what": what, "model": model, "dtype": dtype, "device": "cuda"}
    own |= {"width": 832, "height": 480}
    for setup in more:
        own.update(setup)
    return own


_SMALL, _LARGE = "wan2.1-1.3b", "wan2.1-14b"
_RECIPE: Setup = {"chunk": 3, "steps": 4}
_WIDE: Setup = {**_RECIPE, "window": 21}
_NARROW: Setup = {**_RECIPE, "window": 12}
_TINY = _of("stream", _SMALL, _WIDE, {"decoder": "tiny"})
_FULL = _of("stream", _SMALL, _WIDE, {"decoder": "full"})
_CONTROL_MS, _UNEVEN = 600.0, 1.5


def _live(chunk: int) -> tuple[Target, Target]:
    name = f"1.3B paced, full window, tiny decoder, chunks of {chunk}"
    setup = _of("live", _SMALL, _WIDE, {"decoder": "tiny", "chunk": chunk})
    return (
        Target(name=f"{name}: control to pixel, p95", setup=setup, figure=median_of(CONTROL),
               bound=_CONTROL_MS, unit="ms"),
        Target(name=f"{name}: frame interval, p99, over nominal", setup=setup,
               figure=median_of(INTERVAL), bound=_UNEVEN, unit="x"),
    )  # fmt: skip


H200: Sequence[Target] = (
    Target(name="1.3B, window 21, tiny decoder: a chunk", setup=_TINY, figure=chunk_ms,
           bound=340, unit="ms"),
    Target(name="the same with fp8 products: a chunk", setup=_TINY | {"dtype": "fp8"},
           figure=chunk_ms, bound=290, unit="ms"),
    Target(name="the same with fp8 attention as well: a chunk",
           setup=_TINY | {"dtype": "fp8", "attention": "fp8"}, figure=chunk_ms, bound=240,
           unit="ms", missing="the engine has no fp8 attention"),
    Target(name="1.3B, window 21, full VAE: a chunk", setup=_FULL, figure=chunk_ms, bound=430,
           unit="ms"),
    Target(name="1.3B, window 12, full VAE: frames a second",
           setup=_of("stream", _SMALL, _NARROW, {"decoder": "full"}), figure=fps, bound=40, unit="",
           at_least=True),
    Target(name="1.3B: first frame, warm, of a first chunk of 3",
           setup=_of("stream", _SMALL, _RECIPE, {"first_chunk": 3}),
           figure=first_frame_ms, bound=200, unit="ms"),
    Target(name="1.3B: first frame, warm, of a first chunk of 1",
           setup=_of("stream", _SMALL, _RECIPE, {"first_chunk": 1}),
           figure=first_frame_ms, bound=120, unit="ms"),
    *_live(3),
    *_live(1),
    Target(name="14B, window 12: frames a second", setup=_of("stream", _LARGE, _NARROW),
           figure=fps, bound=7.5, unit="", at_least=True),
    Target(name="14B, window 12, fp8: frames a second",
           setup=_of("stream", _LARGE, _NARROW, dtype="fp8"), figure=fps, bound=10, unit="",
           at_least=True),
    Target(name="VAE, 81 frames, over diffusers channels-last",
           setup=_of("vae", _SMALL, {"frames": 81, "decoder": "full"}),
           figure=ratio_over("diffusers, channels-last"), bound=2, unit="x", at_least=True),
    Target(name="1.3B, whole clip of 81 frames in 50 steps, over diffusers compiled, cuDNN",
           setup=_of("clip", _SMALL, {"frames": 81, "steps": 50, "decoder": "full"}),
           figure=ratio_over("diffusers, fast"), bound=1.1, unit="x", at_least=True),
    Target(name="1.3B, files in the system's cache: cold process to first frame",
           setup={"what": "startup", "model": _SMALL, "device": "cuda", "kernels": "cached"},
           figure=median_of(f"{OURS}: {TOTAL}"), bound=GOAL_S, unit="s"),
)  # fmt: skip
SERVED: Mapping[str, tuple[str, float]] = {
    "control_p95_ms": ("one stream served: control to pixel, p95, ms", _CONTROL_MS),
    "interval_p99_ms": ("one stream served: frame interval, p99, over its median", _UNEVEN),
}
"""Of a row of the server's benchmark: the name and the most of a figure."""


def report(results: Iterable[Result], served: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """A line for each target."""
    sections = [section for result in results for section in result.sections.values()]
    lines = []
    for target in H200:
        value = target.value(sections)
        side = "at least" if target.at_least else "at most"
        bound = f"({side} {target.bound:g}{_spaced(target.unit)})"
        name, unit = target.name, target.unit
        lines.append(_line(name, value, bound, target.ratio, unit, target.missing))
    rows = [row for row in served if row.get("streams") == 1]
    for key, (name, most) in SERVED.items():
        found = [_served(row, key) for row in rows]
        value = min((x for x in found if x is not None), default=None)
        lines.append(_line(name, value, f"(at most {most:g})", partial(truediv, most)))
    return lines


def _served(row: Mapping[str, Any], key: str) -> float | None:
    scale = row.get("interval_p50_ms") if key == "interval_p99_ms" else 1.0
    value = row.get(key)
    if not all(isinstance(x, (int, float)) and x > 0 for x in (value, scale)):
        return None
    return float(value) / float(scale)  # type: ignore[arg-type]


def _line(
    name: str, value: float | None, bound: str, ratio: Callable[[float], float], unit: str = "",
    missing: str = "",
) -> str:  # fmt: skip
    if value is None:
        why = f"not built: {missing}" if missing else "not measured"
        return f"{'-':>5}  {name}: {why} {bound}"
    return f"{ratio(value):5.2f}  {name}: {value:.4g}{_spaced(unit)} {bound}"


def _spaced(unit: str) -> str:
    return f" {unit}" if unit in ("ms", "s") else unit


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines."""
    parser = argparse.ArgumentParser(prog="targets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    results, served = [], []
    for path in sorted(parser.parse_args(argv).folder.glob("*.json")):
        try:
            results.append(read(path))
        except InputError:
            served += _rows(path)
    print("ratio  target on one H200; 1 or more is met")
    print("\n".join(report(results, served)))
    return 0


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Of the server's benchmark, if it wrote the file."""
    try:
        rows = read_json(path, limit=_MOST_BYTES).get("rows")
    except CheckpointError:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


if __name__ == "__main__":
    raise SystemExit(main())
