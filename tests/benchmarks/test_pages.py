"""The page and the tables: everything is there, escaped, and drawn to scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from livereel.benchmarks.compare import Result
from livereel.benchmarks.harness import Environment, Spread, Timing
from livereel.benchmarks.pages import gather, html, markdown, rows_of
from livereel.benchmarks.report import Goal, Section, Spent, to_json
from livereel.engine.errors import InputError

HERE = Environment(
    cpu="a <CPU>", cores=2, threads=2, memory_gb=8.0, load_average=0.5, system="Linux",
    python="3.11.7", versions={"torch": "2.13.0"}, commit="abc",
)  # fmt: skip
SECTION = Section(
    title="decode: 10 & more frames",
    timings=[
        Timing(name=name, settings="a|b", frames=10, warmup_s=(9.0,), seconds=(seconds, seconds))
        for name, seconds in (("livereel", 1.0), ("<peer>", 4.0))
    ],
    ratios={"livereel over <peer>": Spread(4.0, 3.9, 4.1)},
    figures={
        "livereel: first frame, s": Spread(2.0, 1.5, 2.5),
        "<peer>: first frame, s": Spread(4.0, 4.0, 4.0),
        "livereel: frames a second": Spread(60.0, 59.0, 61.0),
        "peak memory, GB": Spread(0.5, 0.5, 0.5),
    },
    notes=["a <note>"],
    goals=[Goal(what="first frame:", value=2.0, bound=1.0, at_least=False, unit=" s")],
    work=[],
)
RESULTS = {"cpu": Result(environment=HERE, sections={"decode": SECTION})}


def test_rows_are_grouped_by_unit() -> None:
    names = {unit: [row.name for row in rows] for unit, rows in rows_of(SECTION).items()}
    assert names == {
        "frames a second": ["livereel", "<peer>", "livereel"],
        "times as fast": ["livereel over <peer>"],
        "s": ["livereel: first frame", "<peer>: first frame"],
        "GB": ["peak memory"],
    }
    first, *_ = rows_of(SECTION)["frames a second"]
    assert first.rounds == (10.0, 10.0)


def test_the_page_holds_all_and_is_well_formed() -> None:
    page = html(RESULTS, ["other.json"])
    for said in (
        "a &lt;CPU&gt;", "10 &amp; more frames", "&lt;peer&gt;", "a &lt;note&gt;", "other.json",
        '<li class="missed">MISSED  first frame: 2 s (goal: at most 1 s)</li>', "4.00 [3.90, 4.10]",
    ):  # fmt: skip
        assert said in page
    assert "<peer>" not in page and "src=" not in page and "href=" not in page


def test_bars_are_drawn_to_scale() -> None:
    page = html(RESULTS, [])
    drawings = page.split("<svg ")[1:]
    seconds = ElementTree.fromstring("<svg " + drawings[2].partition("</svg>")[0] + "</svg>")
    short, long = (float(rect.attrib["width"]) for rect in seconds.iter("rect"))
    assert long == 2 * short
    quartiles, _ = seconds.iter("line")
    x1, x2 = float(quartiles.attrib["x1"]), float(quartiles.attrib["x2"])
    assert x2 - x1 == pytest.approx(short / 2)


def test_the_tables_hold_all() -> None:
    lines = markdown(RESULTS, ["other.json"]).splitlines()
    assert "| livereel | a\\|b | frames a second | 10.0 | 10.0, 10.0 |" in lines
    assert "| &lt;peer&gt;: first frame |  | s | 4.00 | 4.00, 4.00 |" in lines
    assert "- a &lt;note&gt;" in lines
    assert "Left out, being no such results: other.json." in lines


def test_a_section_without_figures_is_a_title() -> None:
    empty = {"a": replace(RESULTS["cpu"], sections={"b": Section(title="nothing yet")})}
    assert "<h3>nothing yet</h3>" in html(empty, []) and "<svg" not in html(empty, [])
    assert "### nothing yet" in markdown(empty, [])


def stream(width: int, steps: int, fps: float) -> Section:
    return Section(
        title=f"stream {width}",
        timings=[
            Timing(name=who, settings="", frames=10, warmup_s=(), seconds=(slower / fps, 1.0))
            for who, slower in (("livereel", 10.0), ("loop", 40.0))
        ],
        setup={"what": "stream", "width": width, "height": width, "steps": steps, "window": 6},
        contents={"livereel": "5 passes, full VAE; not text"},
        stages={"livereel": {"dit": 0.5, "vae": 0.25}},
        work=[
            Spent(name="DiT", seconds=0.5, flops=1e12, moved=1e9, ceiling_flops=4e12,
                  ceiling_bytes=1e10)
        ],
    )  # fmt: skip


def test_streams_are_drawn_over_what_they_differ_in() -> None:
    sections = {str(i): stream(*x) for i, x in enumerate([(64, 4, 30), (128, 4, 10), (64, 2, 50)])}
    result = {"all": Result(environment=HERE, sections=sections)}
    page = html(result, [])
    assert "<h3>Frames a second over size</h3>" in page
    assert ">64x64</text>" in page and ">128x128</text>" in page
    assert "<h3>Frames a second over steps of a chunk</h3>" in page
    assert "over window" not in page  # all had the same
    for drawing in page.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + drawing.partition("</svg>")[0] + "</svg>")
    assert page.count("where a chunk&#x27;s time goes") == 0 and "DiT, 50%" in page
    assert "in livereel: 5 passes, full VAE; not text" in page
    tables = markdown(result, [])
    assert "- livereel, ms of a chunk by stage: dit 500, vae 250" in tables
    assert "- roofline, DiT: 2 TFLOP/s, 2 GB/s, 50% of what this chip allows" in tables


def test_results_are_gathered_and_others_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no result"):
        gather(tmp_path.glob("*.json"))
    (tmp_path / "b.json").write_text(to_json(HERE, {"decode": SECTION}))
    (tmp_path / "a.json").write_text("{}")
    results, others = gather(tmp_path.glob("*.json"))
    assert results == {"b": RESULTS["cpu"]} and others == ["a.json"]
    with pytest.raises(InputError, match="1001 files"):
        gather([tmp_path / "b.json"] * 1001)
