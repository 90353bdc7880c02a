"""Step modules to AOTInductor graphs: machine code for one CPU's instruction set and one release of
torch, in `.pt2` files, with the weights of each component beside them in one safetensors file.

A graph's weight "step.model.x" is the tensor "<graph>.step.model.x" of `weights.safetensors`, where
its folder's file has one, or else "model.x".
"""

from __future__ import annotations

import platform
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from livereel.engine.errors import ResourceError
from livereel.engine.manifest import Graph, TensorSpec
from livereel.engine.runners.aoti import WEIGHTS, AotiGraph, load_graph, load_weights, weight_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .steps import Step

_MARCH = {256: "x86-64-v3", 512: "x86-64-v4"}


class AotiWriter:
    """Compiles step modules; a `livereel.export.package.Writer`.

    Raises `ResourceError`, as `write` does, where this machine or its torch cannot compile.
    """

    versions: tuple[str, ...] = ("torch",)

    def __init__(self, folder: Path) -> None:
        self.chips: tuple[str, ...] = (chip(),)
        self._folder = folder
        self._weights: dict[str, Tensor] = {}

    def write(self, name: str, step: Step) -> Graph:
        """Compile `name`.pt2 into its component's folder, and note down its weights."""
        from torch._inductor import aoti_compile_and_package

        file = self._folder / step.weights / f"{name}.pt2"
        file.parent.mkdir(exist_ok=True)
        for tensor in (*step.module.parameters(), *step.module.buffers()):
            tensor.data = tensor.data.contiguous()  # as the file has it: strides are compiled in
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of libraries about one another
            program = torch.export.export(step.module, tuple(step.inputs.values()), strict=False)
            made = step.module(*step.inputs.values())
            try:
                aoti_compile_and_package(
                    program, package_path=str(file), inductor_configs=_configs()
                )
            except (RuntimeError, OSError) as error:  # no compiler, or one that fails
                why = str(error).strip().partition("\n")[0]
                raise ResourceError(f"AOTInductor cannot compile {name}: {why:.200}") from error
        self._note(name, step.module, load_graph(file).get_constant_fqns())
        outputs = (made,) if isinstance(made, Tensor) else made
        return Graph(
            file=f"{step.weights}/{file.name}",
            inputs=tuple(_spec(key, x) for key, x in step.inputs.items()),
            outputs=tuple(_spec(key, x) for key, x in zip(step.outputs, outputs, strict=True)),
            state=step.state,
        )

    def end(self, part: str) -> None:
        """Write a component's weights."""
        from safetensors.torch import save_file

        whole = {name: tensor.detach().contiguous() for name, tensor in self._weights.items()}
        owners: dict[int, str] = {}
        for name, tensor in whole.items():  # the format wants memory of each one's own
            if owners.setdefault(tensor.data_ptr(), name) != name:
                whole[name] = tensor.clone()
        save_file(whole, self._folder / part / WEIGHTS)
        self._weights = {}

    def load(self, graph: Graph) -> AotiGraph:
        """A graph that was written, once its component was ended."""
        file = self._folder / graph.file
        return AotiGraph(file, graph, load_weights(file.parent))

    def _note(self, graph: str, module: nn.Module, names: Sequence[str]) -> None:
        """Take in the weights that a graph reads, by their names in its module."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name in names:
            if name not in tensors:
                raise ResourceError(f"graph {graph} reads {name:.80}, which its module lacks")
            tensor, key = tensors[name], weight_name(name)
            known = self._weights.get(key)
            if known is not None and known is not tensor and not torch.equal(known, tensor):
                key = f"{graph}.{name}"
            self._weights.setdefault(key, tensor)


def chip() -> str:
    """The instruction sets that graphs compiled here need, as a manifest's `chips` have them.

    Raises `ResourceError` on other machines than x86-64 with AVX2 or AVX-512.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    if platform.machine() != "x86_64" or isa.bit_width() not in _MARCH:
        raise ResourceError(
            f"aoti packages are compiled on x86-64 with AVX2 or AVX-512, not on "
            f"{platform.machine()} with {isa}"
        )
    return "-".join(["x86_64", *str(isa).split()])


def _configs() -> dict[str, object]:
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    chip()
    if not hasattr(config.cpp, "march"):
        raise ResourceError(f"aoti packages need torch 2.13 or newer, this is {torch.__version__}")
    return {
        "aot_inductor.package_constants_in_so": False,
        "cpp.march": _MARCH[pick_vec_isa().bit_width()],
    }


def _spec(name: str, x: Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(x.dtype).removeprefix("torch."), shape=tuple(x.shape))
