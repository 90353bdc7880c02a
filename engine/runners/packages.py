"""Which module runs a package, by its format; imported when one is opened."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..package import Package
    from .graphs import GraphRunner

RUNNERS = {"onnx": ".onnx", "aoti": ".aoti", "tensorrt": ".tensorrt", "tensorrt-rtx": ".tensorrt"}
"""Format -> the module whose `load(package, device)` gives a `GraphRunner`."""


def load_package(
    package: Package, device: str = "auto", dtype: str = "auto", provider: str = "auto"
) -> GraphRunner:
    """Load a package's graphs on a device.

    Raises `InputError` for another dtype than the package's, or a `provider` that its format does
    not have; `ResourceError` where what runs it is missing; `CheckpointError` for graphs that do
    not load.
    """
    manifest = package.manifest
    if dtype not in ("auto", manifest.dtype):
        raise InputError(
            f"{package.path} was exported in {manifest.dtype}, not in {dtype}; "
            f"livereel export --dtype writes one that is"
        )
    options = {}
    if provider != "auto":
        if manifest.format != "onnx":
            raise InputError(f"provider {provider!r:.40} is for ONNX packages alone")
        options["provider"] = provider
    runner: GraphRunner = import_module(RUNNERS[manifest.format], __package__).load(
        package, device, **options
    )
    return runner
