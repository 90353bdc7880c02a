"""Step graphs on TensorRT and on TensorRT for RTX, which take the same strongly typed ONNX.

Engines are built for the chip at hand when a package is loaded, once: they are kept under
`$XDG_CACHE_HOME/livereel`, by the package's content, the library's version and the chip. A
tensorrt-rtx package brings engines for its `chips` along. What TensorRT-RTX compiles on the way is
kept there too.

Inputs and outputs are bound where they lie. A step's outputs are new tensors of torch's allocator,
which takes the memory of the state before last for them: two sets of state take turns.

Building is tested without a GPU, and the runner with a stand-in for an execution context. None of
it has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, ResourceError
from .graphs import DTYPES, GraphRunner
from .torch import pick_device

if TYPE_CHECKING:
    from ..manifest import Graph
    from ..package import Package

RTX = "tensorrt-rtx"
ENGINES = "engines"
"""The folder of a package that holds engines, one for each graph."""
_MODULES = {"tensorrt": "tensorrt", RTX: "tensorrt_rtx_bindings"}
_INSTALL = {
    "tensorrt": "pip install tensorrt",
    RTX: "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
}
_RUNTIME_CACHE_BYTES = 100 << 20  # beyond which reading it takes longer than it saves


class Context(Protocol):
    """The part of TensorRT's `IExecutionContext` that a step needs."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where an input or output lies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Begin the computation in a CUDA stream."""


class TensorRTGraph:
    """One graph in an execution context; computes in torch's current stream of the device."""

    def __init__(self, context: Context, spec: Graph, device: torch.device) -> None:
        self._context, self._spec, self._device = context, spec, device

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `livereel.engine.runners.graphs.StepGraph`; raises `ResourceError` on failure."""
        outputs = {
            x.name: torch.empty(x.shape, dtype=DTYPES[x.dtype], device=self._device)
            for x in self._spec.outputs
        }
        given = {x.name: inputs[x.name] for x in self._spec.inputs}
        for name, x in {**given, **outputs}.items():
            if not self._context.set_tensor_address(name, x.data_ptr()):
                raise ResourceError(f"TensorRT does not take {name} of {self._spec.file}")
        stream = 0
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise ResourceError(f"TensorRT could not run {self._spec.file}")
        return outputs


def load(package: Package, device: str) -> GraphRunner:
    """Load a package's graphs on a GPU, building engines where there are none for it yet.

    Raises `ResourceError` where there is no GPU, no library, or none that knows this GPU, and
    `CheckpointError` for graphs that it does not take.
    """
    picked = pick_device(device)
    library = package.manifest.format
    if picked.type != "cuda":
        raise ResourceError(
            f"{package.path} runs on NVIDIA GPUs; for the CPU, export with --format onnx"
        )
    trt = import_library(library)
    chip = "sm_{}{}".format(*torch.cuda.get_device_capability(picked))
    if library == RTX:
        check_targets(trt, [chip])
    logger = trt.Logger(trt.Logger.ERROR)
    with torch.cuda.device(picked):
        runtime = trt.Runtime(logger)
        graphs = {
            name: TensorRTGraph(
                _context(runtime, _engine(trt, package, name, chip), package, name), graph, picked
            )
            for name, graph in package.manifest.graphs.items()
        }
    return GraphRunner.of(package, graphs, picked)


def import_library(library: str) -> Any:
    """TensorRT's module, or TensorRT-RTX's; `ResourceError` says how to install it."""
    from importlib import import_module

    try:
        return import_module(_MODULES[library])
    except ImportError as error:
        raise ResourceError(f"{library} is not installed: {_INSTALL[library]}") from error


def check_targets(trt: Any, chips: Sequence[str]) -> list[Any]:
    """TensorRT-RTX's names for chips such as "sm_89".

    Raises `InputError` for one that it does not build for.
    """
    known = {
        f"sm_{name[2:]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name[:2] == "SM"
    }
    for chip in chips:
        if chip not in known:
            raise InputError(
                f"TensorRT-RTX {trt.__version__} has no engines for {chip:.20}; it has them for "
                f"{', '.join(sorted(known))}; others run --format tensorrt"
            )
    return [known[chip] for chip in chips]


def build_engine(trt: Any, file: Path, chips: Sequence[str] = ()) -> bytes:
    """An engine from an ONNX file, for the GPU at hand, or for the `chips` that are named, which
    TensorRT-RTX does without a GPU.

    Shapes are fixed, so it has no optimization profile. Raises `CheckpointError` with what the
    library has against the graph.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    typed = getattr(flags, "STRONGLY_TYPED", None)  # all networks are, from TensorRT 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        why = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise CheckpointError(f"{file.name} is not taken by TensorRT {trt.__version__}: {why}")
    config = builder.create_builder_config()
    if chips:
        targets = check_targets(trt, chips)
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(target, i)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CheckpointError(f"TensorRT {trt.__version__} could not build {file.name}")
    return bytes(plan)


def cached(key: Mapping[str, str], make: Callable[[], bytes]) -> bytes:
    """What `make` gives, kept in a file that is named after `key`."""
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}.engine"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    made = make()
    write_atomically(path, made)
    return made


def cache_folder() -> Path:
    """Where engines are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livereel"


def write_atomically(path: Path, content: bytes) -> None:
    """Keep a file for the next time, if the disk lets us."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
            draft.write(content)
        os.replace(draft.name, path)


def _engine(trt: Any, package: Package, name: str, chip: str) -> bytes:
    """The package's own engine of a graph if it fits the chip, else one from the cache, else a new
    one."""
    manifest = package.manifest
    own = f"{ENGINES}/{name}.engine"
    same = trt.__version__ in manifest.versions.values()
    if own in manifest.files and chip in manifest.chips and same:
        return (package.path / own).read_bytes()
    content = {file: info.sha256 for file, info in manifest.files.items() if "/" not in file}
    key = {**content, "graph": name, "library": f"{manifest.format} {trt.__version__}"}
    file = package.path / manifest.graphs[name].file
    return cached({**key, "chip": chip}, lambda: build_engine(trt, file))


def _context(runtime: Any, engine: bytes, package: Package, name: str) -> Context:
    """An execution context, with CUDA graphs and a cache of its own where TensorRT-RTX has them."""
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise CheckpointError(f"the engine of {name} in {package.path} does not load on this GPU")
    if package.manifest.format != RTX:
        context: Context = loaded.create_execution_context()
        return context
    trt = import_library(RTX)
    config = loaded.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    path = cache_folder() / f"{hashlib.sha256(engine).hexdigest()[:32]}.kernels"
    with contextlib.suppress(OSError):
        if path.stat().st_size <= _RUNTIME_CACHE_BYTES:
            cache.deserialize(path.read_bytes())
    config.set_runtime_cache(cache)
    context = loaded.create_execution_context(config)
    write_atomically(path, bytes(cache.serialize()))
    return context
