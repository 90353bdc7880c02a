"""Drawings are well-formed, to scale, and hold what they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from livereel.benchmarks import plots


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def texts(drawing: str) -> list[str]:
    return [text.text or "" for text in parsed(drawing).iter("text")]


def test_lines_name_their_ends_and_ticks() -> None:
    series = {"<ours>": [(1.0, 10.0), (3.0, 40.0)], "theirs": [(1.0, 5.0), (3.0, 39.0)]}
    drawing = plots.lines(series, {1.0: "one", 3.0: "three"}, label="fps", name="steps")
    said = texts(drawing)
    assert {"<ours>", "theirs", "one", "three", "fps", "steps", "40"} <= set(said)
    ours, theirs = parsed(drawing).iter("polyline")
    (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in ours.attrib["points"].split())
    assert x1 < x2 and y1 > y2 and theirs.attrib["class"] == "s1"
    names = [text for text in parsed(drawing).iter("text") if text.text in ("<ours>", "theirs")]
    rows = [float(text.attrib["y"]) for text in names]
    assert abs(rows[0] - rows[1]) >= 17  # though the lines end side by side


def test_bars_are_stacked_to_scale() -> None:
    rows = {"ours": {"dit": 3.0, "vae": 1.0}, "theirs": {"dit": 6.0, "vae": 0.0}}
    drawing = plots.stacked(rows, unit="ms")
    bars = [rect for rect in parsed(drawing).iter("rect") if rect.find("title") is not None]
    dit, vae, other = (float(bar.attrib["width"]) for bar in bars)
    assert dit == pytest.approx(3 * vae, rel=0.01) and other == pytest.approx(2 * dit, rel=0.01)
    assert float(bars[1].attrib["x"]) == pytest.approx(float(bars[0].attrib["x"]) + dit, abs=0.2)
    assert {"4.00 ms", "6.00 ms", "dit", "vae"} <= set(texts(drawing))


def test_histograms_count_and_mark_median_and_late() -> None:
    values = [10.0] * 98 + [20.0, 30.0]
    drawing = plots.histograms({"ours": values, "once": [40.0]}, unit="ms")
    counts = [rect.find("title") for rect in parsed(drawing).iter("rect")]
    assert [title.text for title in counts if title is not None] == ["98", "1", "1", "1"]
    assert "10.0, 20.1 ms" in texts(drawing) and "40.0, 40.0 ms" in texts(drawing)


def test_a_roofline_says_each_points_share() -> None:
    points = {"memory bound": (1.0, 5e9), "compute bound": (1000.0, 0.9e12)}
    drawing = plots.roofline(points, flops=1e12, moved=1e10)
    said = texts(drawing)
    assert "memory bound, 50%" in said and "compute bound, 90%" in said
    assert "1 TFLOP/s and 10 GB/s, measured here" in said


@pytest.mark.parametrize(("value", "nice"), [(0.7, 0.8), (1.0, 1.0), (31, 40), (105, 120)])
def test_axes_end_on_round_numbers(value: float, nice: float) -> None:
    assert plots._nice(value) == pytest.approx(nice)
