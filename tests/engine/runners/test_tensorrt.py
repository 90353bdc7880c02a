"""The TensorRT runner's logic, with an execution context that onnxruntime stands in for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.manifest import FileInfo, Graph
from livereel.engine.package import Package, open_package
from livereel.engine.runners import tensorrt
from livereel.engine.runners.graphs import GraphRunner
from livereel.engine.runners.tensorrt import TensorRTGraph, cached, check_targets, import_library

CPU = torch.device("cpu")
CHIPS = SimpleNamespace(
    __version__="1.7", ComputeCapability=SimpleNamespace(__members__={"SM86": 86, "SM120": 120})
)


class StandIn:
    """An execution context whose computation is onnxruntime's, from addresses to addresses."""

    def __init__(self, file: Path, spec: Graph) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options)
        self._spec = spec
        self._memory: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        known = {x.name for x in (*self._spec.inputs, *self._spec.outputs)}
        self._memory[name] = memory
        return name in known

    def execute_async_v3(self, stream_handle: int) -> bool:
        binding = self._session.io_binding()
        for specs, bind in (
            (self._spec.inputs, binding.bind_input),
            (self._spec.outputs, binding.bind_output),
        ):
            for x in specs:
                kind = np.int64 if x.dtype == "int64" else np.float32
                bind(x.name, "cpu", 0, kind, x.shape, self._memory[x.name])
        self._session.run_with_iobinding(binding)
        return True


@pytest.fixture(scope="module")
def package(exported: Path) -> Package:
    return open_package(exported)


@pytest.fixture(scope="module")
def loaded(package: Package) -> Engine:
    graphs = {
        name: TensorRTGraph(StandIn(package.path / spec.file, spec), spec, CPU)
        for name, spec in package.manifest.graphs.items()
    }
    return Engine(package.folder, GraphRunner.of(package, graphs, CPU))


def test_streams_the_frames_of_torch_for_fifty_chunks(loaded: Engine, engine: Engine) -> None:
    ours, theirs = (one.open("a red ball moving left", seed=8) for one in (loaded, engine))
    for i, (chunk, wanted) in enumerate(islice(zip(ours, theirs, strict=True), 50)):
        assert np.abs(chunk.frames.astype(np.int16) - wanted.frames).max() <= 1, i
        if i == 20:
            for session in (ours, theirs):
                session.update(prompt="a blue ball", recache=True)


def test_two_streams_do_not_share_state(loaded: Engine) -> None:
    def stream() -> Any:
        return loaded.open("a red ball moving left", seed=8)

    alone = np.concatenate([chunk.frames for chunk in islice(stream(), 4)])
    one, other = stream(), loaded.open("a blue ball", seed=1)
    shared = []
    for _ in range(4):
        shared.append(next(one).frames)
        next(other)
    np.testing.assert_array_equal(np.concatenate(shared), alone)


def test_a_step_that_fails_is_told(package: Package) -> None:
    spec = package.manifest.graphs["text_kv"]
    context = StandIn(package.path / spec.file, spec)
    context.execute_async_v3 = lambda stream_handle: False  # type: ignore[method-assign]
    graph = TensorRTGraph(context, spec, CPU)
    with pytest.raises(ResourceError, match=r"could not run text_kv\.onnx"):
        graph({x.name: torch.zeros(x.shape) for x in spec.inputs})


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "livereel"


def test_engines_are_built_once_for_each_key(no_cache: Path) -> None:
    built: list[str] = []

    def maker(chip: str) -> Callable[[], bytes]:
        return lambda: built.append(chip) or chip.encode()  # type: ignore[func-returns-value]

    for chip in ("sm_89", "sm_89", "sm_120"):
        assert cached({"graph": "denoise", "chip": chip}, maker(chip)) == chip.encode()
    assert built == ["sm_89", "sm_120"]
    assert len(list(no_cache.iterdir())) == 2


def test_a_packages_own_engine_is_taken_where_it_fits(
    package: Package, tmp_path: Path, no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "denoise.engine").write_bytes(b"own")
    manifest = replace(
        package.manifest,
        format="tensorrt-rtx",
        chips=("sm_86",),
        versions={"tensorrt-rtx-cu13-bindings": "1.7"},
        files={"engines/denoise.engine": FileInfo(bytes=3, sha256="0" * 64)},
    )
    mine = Package(path=tmp_path, manifest=manifest)
    monkeypatch.setattr(tensorrt, "build_engine", lambda *_: b"built")
    assert tensorrt._engine(CHIPS, mine, "denoise", "sm_86") == b"own"
    assert tensorrt._engine(CHIPS, mine, "denoise", "sm_120") == b"built"
    newer = SimpleNamespace(**{**vars(CHIPS), "__version__": "1.8"})
    assert tensorrt._engine(newer, mine, "denoise", "sm_86") == b"built"


def test_a_chip_without_engines_is_told() -> None:
    assert check_targets(CHIPS, ["sm_120", "sm_86"]) == [120, 86]
    with pytest.raises(InputError, match="no engines for sm_90; it has them for sm_120, sm_86"):
        check_targets(CHIPS, ["sm_90"])


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_told(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ResourceError, match=f"{library} is not installed: pip install {library}"):
        import_library(library)


def test_a_machine_without_a_gpu_is_told(package: Package) -> None:
    rtx = replace(package, manifest=replace(package.manifest, format="tensorrt-rtx"))
    with pytest.raises(ResourceError, match="runs on NVIDIA GPUs; for the CPU, export with"):
        tensorrt.load(rtx, "cpu")
