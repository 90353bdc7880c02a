from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from livereel.engine.checkpoint import weights
from livereel.engine.checkpoint.save import save_component
from livereel.engine.checkpoint.weights import Weights, load_weights, weight_files
from livereel.engine.errors import CheckpointError, ResourceError


class Small(nn.Module):
    keep_in_fp32 = ("norm",)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"proj": nn.Linear(4, 3), "norm": nn.LayerNorm(3)})
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def meta(cls: type[nn.Module] = Small) -> nn.Module:
    with torch.device("meta"):
        return cls()


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = Small().state_dict()
    drawn = {k: torch.randn(v.shape, generator=generator).to(v.dtype) for k, v in state.items()}
    return {**drawn, "count": torch.tensor([3, 4])}


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_component(tmp_path, "part", {}, tensors)
    return tmp_path / "part"


def assert_filled(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert list(state) == list(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_module_on_meta_takes_the_files_values(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> None:
    module = meta()
    load_weights(module, folder)
    assert_filled(module, tensors)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("shard_bytes", [1, 50, 10**9])
def test_shards_and_their_index(
    tmp_path: Path, tensors: dict[str, torch.Tensor], shard_bytes: int
) -> None:
    save_component(tmp_path, "part", {}, tensors, shard_bytes=shard_bytes)
    files = weight_files(tmp_path / "part")
    assert len(files) == {1: 5, 50: 3, 10**9: 1}[shard_bytes]
    module = meta()
    load_weights(module, tmp_path / "part")
    assert_filled(module, tensors)


def test_floats_are_cast_but_for_what_stays_in_fp32(folder: Path) -> None:
    module = meta()
    load_weights(module, folder, dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    assert dtypes == {
        "inner.proj.weight": torch.bfloat16,
        "inner.proj.bias": torch.bfloat16,
        "inner.norm.weight": torch.float32,
        "inner.norm.bias": torch.float32,
        "count": torch.int64,
    }


def test_without_a_dtype_the_files_dtypes_stay(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_component(tmp_path, "part", {}, halves)
    module = meta()
    load_weights(module, tmp_path / "part")
    assert {p.dtype for p in module.parameters()} == {torch.float16}


def test_an_uncast_tensor_is_the_mapped_file_and_not_a_copy(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1 << 14, 1 << 10))

    size = 4 << 24
    save_component(tmp_path, "part", {}, {"weight": torch.ones(1 << 14, 1 << 10)})
    module = meta(Wide)
    before = resident_bytes()
    load_weights(module, tmp_path / "part")
    assert resident_bytes() - before < size // 4
    assert float(module.state_dict()["weight"].sum()) == 1 << 24


def resident_bytes() -> int:
    psutil = pytest.importorskip("psutil")
    return int(psutil.Process().memory_info().rss)


def test_names_go_through_the_key_map(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({f"old.{k}": v for k, v in tensors.items()}, tmp_path / "own.safetensors")
    module = meta()
    load_weights(
        module,
        tmp_path / "own.safetensors",
        key_map=lambda names: {name: name.removeprefix("old.") for name in names},
    )
    assert_filled(module, tensors)


def test_two_names_that_become_one_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file({**tensors, "old.count": torch.zeros(2)}, tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"'count' and 'old.count'|'old.count' and 'count'"):
        load_weights(
            meta(),
            tmp_path / "own.safetensors",
            key_map=lambda names: {name: name.removeprefix("old.") for name in names},
        )


def test_a_tied_name_may_be_left_out(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)

    save_file({"a.weight": torch.eye(2)}, tmp_path / "model.safetensors")
    module = meta(Tied)
    load_weights(module, tmp_path, tied={"b.weight": "a.weight"})
    state = module.state_dict()
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr()


def without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: without(t, "count"), "lacks 1 key ('count')"),
        (lambda t: {**t, "stray": torch.zeros(1)}, "holds 1 key ('stray')"),
        (lambda t: {**without(t, "count"), "cuont": torch.zeros(2)}, "'count'"),
        (lambda t: {"x": torch.zeros(1)}, "lacks 5 keys"),
        (lambda t: {}, "lacks 5 keys"),
        (lambda t: {**t, "count": torch.zeros(3)}, "count is [3] instead of [2]"),
        (lambda t: {**t, "inner.proj.weight": torch.zeros(3, 4, 1)}, "[3, 4, 1] instead of [3, 4]"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], change: Any, named: str
) -> None:
    save_file(change(tensors), tmp_path / "model.safetensors")
    module = meta()
    with pytest.raises(CheckpointError) as error:
        load_weights(module, tmp_path)
    message = str(error.value)
    assert named in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(message) < 600
    assert all(p.is_meta for p in module.parameters())


def test_a_file_larger_than_memory_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap 28577106440 bytes")

    monkeypatch.setattr(weights, "safe_open", refuse)
    with pytest.raises(ResourceError, match=r"safetensors cannot be mapped: unable to mmap"):
        Weights(weight_files(folder))


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors"):
        load_weights(meta(), folder)


@pytest.mark.parametrize("start", [b"\xff" * 8, b"PK\x03\x04", b"\x80\x02}q\x00.", b"{}"])
def test_a_file_of_another_kind_is_named(folder: Path, start: bytes) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(start + file.read_bytes()[len(start) :])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(meta(), folder)


def header(file: Path, values: dict[str, Any], data: bytes) -> None:
    text = json.dumps(values).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32"},
        7,
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, entry: Any) -> None:
    header(tmp_path / "model.safetensors", {"weight": entry}, b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(meta(), tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        load_weights(meta(), tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": {"a": "../a.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "a.bin"}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": "absent.safetensors"}},
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, index: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        load_weights(meta(), tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    for file in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{file}.safetensors")
    with pytest.raises(CheckpointError, match="repeats 'x'"):
        Weights([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_a_buffer_that_no_file_fills_is_a_models_mistake(tmp_path: Path) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2), persistent=False)

    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="table"):
        load_weights(meta(Forgetful), tmp_path)
