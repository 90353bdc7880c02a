"""Drawings in SVG, that stand in a page by themselves: lines, histograms, stacked bars, a roofline.

Colors are classes of the page's style, so that they suit a light page and a dark one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from .harness import digits

WIDTH = 900
COLORS = 6
_LEFT, _RIGHT, _LABEL = 70, 20, 190
_BINS = 90
_ROUND = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], ticks: Mapping[float, str], *, label: str,
    name: str,
) -> str:  # fmt: skip
    """`series` over x, whose `ticks` are named; `label` says what y is, `name` what x is."""
    height, top, bottom = 260, 30, 50
    xs = sorted(ticks)
    most = _nice(max(y for points in series.values() for _, y in points))
    low, high = xs[0], xs[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - low) / (high - low) if high > low else 0.5
        inner = 0.05 + 0.9 * share
        return (
            _LEFT + inner * (WIDTH - _LEFT - _RIGHT - _LABEL),
            height - bottom - y / most * (height - top - bottom),
        )

    marks = [_text(_LEFT, 18, label, "dim", anchor="start")]
    for i in range(5):
        y = most * i / 4
        _, row = at(low, y)
        marks.append(_rule(_LEFT, row, WIDTH - _RIGHT - _LABEL, row))
        marks.append(_text(_LEFT - 8, row + 4, f"{y:g}", "dim", anchor="end"))
    for x, said in ticks.items():
        column, _ = at(x, 0)
        marks.append(_text(column, height - bottom + 20, said, "dim"))
    marks.append(_text((_LEFT + WIDTH - _LABEL) / 2, height - 8, name, "dim"))
    ends = []
    for i, (who, points) in enumerate(series.items()):
        placed = [at(x, y) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        marks.append(f'<polyline class="s{i % COLORS}" points="{path}"/>')
        marks += [
            f'<circle class="f{i % COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in placed
        ]
        ends.append((placed[-1][1], who, i))
    row = -math.inf
    for y, who, i in sorted(ends):  # each name beside its line's end, none over another
        row = max(y + 4, row + 17)
        marks.append(_text(WIDTH - _LABEL + 2, row, who, f"t{i % COLORS}", anchor="start"))
    return _svg(f"{label} over {name}", max(height, row + 8), marks)


def stacked(rows: Mapping[str, Mapping[str, float]], *, unit: str) -> str:
    """One bar a row, in parts; a legend says which is which."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    left, bar, gap = _LABEL, 24, 14
    most = max(sum(row.values()) for row in rows.values()) or 1.0
    scale = (WIDTH - left - 110) / most
    marks, x = [], float(left)
    for i, part in enumerate(parts):
        marks.append(f'<rect class="f{i % COLORS}" x="{x:.1f}" y="4" width="12" height="12"/>')
        marks.append(_text(x + 17, 15, part, "", anchor="start"))
        x += 32 + 8 * len(part)
    y = 32
    for name, row in rows.items():
        marks.append(_text(left - 10, y + 17, name, "", anchor="end"))
        x = float(left)
        for i, part in enumerate(parts):
            width = scale * row.get(part, 0.0)
            if width > 0:
                marks.append(
                    f'<rect class="f{i % COLORS}" x="{x:.1f}" y="{y}" width="{width:.1f}" '
                    f'height="{bar}"><title>{escape(part)}: {row[part]:.4g} {unit}</title></rect>'
                )
            x += width
        marks.append(
            _text(x + 8, y + 17, f"{digits(sum(row.values()))} {unit}", "", anchor="start")
        )
        y += bar + gap
    return _svg(f"{unit} by part", y, marks)


