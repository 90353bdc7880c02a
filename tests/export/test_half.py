"""Graphs in half precision compute what torch does in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.manifest import Graph
from livereel.engine.runners.onnx import OnnxGraph
from livereel.export import lint
from livereel.export.onnx import OnnxWriter
from livereel.export.package import plan_export

TOLERANCES = {"float16": 2e-2, "bfloat16": 8e-2}
"""Some of the dtype's steps at 1 to 4, which roundings in another order come to."""
PARTS = {
    "float16": ("text_encoder", "transformer", "vae"),
    "bfloat16": ("text_encoder", "transformer"),  # the VAE's caches are larger: so are their steps
}

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def widened(tensor: Any) -> Any:
    """A bfloat16 tensor in float32."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def emulate(source: Path, target: Path) -> None:
    """Write a bfloat16 graph as one whose every op computes in float32 and rounds what it gives to
    bfloat16, as chips do that multiply it: onnxruntime's CPU has few ops of its own for it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(source), strict_mode=True)
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    narrow = {x.name for x in values if x.type.tensor_type.elem_type == BF16}
    weights = [x.name for x in graph.initializer if x.data_type == BF16]
    for i, x in enumerate(graph.initializer):
        if x.data_type == BF16:
            graph.initializer[i].CopyFrom(widened(x))
    wide = {name: f"{name}/wide" for name in narrow} | {name: name for name in weights}
    given = [x.name for x in graph.input if x.name in narrow]
    nodes = [helper.make_node("Cast", [name], [wide[name]], to=FP32) for name in given]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BF16:
                attribute.i = FP32
            if attribute.t.data_type == BF16:
                attribute.t.CopyFrom(widened(attribute.t))
        made = [name for name in node.output if name in narrow]
        node.input[:] = [wide.get(name, name) for name in node.input]
        node.output[:] = [f"{name}/exact" if name in made else name for name in node.output]
        nodes.append(node)
        for name in made:
            nodes.append(helper.make_node("Cast", [f"{name}/exact"], [name], to=BF16))
            nodes.append(helper.make_node("Cast", [name], [wide[name]], to=FP32))
    whole = helper.make_graph(nodes, "emulated", graph.input, graph.output, graph.initializer)
    opsets, version = list(model.opset_import), model.ir_version
    onnx.save(helper.make_model(whole, opset_imports=opsets, ir_version=version), target)


def load(folder: Path, graph: Graph, dtype: str) -> OnnxGraph:
    file = folder / graph.file
    if dtype == "bfloat16":
        source, file = file, file.with_suffix(".emulated.onnx")
        emulate(source, file)
    return OnnxGraph(file, graph, torch.device("cpu"), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_graph_is_torch_s(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    plan = plan_export(open_folder(tiny_folder), dtype=dtype)
    writer = OnnxWriter(tmp_path)
    found: dict[tuple[str, str], float] = {}
    for part, steps in plan.parts():
        if part not in PARTS[dtype]:
            continue
        graphs = {name: writer.write(name, step) for name, step in steps.items()}
        faults = [fault for graph in graphs.values() for fault in lint.structure(tmp_path, graph)]
        assert not faults
        loaded = {name: load(tmp_path, graph, dtype) for name, graph in graphs.items()}
        found |= lint.errors(plan, part, steps, loaded)
    assert {name for name, _ in found} >= {"text_encode", "text_kv", "denoise_first", "denoise"}
    assert max(found.values()) <= TOLERANCES[dtype], found
    assert max(found.values()) > 0  # in half precision, it was
