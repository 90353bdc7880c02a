"""Step modules to AOTInductor graphs: machine code for one CPU's instruction set, or one kind of
GPU, and one release of torch, in `.pt2` files, with the weights of each component beside them in
one safetensors file.

A graph's weight "step.model.x" is the tensor "<graph>.step.model.x" of `weights.safetensors`, where
its folder's file has one, or else "model.x".

Those for a GPU hold Triton's kernels in half precision: an exported step names our ops, and their
twins (`livereel.kernels.twins`) go into the compiler. This has not run on a GPU yet; without one
the steps are traced and taken apart in tests, up to the launches of the kernels.
"""

from __future__ import annotations

import platform
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from livereel.engine.errors import InputError, ResourceError
from livereel.engine.manifest import Graph, TensorSpec
from livereel.engine.runners.aoti import (
    WEIGHTS,
    AotiGraph,
    gpu_chip,
    load_graph,
    load_weights,
    weight_name,
)
from livereel.kernels.twins import with_twins

from .steps import check_stateless

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from livereel.engine.runners.graphs import StepGraph

    from .steps import Step

_MARCH = {256: "x86-64-v3", 512: "x86-64-v4"}


class AotiWriter:
    """Compiles step modules; a `livereel.export.package.Writer`.

    `targets` is nothing, for the CPU, or the GPU at hand ("sm_90"); it has to be there. Raises
    `ResourceError`, as `write` does, where this machine or its torch cannot compile, and
    `InputError` for more than one GPU.
    """

    versions: tuple[str, ...] = ("torch",)

    def __init__(self, folder: Path, targets: tuple[str, ...] = ()) -> None:
        self._device = _gpu(targets) if targets else torch.device("cpu")
        self.chips: tuple[str, ...] = targets or (chip(),)
        self._folder = folder
        self._weights: dict[str, Tensor] = {}

    def write(self, name: str, step: Step) -> Graph:
        """Compile `name`.pt2 into its component's folder, and note down its weights."""
        from torch._inductor import aoti_compile_and_package

        file = self._folder / step.weights / f"{name}.pt2"
        file.parent.mkdir(exist_ok=True)
        step.module.to(self._device)
        for tensor in (*step.module.parameters(), *step.module.buffers()):
            tensor.data = tensor.data.contiguous()  # as the file has it: strides are compiled in
        program = trace(step.module, [x.to(self._device) for x in step.inputs.values()])
        made = program.graph.output_node().args[0]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of libraries about one another
            try:
                aoti_compile_and_package(
                    program, package_path=str(file), inductor_configs=_configs(self._device)
                )
            except (RuntimeError, OSError) as error:  # no compiler, or one that fails
                why = str(error).strip().partition("\n")[0]
                raise ResourceError(f"AOTInductor cannot compile {name}: {why:.200}") from error
        del program
        step.module.to("cpu")
        self._note(name, step.module, load_graph(file, self._device).get_constant_fqns())
        assert isinstance(made, (tuple, list))
        results = [node.meta["val"] for node in made if isinstance(node, torch.fx.Node)]
        return Graph(
            file=f"{step.weights}/{file.name}",
            inputs=tuple(_spec(key, x) for key, x in step.inputs.items()),
            outputs=tuple(_spec(key, x) for key, x in zip(step.outputs, results, strict=True)),
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

    def load(self, graph: Graph) -> StepGraph:
        """A graph that was written, once its component was ended; it takes and gives tensors on the
        CPU."""
        file = self._folder / graph.file
        loaded = AotiGraph(file, graph, load_weights(file.parent, self._device), self._device)
        return loaded if self._device.type == "cpu" else _FromHost(loaded, self._device)

    def _note(self, graph: str, module: nn.Module, names: Sequence[str]) -> None:
        """Take in the weights that a graph reads, by their names in its module."""
        named = (module.named_parameters, module.named_buffers)
        tensors = {name: x for each in named for name, x in each(remove_duplicate=False)}
        for name in names:
            if name not in tensors:
                raise ResourceError(f"graph {graph} reads {name:.80}, which its module lacks")
            tensor, key = tensors[name], weight_name(name)
            known = self._weights.get(key)
            if known is not None and known is not tensor and not torch.equal(known, tensor):
                key = f"{graph}.{name}"
            self._weights.setdefault(key, tensor)


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """A module as a program; where it is on a GPU with the twins of our ops."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, tuple(inputs), strict=False)
    check_stateless(program)
    return program if inputs[0].device.type == "cpu" else with_twins(program)


class _FromHost:
    """A graph on a GPU, for tensors on the CPU and without the short cuts of its fp32."""

    def __init__(self, graph: AotiGraph, device: torch.device) -> None:
        self._graph, self._device = graph, device

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `livereel.engine.runners.graphs.StepGraph`."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            made = self._graph({name: x.to(self._device) for name, x in inputs.items()})
            return {name: x.cpu() for name, x in made.items()}


def _gpu(targets: tuple[str, ...]) -> torch.device:
    """The GPU at hand, which is all of `targets`."""
    here = gpu_chip(torch.device("cuda", 0)) if torch.cuda.is_available() else None
    if here is None:
        raise ResourceError(
            f"aoti packages for {', '.join(targets):.80} are compiled where such a GPU is; torch "
            f"sees none here"
        )
    if targets != (here,):
        raise InputError(
            f"aoti packages are compiled for the GPU at hand, {here}, not for "
            f"{', '.join(targets):.80}"
        )
    return torch.device("cuda", 0)


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


def _configs(device: torch.device) -> dict[str, object]:
    from torch._inductor import config

    configs: dict[str, object] = {"aot_inductor.package_constants_in_so": False}
    if device.type == "cuda":
        # In the code itself: files beside it are gone when a kernel is first launched.
        configs["aot_inductor.embed_kernel_binary"] = True
        if hasattr(config.cpp, "march"):  # else the host's own, from torch 2.13 on any
            configs["cpp.march"] = _MARCH[256]
        return configs
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    chip()
    if not hasattr(config.cpp, "march"):
        raise ResourceError(f"aoti packages need torch 2.13 or newer, this is {torch.__version__}")
    return {**configs, "cpp.march": _MARCH[pick_vec_isa().bit_width()]}


def _spec(name: str, x: Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(x.dtype).removeprefix("torch."), shape=tuple(x.shape))
