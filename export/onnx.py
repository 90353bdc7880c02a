"""Step modules to ONNX graphs: opset 20, readable names, weights shared between graphs."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from livereel.engine.errors import ResourceError
from livereel.engine.manifest import Graph, TensorSpec
from livereel.engine.runners.onnx import OnnxGraph

from .steps import check_stateless

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .steps import Step

OPSET = 20
"""At 23 attention becomes an op of its own, which TensorRT-RTX refuses in places."""

_PAGE = 4096  # where tensors begin in a weights file, so that it can be mapped
_SMALL = 1024  # bytes of a constant that stays in the graph's own file
_PREFIX = "step."  # the first chunk's module is a wrapper around the others'
_TABLES: dict[int, Any] = {}  # torch's, by opset


class Product(nn.Module):
    """A linear layer whose weight `[in, out]` is laid out as ONNX's MatMul wants it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def use_products(module: nn.Module) -> None:
    """Put `Product` in place of every `nn.Linear` in `module`; weights are not copied."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Product(child))
        else:
            use_products(child)


@dataclass
class SharedWeights:
    """A component's weights in one file, beside the graphs that read from it."""

    path: Path
    _places: dict[str, tuple[int, int, Tensor]] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> tuple[int, int]:
        """Where `tensor` lies in the file, in bytes from the start, and how many: it is written
        unless one of this name was."""
        known = self._places.get(name)
        if known is not None:
            offset, length, other = known
            assert tensor is other or torch.equal(tensor, other), f"two tensors are named {name}"
            return offset, length
        with self.path.open("ab") as file:
            offset = -(-file.tell() // _PAGE) * _PAGE
            file.truncate(offset)
            raw = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            length = file.write(raw.data)
        self._places[name] = offset, length, tensor
        return offset, length


class OnnxWriter:
    """Writes graphs and their weights into a folder; see `livereel.export.package.Writer`."""

    versions: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime")
    chips: tuple[str, ...] = ("any",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: dict[str, SharedWeights] = {}

    def write(self, name: str, step: Step) -> Graph:
        """Write `name`.onnx, and the weights that no graph before it has written.

        Raises `ResourceError` where what `livereel[export]` installs is missing.
        """
        ir = import_onnx_ir()
        weights = self._weights.setdefault(
            step.weights, SharedWeights(self._folder / f"{step.weights}.weights")
        )
        use_products(step.module)
        model = _trace(step).model
        parameters = {
            key.removeprefix(_PREFIX): tensor
            for key, tensor in (*step.module.named_parameters(), *step.module.named_buffers())
        }
        for value in list(model.graph.initializers.values()):
            key = value.name.removeprefix(_PREFIX)
            tensor = parameters.get(key)
            if tensor is None:
                if value.const_value.nbytes <= _SMALL:
                    continue
                key = f"{name}.{value.name}"
                tensor = torch.frombuffer(bytearray(value.const_value.tobytes()), dtype=torch.uint8)
            value.name = key
            offset, length = weights.add(key, tensor)
            value.const_value = ir.ExternalTensor(
                weights.path.name, offset, length, value.const_value.dtype,
                shape=value.const_value.shape, name=key, base_dir=self._folder,
            )  # fmt: skip
        _tidy(model)
        ir.save(model, self._folder / f"{name}.onnx")
        return Graph(
            file=f"{name}.onnx",
            inputs=tuple(_spec(value) for value in model.graph.inputs),
            outputs=tuple(_spec(value) for value in model.graph.outputs),
            state=step.state,
        )

    def end(self, part: str) -> None:
        """Let go of a component's weights."""
        del self._weights[part]

    def load(self, graph: Graph) -> OnnxGraph:
        """A graph in onnxruntime, on the CPU, its weights where the file is mapped: the model that
        it is compared with is in memory as well."""
        cpu = torch.device("cpu")
        return OnnxGraph(self._folder / graph.file, graph, cpu, "cpu", prepack=False)


def import_onnx_ir() -> Any:
    """onnx_ir; `ResourceError` says how to install what export needs."""
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  (torch's exporter wants it)
    except ImportError as error:
        raise ResourceError(
            f"export needs {error.name or 'onnx'}: pip install 'livereel[export]'"
        ) from error
    return onnx_ir


def _trace(step: Step) -> Any:
    with warnings.catch_warnings(), torch.no_grad(), _one_table():
        warnings.simplefilter("ignore")  # of libraries about one another
        program = torch.export.export(step.module, tuple(step.inputs.values()), strict=False)
        traced = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(step.inputs),
            output_names=list(step.outputs),
            optimize=True,
            verbose=False,
        )
    assert traced is not None and traced.exported_program is not None
    check_stateless(traced.exported_program)
    return traced


@contextmanager
def _one_table() -> Iterator[None]:
    """Have torch's exporter parse its table of ops once and not for every graph, which takes longer
    than most graphs do. A torch that has its table elsewhere goes on parsing."""
    try:
        from torch.onnx._internal.exporter import _registration

        registry: Any = _registration.ONNXRegistry
        parse = registry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return

    def parsed(opset_version: int) -> Any:
        if opset_version not in _TABLES:
            _TABLES[opset_version] = parse(opset_version=opset_version)
        return _TABLES[opset_version]

    own = vars(registry)["from_torchlib"]
    registry.from_torchlib = staticmethod(parsed)
    try:
        yield
    finally:
        registry.from_torchlib = own


def _tidy(model: Any) -> None:
    """Name nodes after the modules that they came from, and drop all else that was noted down."""
    count: Counter[str] = Counter()
    for node in model.graph:
        place = _module_of(node)
        label = f"{place}/{node.op_type}" if place else node.op_type
        count[label] += 1
        node.name = label if count[label] == 1 else f"{label}_{count[label]}"
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{value.name}"
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "main"


def _module_of(node: Any) -> str:
    """The innermost module that a node was traced in, as "model/blocks/0/attn1"."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    try:
        names = ast.literal_eval(scopes) if scopes else []
    except (ValueError, SyntaxError):
        names = []
    inner = names[-2] if len(names) > 1 else ""
    return str(inner).removeprefix("step.").replace(".", "/")


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(
        name=value.name,
        dtype=_DTYPES[value.dtype.name],
        shape=tuple(int(side) for side in value.shape),
    )


_DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT64": "int64"}
