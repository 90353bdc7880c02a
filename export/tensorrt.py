"""ONNX graphs with engines for TensorRT-RTX beside them, built without a GPU."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING

from livereel.engine.runners.tensorrt import (
    ENGINES,
    RTX,
    build_engine,
    check_targets,
    import_library,
)

from .onnx import OnnxWriter

if TYPE_CHECKING:
    from pathlib import Path

    from livereel.engine.manifest import Graph

    from .steps import Step

TARGETS = ("sm_86", "sm_89", "sm_120")
"""GPUs that engines are built for unless told otherwise: RTX 30, 40 and 50."""


class RTXWriter(OnnxWriter):
    """Writes ONNX graphs and an engine of each for all `targets`.

    Raises `ResourceError` without TensorRT-RTX, `InputError` for GPUs that it does not know.
    """

    def __init__(self, folder: Path, targets: tuple[str, ...] = TARGETS) -> None:
        super().__init__(folder)
        self._library = import_library(RTX)
        check_targets(self._library, targets)
        self.chips = targets
        (name, *_) = packages_distributions()[self._library.__name__.partition(".")[0]]
        self.versions = (*OnnxWriter.versions, name)

    def write(self, name: str, step: Step) -> Graph:
        """See `OnnxWriter.write`; raises `CheckpointError` for a graph that is not taken."""
        graph = super().write(name, step)
        engine = build_engine(self._library, self._folder / graph.file, self.chips)
        place = self._folder / ENGINES
        place.mkdir(exist_ok=True)
        (place / f"{name}.engine").write_bytes(engine)
        return graph
