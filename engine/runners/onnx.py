"""Step graphs on onnxruntime: on the CPU, or by a CUDA or TensorRT execution provider.

Inputs and outputs are bound where they lie, so that state stays on the device. None of the
providers but the CPU's has run here yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, ResourceError
from .graphs import DTYPES, GraphRunner
from .torch import pick_device

if TYPE_CHECKING:
    from pathlib import Path

    from ..manifest import Graph
    from ..package import Package

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_ELEMENT = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}  # ONNX's TensorProto.DataType


class OnnxGraph:
    """One graph in a session of its own, its weights laid out anew for speed where it may
    `prepack` them, which takes their size in memory."""

    def __init__(
        self, file: Path, spec: Graph, device: torch.device, provider: str, *, prepack: bool = True
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        self._spec, self._device = spec, device
        try:
            self._session = ort.InferenceSession(
                str(file), options, providers=_providers(provider, device)
            )
        except Exception as error:  # onnxruntime's own, of many kinds without a common base
            raise CheckpointError(f"{file} cannot be loaded: {error}") from error
        found = {x.name: tuple(x.shape) for x in self._session.get_inputs()}
        found |= {x.name: tuple(x.shape) for x in self._session.get_outputs()}
        if found != {x.name: x.shape for x in (*spec.inputs, *spec.outputs)}:
            raise CheckpointError(f"{file} has other inputs or outputs than the manifest says")

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `livereel.engine.runners.graphs.StepGraph`."""
        binding = self._session.io_binding()
        outputs = {
            x.name: torch.empty(x.shape, dtype=DTYPES[x.dtype], device=self._device)
            for x in self._spec.outputs
        }
        for specs, tensors, bind in (
            (self._spec.inputs, inputs, binding.bind_input),
            (self._spec.outputs, outputs, binding.bind_output),
        ):
            for spec in specs:
                x = tensors[spec.name]
                device = self._device
                bind(
                    spec.name, device.type, device.index or 0, _ELEMENT[spec.dtype], spec.shape,
                    x.data_ptr(),
                )  # fmt: skip
        self._session.run_with_iobinding(binding)
        return outputs


def load(package: Package, device: str, provider: str = "auto") -> GraphRunner:
    """Load a package's graphs on `device`, "auto" for a GPU where this onnxruntime can use one.

    `provider` is "cpu", "cuda", "tensorrt", or "auto": the device's own. Raises `ResourceError`
    where onnxruntime or its provider is missing, `CheckpointError` for graphs that do not load.
    """
    there = import_onnxruntime().get_available_providers()
    lone = provider == "auto" and PROVIDERS["cuda"] not in there
    if device == "auto" and (provider == "cpu" or lone):
        device = "cpu"
    picked = pick_device(device)
    provider = picked.type if provider == "auto" else provider
    if provider not in PROVIDERS:
        raise InputError(
            f"provider {provider!r:.40} is unknown; wanted auto, {', '.join(PROVIDERS)}"
        )
    if (provider == "cpu") != (picked.type == "cpu"):
        raise InputError(f"provider {provider!r} does not run on device {str(picked)!r}")
    if PROVIDERS[provider] not in there:
        raise ResourceError(
            f"this onnxruntime has no {PROVIDERS[provider]}: pip install onnxruntime-gpu in its "
            f"place, or take --device cpu"
        )
    graphs = {
        name: OnnxGraph(package.path / graph.file, graph, picked, provider)
        for name, graph in package.manifest.graphs.items()
    }
    return GraphRunner.of(package, graphs, picked)


def import_onnxruntime() -> Any:
    """onnxruntime, which has no types; `ResourceError` says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(
            "this package needs onnxruntime: pip install onnxruntime, or onnxruntime-gpu"
        ) from error
    return onnxruntime


def _providers(provider: str, device: torch.device) -> list[Any]:
    """Those that onnxruntime may use, in order; what the first does not take goes to the next."""
    if provider == "cpu":
        return [PROVIDERS["cpu"]]
    at = {"device_id": device.index or 0}
    stream = torch.cuda.current_stream(device).cuda_stream
    cuda = (PROVIDERS["cuda"], {**at, "user_compute_stream": str(stream)})
    return [cuda] if provider == "cuda" else [(PROVIDERS["tensorrt"], at), cuda]
