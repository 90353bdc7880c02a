"""Results as one HTML page and as Markdown: a row for each figure, beside its peers.

The page stands alone: bars are SVG in it, with a line from quartile to quartile and a dot for each
round, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from livereel.engine.errors import InputError

from . import plots
from .compare import RATE, read
from .harness import digits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .compare import Result
    from .harness import Spread
    from .report import Section

_MOST_FILES = 1000
_ROW, _LABEL, _BAR, _VALUE = 26, 340, 360, 200
"""Pixels: a row's height, and the widths of its name, of the longest bar, and of its figures."""
_LEGEND = (
    "Figures are medians with their quartiles, of rounds in which the contenders took turns or of "
    "fresh processes."
)
_UNITS = {
    "s": "seconds, fewer are better",
    "ms": "milliseconds, fewer are better",
    "GB": "GB, fewer are better",
}
_AXES = {"width": "size", "steps": "steps of a chunk", "window": "window, latent frames"}
"""By what several sections of one result may differ."""
_STYLE = """\
:root { color-scheme: light dark; --bar: #3d7ab8; --dim: #767676; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--dim); }
svg { max-width: 100%; height: auto; display: block; }
svg text { fill: currentColor; font-size: 13px; }
.dim { color: var(--dim); } .missed { font-weight: bold; }
rect { fill: var(--bar); } line, circle { stroke: currentColor; fill: none; }
polyline { fill: none; stroke-width: 2; } .roof { stroke: currentColor; }
svg .dim { fill: var(--dim); } .rule { stroke: var(--dim); stroke-opacity: 0.3; }
.in { margin: 0; } h4 { margin-bottom: 0.4rem; }
"""
_PALETTE = ("#3d7ab8", "#d9822b", "#3a9a5c", "#b04a8f", "#8a7a2e", "#5f6b7a")
_STYLE += "".join(
    f".f{i} {{ fill: {color}; stroke: none; }} .s{i} {{ stroke: {color}; }} "
    f"svg .t{i} {{ fill: {color}; }}\n"
    for i, color in enumerate(_PALETTE)
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: its name, how it was got, median and quartiles, and the rounds if known."""

    name: str
    spread: Spread
    settings: str = ""
    rounds: tuple[float, ...] = ()


def gather(paths: Iterable[Path]) -> tuple[dict[str, Result], list[str]]:
    """The results in JSON files, by the files' names, and the names of files that hold none.

    Raises `InputError` when there are no results, or far too many files.
    """
    files = sorted(paths)
    if len(files) > _MOST_FILES:
        raise InputError(f"there are {len(files)} files; at most {_MOST_FILES} fit into a report")
    results: dict[str, Result] = {}
    others: list[str] = []
    for path in files:
        try:
            results[path.stem] = read(path)
        except InputError:
            others.append(path.name)
    if not results:
        raise InputError("there is no result of a benchmark's --json among the .json files there")
    return results, others


def rows_of(section: Section) -> dict[str, list[Row]]:
    """A section's rows by their unit."""
    rows: dict[str, list[Row]] = {}
    for timing in section.timings:
        rounds = tuple(timing.frames / seconds for seconds in timing.seconds)
        row = Row(name=timing.name, spread=timing.fps, settings=timing.settings, rounds=rounds)
        rows.setdefault(RATE, []).append(row)
    for name, spread in section.ratios.items():
        rows.setdefault("times as fast", []).append(Row(name=name, spread=spread))
    for name, spread in section.figures.items():
        what, _, unit = name.rpartition(", ")
        if not what:  # "livereel: frames a second"
            what, _, unit = name.rpartition(": ")
        rows.setdefault(unit, []).append(Row(name=what, spread=spread))
    return rows


def html(results: Mapping[str, Result], others: Sequence[str]) -> str:
    """The page."""
    body = ["<h1>Benchmarks</h1>", f"<p>{escape(_LEGEND)}</p>"]
    for name, result in results.items():
        where = "<br>".join(escape(line) for line in str(result.environment).splitlines())
        body += [f"<h2>{escape(name)}</h2>", f'<p class="dim">{where}</p>', *_sweeps(result)]
        for section in result.sections.values():
            body.append(f"<h3>{escape(section.title)}</h3>")
            for unit, rows in rows_of(section).items():
                body += [f"<h4>{escape(_UNITS.get(unit, unit))}</h4>", _bars(unit, rows)]
            body += _drawings(section)
            lines = [("dim", f"in {who}: {what}") for who, what in section.contents.items()]
            lines += [("dim", str(spent)) for spent in section.work]
            lines += [("dim", note) for note in section.notes]
            lines += [("" if goal.met else "missed", str(goal)) for goal in section.goals]
            items = "".join(f'<li class="{kind}">{escape(line)}</li>' for kind, line in lines)
            body.append(f"<ul>{items}</ul>" if items else "")
    if others:
        body.append(f'<p class="dim">{escape(_left_out(others))}</p>')
    content = "\n".join(line for line in body if line)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Benchmarks</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def markdown(results: Mapping[str, Result], others: Sequence[str]) -> str:
    """The same as tables."""
    parts = ["# Benchmarks", _LEGEND]
    for name, result in results.items():
        parts += [f"## {_cell(name)}", "  \n".join(str(result.environment).splitlines())]
        for section in result.sections.values():
            table = [
                "| | settings | unit | median | quartiles |",
                "| --- | --- | --- | --: | --: |",
            ]
            for unit, rows in rows_of(section).items():
                for row in rows:
                    median, _, quartiles = str(row.spread).partition(" ")
                    cells = (row.name, row.settings, unit, median, quartiles.strip("[]"))
                    table.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
            parts += [f"### {_cell(section.title)}", "\n".join(table)]
            lines = [f"in {who}: {what}" for who, what in section.contents.items()]
            lines += [_spent_by(who, stages) for who, stages in section.stages.items()]
            lines += [*map(str, section.work), *section.notes, *map(str, section.goals)]
            if lines:
                parts.append("\n".join(f"- {_cell(line)}" for line in lines))
    if others:
        parts.append(_left_out(others))
    return "\n\n".join(parts) + "\n"


def _spent_by(who: str, stages: Mapping[str, float]) -> str:
    each = ", ".join(f"{stage} {digits(1000 * seconds)}" for stage, seconds in stages.items())
    return f"{who}, ms of a chunk by stage: {each}"


def _sweeps(result: Result) -> list[str]:
    """Frames a second over each axis by which the streams measured differ."""
    streams = [s for s in result.sections.values() if s.setup.get("what") == "stream"]
    parts = []
    for axis, name in _AXES.items():
        fixed = streams[0].setup if streams else {}
        free = {axis, "height"} if axis == "width" else {axis}
        along = [
            s
            for s in streams
            if all(s.setup.get(key) == value for key, value in fixed.items() if key not in free)
        ]
        ticks = {_place(s, axis): _tick(s, axis) for s in along}
        if len(ticks) < 2:
            continue
        series: dict[str, list[tuple[float, float]]] = {}
        for section in along:
            for timing in section.timings:
                point = _place(section, axis), timing.fps.median
                series.setdefault(timing.name, []).append(point)
        parts.append(f"<h3>Frames a second over {escape(name)}</h3>")
        parts.append(plots.lines(series, ticks, label=RATE, name=name))
    return parts


def _place(section: Section, axis: str) -> float:
    """Where on an axis a section stands; a size by its pixels."""
    value = float(section.setup[axis])
    return value * float(section.setup["height"]) if axis == "width" else value


def _tick(section: Section, axis: str) -> str:
    value = str(section.setup[axis])
    return f"{value}x{section.setup['height']}" if axis == "width" else value


def _drawings(section: Section) -> list[str]:
    """Where a chunk's time goes, how evenly chunks come, and how near the chip's limits."""
    parts = []
    if section.stages:
        rows = {
            who: {stage: 1000 * seconds for stage, seconds in stages.items()}
            for who, stages in section.stages.items()
        }
        parts += ["<h4>where a chunk's time goes</h4>", plots.stacked(rows, unit="ms")]
        chunks = {
            timing.name: [1000 * seconds for seconds in timing.seconds]
            for timing in section.timings
            if timing.name in section.stages
        }
        title = "how long each chunk took: median, 99th percentile"
        parts += [f"<h4>{title}</h4>", plots.histograms(chunks, unit="ms")]
    if section.work:
        points = {s.name: (s.flops / s.moved, s.flops / s.seconds) for s in section.work}
        first = section.work[0]
        drawn = plots.roofline(points, flops=first.ceiling_flops, moved=first.ceiling_bytes)
        parts += ["<h4>how near the chip's limits: share of what they allow</h4>", drawn]
    return parts


def _left_out(others: Sequence[str]) -> str:
    return f"Left out, being no such results: {', '.join(others)}."


def _cell(text: str) -> str:
    """One line that Markdown shows as it is."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _bars(unit: str, rows: Sequence[Row]) -> str:
    longest = max(value for row in rows for value in (row.spread.high, *row.rounds))
    marks = []

    def at(value: float) -> str:
        return f"{_LABEL + _BAR * value / longest:.1f}"

    top = 0
    for row in rows:
        middle = top + _ROW // 2
        width = f"{_BAR * row.spread.median / longest:.1f}"
        marks += [
            f'<text x="0" y="{middle + 5}">{escape(row.name)}</text>',
            f'<rect x="{_LABEL}" y="{top + 5}" width="{width}" height="{_ROW - 10}"/>',
            f'<line x1="{at(row.spread.low)}" x2="{at(row.spread.high)}" '
            f'y1="{middle}" y2="{middle}"/>',
            *(f'<circle cx="{at(value)}" cy="{middle}" r="2.5"/>' for value in row.rounds),
            f'<text x="{_LABEL + _BAR + 14}" y="{middle + 5}">{escape(str(row.spread))}</text>',
        ]
        top += _ROW
        if row.settings:
            marks.append(f'<text x="0" y="{top + 8}" class="dim">{escape(row.settings)}</text>')
            top += _ROW - 6
    width = str(_LABEL + _BAR + _VALUE)
    return (
        f'<svg role="img" aria-label="{escape(unit)}" width="{width}" height="{top}" '
        f'viewBox="0 0 {width} {top}">\n' + "\n".join(marks) + "\n</svg>"
    )
