from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from livereel.engine.checkpoint.pickles import read_pickle
from livereel.engine.errors import CheckpointError

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def assert_state(tensors: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_on_top(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pth"
    torch.save(OrderedDict(STATE), path, _use_new_zipfile_serialization=zipped)
    tensors, state = read_pickle(path)
    assert state is None
    assert_state(tensors)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"generator": {"x": torch.zeros(1)}, "generator_ema": STATE, "step": 7}, "generator_ema"),
        ({"generator": STATE, "critic": {"x": torch.zeros(1)}}, "generator"),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"generator": STATE, "generator_ema": None}, "generator"),
    ],
)
def test_the_best_state_of_a_training_run(
    tmp_path: Path, value: dict[str, Any], wanted: str
) -> None:
    torch.save(value, tmp_path / "m.pt")
    tensors, state = read_pickle(tmp_path / "m.pt")
    assert state == wanted
    assert_state(tensors)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1, 2],
        7,
        {"generator_lora": {"x": torch.zeros(1)}},
        {"a": 1},
        {1: torch.zeros(1)},
        {"generator": {}},
        torch.zeros(2),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt holds no state dict"):
        read_pickle(tmp_path / "m.pt")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "m.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": Evil(mark)}))
    else:
        value = {**STATE, "c": Evil(mark)}
        torch.save(value, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError) as error:
        read_pickle(path)
    assert not mark.exists()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    if how == "torch":
        assert "mkdir" in str(error.value)


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"not just tensors.*Linear"):
        read_pickle(tmp_path / "m.pt")


def test_a_tensor_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="'a' is no plain tensor"):
        read_pickle(tmp_path / "m.pt")


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        read_pickle(tmp_path / "m.pt")


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.pt"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.pt") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def test_an_archive_without_its_records_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            if not name.endswith("data/0"):
                cut.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        read_pickle(tmp_path / "cut.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.pt does not exist"):
        read_pickle(tmp_path / "m.pt")
