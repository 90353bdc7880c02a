"""The check finds what a graph must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.manifest import Graph, TensorSpec
from livereel.engine.package import read_manifest
from livereel.export import lint
from livereel.export.onnx import OnnxWriter
from livereel.export.package import plan_export
from livereel.export.steps import Step

SPECS = tuple(TensorSpec(name=name, dtype="float32", shape=(2, 3)) for name in ("x", "y"))
GRAPH = Graph(file="g.onnx", inputs=SPECS[:1], outputs=SPECS[1:])


def write(folder: Path, nodes: list[Any], *, opset: int = 20, **given: Any) -> None:
    x, y = (helper.make_tensor_value_info(name, 1, [2, 3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", given.pop("inputs", [x]), [y], **given)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "g.onnx")


def test_a_plain_graph_passes(tmp_path: Path) -> None:
    write(tmp_path, [helper.make_node("Relu", ["x"], ["y"])])
    assert lint.structure(tmp_path, GRAPH) == []


def _if(folder: Path) -> None:
    y = helper.make_tensor_value_info("z", 1, [2, 3])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [y])
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    write(folder, [node, helper.make_node("Relu", ["x"], ["w"])], initializer=[yes])


def _old(folder: Path) -> None:
    write(folder, [helper.make_node("Relu", ["x"], ["y"])], opset=18)


def _double(folder: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["d"], to=onnx.TensorProto.DOUBLE)
    back = helper.make_node("Cast", ["d"], ["y"], to=onnx.TensorProto.FLOAT)
    info = [helper.make_tensor_value_info("d", onnx.TensorProto.DOUBLE, [2, 3])]
    write(folder, [cast, back], value_info=info)


def _deaf(folder: Path) -> None:
    more = [helper.make_tensor_value_info(name, 1, [2, 3]) for name in ("x", "unused")]
    write(folder, [helper.make_node("Relu", ["x"], ["y"])], inputs=more)


def _unknown(folder: Path) -> None:
    write(folder, [helper.make_node("Nope", ["x"], ["y"])])


def _heavy(folder: Path) -> None:
    rows = numpy_helper.from_array(np.zeros((1 << 17, 3), np.float32), "rows")
    picked = numpy_helper.from_array(np.array([0, 1]), "picked")
    nodes = [
        helper.make_node("Gather", ["rows", "picked"], ["z"]),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    write(folder, nodes, initializer=[rows, picked])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_if, "has the op If"),
        (_old, "is of opset 18"),
        (_double, "has the double tensor d"),
        (_deaf, "never reads its input unused"),
        (_unknown, "is refused by ONNX's checker: No Op registered for Nope"),
        (_heavy, "bytes of weights that belong in the file beside it"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(tmp_path)
    assert any(told in found for found in lint.structure(tmp_path, GRAPH))


class _Keeps(nn.Module):
    """Writes a chunk into the past that it is given."""

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        past[0] = x
        return past.sum(0)


def test_a_step_that_keeps_state_in_place_is_not_exported(tmp_path: Path) -> None:
    inputs = {"x": torch.zeros(3), "past": torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match="keeps state"):
        OnnxWriter(tmp_path).write("step", Step(_Keeps(), inputs, ("y",), "part"))


def test_other_shapes_than_the_manifests_are_told(tmp_path: Path) -> None:
    write(tmp_path, [helper.make_node("Relu", ["x"], ["y"])])
    other = replace(GRAPH, outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),))
    (found,) = lint.structure(tmp_path, other)
    assert "not those of the manifest" in found


def test_a_wrong_result_shows_in_the_table(tiny_folder: Path) -> None:
    plan = plan_export(open_folder(tiny_folder))
    steps = dict(plan.text())
    ((name, step),) = steps.items()

    def off(inputs: Any) -> Any:
        return {"text": step.module(*inputs.values()) + 0.5}

    found = lint.errors(plan, "text_encoder", steps, {name: off})
    assert found == {("text_encode", "text"): pytest.approx(0.5)}


def test_nothing_in_a_package_tells_of_the_machine_that_wrote_it(exported: Path) -> None:
    for file in exported.glob("*.onnx"):
        content = file.read_bytes()
        assert b"/home" not in content and b"site-packages" not in content and b".py" not in content


def test_graphs_share_their_weights(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert {name for name in manifest.files if name.endswith(".weights")} == {
        "text_encoder.weights", "transformer.weights", "vae.weights",
    }  # fmt: skip
    stored = sum(p.stat().st_size for p in exported.glob("*.weights"))
    described = json.loads((exported / "manifest.json").read_text())["files"]
    assert stored == sum(described[name]["bytes"] for name in described if "weights" in name)


def test_nodes_are_named_after_modules(exported: Path) -> None:
    model = onnx.load(exported / "denoise.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "model/blocks/1/attn1/to_q/MatMul" in names
    weights = {x.name for x in model.graph.initializer}
    assert "model.blocks.1.attn1.to_q.weight" in weights
