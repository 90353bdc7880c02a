"""Graphs in half precision compute what torch does in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from livereel.engine.checkpoint.folder import open_folder
from livereel.export import lint
from livereel.export.onnx import OnnxWriter
from livereel.export.package import plan_export

TOLERANCE = 2e-2  # some of float16's steps at 1 to 4, which roundings in another order come to


@pytest.mark.slow
def test_every_graph_in_float16(tiny_folder: Path, tmp_path: Path) -> None:
    plan = plan_export(open_folder(tiny_folder), dtype="float16")
    writer = OnnxWriter(tmp_path)
    found: dict[tuple[str, str], float] = {}
    for part in (plan.text(), plan.dit(), plan.vae()):
        steps = dict(part)
        graphs = {name: writer.write(name, step) for name, step in steps.items()}
        faults = [fault for graph in graphs.values() for fault in lint.structure(tmp_path, graph)]
        assert not faults
        loaded = {name: writer.load(graph) for name, graph in graphs.items()}
        found |= lint.errors(plan, next(iter(steps.values())).weights, steps, loaded)
    assert {name for name, _ in found} >= {"text_encode", "denoise", "vae_decode", "vae_encode"}
    assert max(found.values()) <= TOLERANCE, found
    assert max(found.values()) > 0  # in half precision, it was
