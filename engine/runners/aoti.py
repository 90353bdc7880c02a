"""Runs packages of AOTInductor graphs: machine code for one instruction set, or GPU, and one torch.

`livereel.export.aoti` writes them. The C++ runtime (`csrc/runtime`) runs the same files, and gives
the same bits.

On a GPU inputs, outputs, state and weights stay there. Nothing of that has run on one yet.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import machine
from ..errors import CheckpointError, ResourceError
from .graphs import DTYPES, GraphRunner
from .torch import pick_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..manifest import Graph
    from ..package import Package

WEIGHTS = "weights.safetensors"
"""The weights of all graphs of a folder."""

_CPU = torch.device("cpu")
_TAKES_FOLDERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_NEEDED = {
    "avx2": {"avx2", "fma", "bmi1", "bmi2"},
    "avx512": {"avx2", "fma", "bmi1", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq",
               "avx512vl"},
    "avx512_vnni": {"avx512_vnni"},
}  # fmt: skip
"""What /proc/cpuinfo must name for each of Inductor's instruction sets."""


class AotiGraph:
    """One graph, and the weights it reads, which others may read too."""

    def __init__(
        self, file: Path, spec: Graph, weights: Mapping[str, Tensor], device: torch.device = _CPU
    ) -> None:
        self._spec = spec
        self._loader = load_graph(file, device)
        self._weights = {
            name: _pick(weights, file, name) for name in self._loader.get_constant_fqns()
        }
        try:
            self._loader.load_constants(self._weights, False, True, True)
        except RuntimeError as error:
            raise CheckpointError(f"{file} does not take its weights: {error}") from error

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `livereel.engine.runners.graphs.StepGraph`."""
        given = []
        for spec in self._spec.inputs:
            x = inputs[spec.name]
            assert tuple(x.shape) == spec.shape and x.dtype == DTYPES[spec.dtype]
            given.append(x)
        with torch.cuda.device_of(given[0]):
            made = self._loader.boxed_run(given)
        return {spec.name: x for spec, x in zip(self._spec.outputs, made, strict=True)}


def load(package: Package, device: str) -> GraphRunner:
    """Load a package's graphs on `device`: "cpu" or "cuda", as it was compiled; "auto" is that.

    Raises `ResourceError` for a package made for another torch, another processor or GPU, or not
    for the device asked for; `CheckpointError` for graphs that do not load.
    """
    manifest = package.manifest
    pick = _pick_gpu if manifest.on_gpu else _pick_cpu
    picked = pick(package, device)
    wanted, here = (v.partition("+")[0] for v in (manifest.versions["torch"], torch.__version__))
    if wanted != here:
        raise ResourceError(
            f"{package.path} was compiled for torch {wanted}; this is {here}: export it anew"
        )
    files = {package.path / graph.file for graph in manifest.graphs.values()}
    weights = {folder: load_weights(folder, picked) for folder in {file.parent for file in files}}
    graphs = {}
    for name, graph in manifest.graphs.items():
        file = package.path / graph.file
        graphs[name] = AotiGraph(file, graph, weights[file.parent], picked)
    return GraphRunner.of(package, graphs, picked)


def _pick_cpu(package: Package, device: str) -> torch.device:
    if device not in ("auto", "cpu"):
        raise ResourceError(
            f"{package.path} was compiled for the CPU; the device asked for is {device:.40}"
        )
    if not any(runs_here(chip) for chip in package.manifest.chips):
        raise ResourceError(
            f"{package.path} was compiled for {', '.join(package.manifest.chips):.200}, which this "
            f"processor is not: export it anew"
        )
    return _CPU


def _pick_gpu(package: Package, device: str) -> torch.device:
    chips = ", ".join(package.manifest.chips)
    picked = pick_device(device)
    if picked.type != "cuda":
        here = "the device asked for is cpu" if device != "auto" else "torch sees none here"
        raise ResourceError(f"{package.path} was compiled for a GPU, {chips:.200}; {here}")
    if gpu_chip(picked) not in package.manifest.chips:
        raise ResourceError(
            f"{package.path} was compiled for {chips:.200}; this GPU is {gpu_chip(picked)}: export "
            f"it anew"
        )
    return picked


def gpu_chip(device: torch.device) -> str:
    """A GPU as a manifest's `chips` have it: "sm_90" for one of compute capability 9.0."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def load_graph(file: Path, device: torch.device = _CPU) -> Any:
    """torch's loader of a `.pt2` file, without weights.

    It is unpacked to a folder that only this user may enter and that is gone when this returns.
    Raises `CheckpointError`.
    """
    index = -1 if device.type == "cpu" else device.index or 0
    with tempfile.TemporaryDirectory(prefix="livereel-") as folder:
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
            # Before torch 2.13, which packages for GPUs may be of, it unpacked files alone.
            source = folder if _TAKES_FOLDERS else str(file)
            return torch._C._aoti.AOTIModelPackageLoader(source, "model", False, 1, index)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            why = str(error).partition("\n")[0]
            raise CheckpointError(f"{file} cannot be loaded: {why:.200}") from error


def runs_here(chip: str) -> bool:
    """Whether this machine is a `chip` of a manifest, such as "x86_64-avx512"."""
    family, *sets = chip.split("-")
    have = machine.cpu_flags()
    known = family == "x86_64" and all(name in _NEEDED for name in sets)
    return chip == "any" or (known and all(_NEEDED[name] <= have for name in sets))


def weight_name(name: str) -> str:
    """A module's weight as its siblings name it: the first chunk's module is a wrapper."""
    return name.removeprefix("step.")


def _pick(weights: Mapping[str, Tensor], file: Path, name: str) -> Tensor:
    for key in (f"{file.stem}.{name}", weight_name(name)):
        if key in weights:
            return weights[key]
    raise CheckpointError(f"{file.parent / WEIGHTS} lacks {name:.80} of {file.name}")


def load_weights(folder: Path, device: torch.device = _CPU) -> dict[str, Tensor]:
    """The weights that the graphs in a package's folder read, on a device.

    Raises `CheckpointError`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded = load_file(folder / WEIGHTS)
        if device.type == "cuda":
            return {name: loaded.pop(name).to(device) for name in tuple(loaded)}
        # In memory aligned as torch's own: products of matrices differ in their last bits by it.
        return {name: loaded.pop(name).clone() for name in tuple(loaded)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