def histograms(rows: Mapping[str, Sequence[float]], *, unit: str) -> str:
    """How often each value came, a row for each name, on one scale from 0 on; lines stand at the
    median and the 99th percentile."""
    left, tall, gap = _LABEL, 46, 26
    most = _nice(max(max(values) for values in rows.values()))
    across = WIDTH - left - 150
    marks, y = [], 8.0
    for i, (name, values) in enumerate(rows.items()):
        bins = [0] * _BINS
        for value in values:
            bins[min(_BINS - 1, int(value / most * _BINS))] += 1
        base = y + tall
        marks.append(_text(left - 10, base - 8, name, "", anchor="end"))
        for j, count in enumerate(bins):
            if count:
                height = tall * count / max(bins)
                marks.append(
                    f'<rect class="f{i % COLORS}" x="{left + j * across / _BINS:.1f}" '
                    f'y="{base - height:.1f}" width="{across / _BINS - 1:.1f}" '
                    f'height="{height:.1f}"><title>{count}</title></rect>'
                )
        marks.append(_rule(left, base, left + across, base))
        middle, late = statistics.median(values), percentile(values, 99)
        for value in (middle, late):
            x = left + value / most * across
            marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4:.1f}" y2="{base:.1f}"/>')
        said = f"{digits(middle)}, {digits(late)} {unit}"
        marks.append(_text(left + across + 8, base - 8, said, "", anchor="start"))
        y = base + gap
    for i in range(5):
        value = most * i / 4
        said = f"{value:g} {unit}" if i == 4 else f"{value:g}"
        marks.append(_text(left + value / most * across, y - 6, said, "dim"))
    return _svg(f"histograms in {unit}", y + 6, marks)


def roofline(points: Mapping[str, tuple[float, float]], *, flops: float, moved: float) -> str:
    """Points (FLOPs a byte, FLOPs a second) under the roof that a chip's measured products and
    copies make."""
    height, top, bottom, side = 300, 20, 50, 100
    ridge = flops / moved
    xs = [x for x, _ in points.values()] + [ridge]
    ys = [y for _, y in points.values()] + [flops]
    left, right = (
        10 ** math.floor(math.log10(min(xs) / 2)),
        10 ** math.ceil(math.log10(2 * max(xs))),
    )
    floor, roof = 10 ** math.floor(math.log10(min(ys) / 2)), 2 * max(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / left) / math.log(right / left)
        up = math.log(max(y, floor) / floor) / math.log(roof / floor)
        return (
            side + across * (WIDTH - side - _RIGHT),
            height - bottom - up * (height - top - bottom),
        )

    marks = []
    y = floor
    while y <= roof:
        _, row = at(left, y)
        marks.append(_rule(side, row, WIDTH - _RIGHT, row))
        marks.append(_text(side - 8, row + 4, _rate(y), "dim", anchor="end"))
        y *= 10
    x = left
    while x <= right:
        marks.append(_text(at(x, floor)[0], height - bottom + 20, f"{x:g}", "dim"))
        x *= 10
    start = max(left, floor / moved)
    path = [at(start, start * moved), at(ridge, flops), at(right, flops)]
    marks.append(
        '<polyline class="roof" points="' + " ".join(f"{a:.1f},{b:.1f}" for a, b in path) + '"/>'
    )
    said = f"{_rate(flops)} and {moved / 1e9:.3g} GB/s, measured here"
    marks.append(_text(WIDTH - _RIGHT - 4, at(right, flops)[1] - 8, said, "dim", anchor="end"))
    for i, (name, (x, y)) in enumerate(points.items()):
        column, row = at(x, y)
        share = y / min(flops, moved * x)
        legend = height - bottom - 20 * (len(points) - i) + 8
        marks.append(f'<circle class="f{i % COLORS}" cx="{column:.1f}" cy="{row:.1f}" r="6"/>')
        marks.append(
            _text(WIDTH - 180, legend, f"{name}, {share:.0%}", f"t{i % COLORS}", anchor="start")
        )
    marks.append(_text((side + WIDTH) / 2, height - 8, "FLOPs a byte", "dim"))
    return _svg("roofline", height, marks)


def percentile(values: Sequence[float], percent: int) -> float:
    """With values between those there are, by straight lines."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _svg(said: str, height: float, marks: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(said)}" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}">\n' + "\n".join(marks) + "\n</svg>"
    )


def _text(x: float, y: float, said: str, kind: str, *, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(said)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _nice(value: float) -> float:
    """The least number not below it whose quarters have few digits."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in _ROUND if m * power >= value * 0.999999)


def _rate(flops: float) -> str:
    name, size = ("TFLOP/s", 1e12) if flops >= 1e12 else ("GFLOP/s", 1e9)
    return f"{flops / size:.3g} {name}"
