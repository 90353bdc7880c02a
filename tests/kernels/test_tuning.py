"""Which configuration an op is launched with, and how the fastest is found and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from livereel.kernels import tuning
from livereel.kernels.tuning import Tunable, best, configuration, forced, save, user_table

pytest.importorskip("triton")

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
DEFAULT = {"rows": 1, "num_warps": 4}
FASTER = {"rows": 8, "num_warps": 8}


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An H100's tables, both empty; gives where the shipped one lies."""
    shipped = tmp_path / "shipped.json"
    monkeypatch.setattr(tuning, "chip", lambda device: "sm_90")
    monkeypatch.setattr(tuning, "SHIPPED_TABLE", shipped)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning._table.cache_clear()
    return shipped


def test_the_users_table_goes_before_the_shipped_one_and_that_before_the_default(
    hopper: Path,
) -> None:
    assert configuration("op", "D64", DEFAULT, CUDA) == DEFAULT
    save("sm_90", {"op": {"D64": FASTER, "D32": FASTER}}, hopper)
    assert configuration("op", "D64", DEFAULT, CUDA) == FASTER
    assert configuration("op", "D64", DEFAULT, CPU) == DEFAULT
    mine = {"rows": 2, "num_warps": 2}
    save("sm_90", {"op": {"D64": mine}}, user_table())
    assert configuration("op", "D64", DEFAULT, CUDA) == mine
    assert configuration("op", "D32", DEFAULT, CUDA) == FASTER
    assert configuration("other", "D64", DEFAULT, CUDA) == DEFAULT


def test_another_chip_has_its_own_entries_and_saving_keeps_them() -> None:
    save("sm_80", {"op": {"D64": FASTER}}, user_table())
    assert configuration("op", "D64", DEFAULT, CUDA) == DEFAULT
    save("sm_90", {"op": {"D128": FASTER}}, user_table())
    chips = json.loads(user_table().read_text())["chips"]
    assert chips == {"sm_80": {"op": {"D64": FASTER}}, "sm_90": {"op": {"D128": FASTER}}}
    assert [file.name for file in user_table().parent.iterdir()] == ["tuning.json"]


def test_entries_of_another_version_of_the_op_or_of_triton_are_passed_over() -> None:
    save("sm_90", {"op": {"D64": {"rows": 8}}}, user_table())
    assert configuration("op", "D64", DEFAULT, CUDA) == DEFAULT
    save("sm_90", {"op": {"D64": FASTER}}, user_table())
    table = json.loads(user_table().read_text())
    user_table().write_text(json.dumps({**table, "triton": "1.0"}))
    tuning._table.cache_clear()
    assert configuration("op", "D64", DEFAULT, CUDA) == DEFAULT


@pytest.mark.parametrize("text", ["{", "[]", '{"triton": "3", "chips": {"sm_90": {"op": 3}}}'])
def test_a_broken_table_is_told_and_not_used(text: str) -> None:
    user_table().parent.mkdir(parents=True)
    user_table().write_text(text)
    with pytest.warns(UserWarning, match=r"tuning\.json is no tuning table"):
        assert configuration("op", "D64", DEFAULT, CUDA) == DEFAULT


def test_a_forced_configuration_goes_first_and_ends_with_its_block() -> None:
    with forced("op", FASTER):
        with forced("op", {"rows": 3, "num_warps": 1}):
            assert configuration("op", "D64", DEFAULT, CPU)["rows"] == 3
        assert configuration("op", "D64", DEFAULT, CPU) == FASTER
        assert configuration("other", "D64", DEFAULT, CPU) == DEFAULT
    assert configuration("op", "D64", DEFAULT, CPU) == DEFAULT


def rows() -> int:
    return configuration("op", "D64", DEFAULT, CPU)["rows"]


def tunable(run: Callable[[], Tensor], *candidates: int) -> Tunable:
    configs = tuple({"rows": n, "num_warps": 4} for n in candidates)
    return Tunable(op="op", key="D64", candidates=configs, prepare=lambda device: run)


def test_the_fastest_candidate_wins_by_its_median() -> None:
    times = {1: [5.0, 5.0, 5.0], 2: [4.0, 4.0, 90.0], 4: [1.0, 6.0, 6.0], 8: [4.5, 4.5, 4.5]}
    found = best(tunable(lambda: torch.ones(3), 2, 4, 8), CPU, lambda run: times[rows()])
    assert found == ({"rows": 2, "num_warps": 4}, 4.0, 5.0)


def test_nothing_is_found_when_nothing_is_faster() -> None:
    assert best(tunable(lambda: torch.ones(3), 2, 4), CPU, lambda run: [float(rows())]) is None


def test_candidates_that_fail_or_compute_something_else_are_passed_over() -> None:
    def run() -> Tensor:
        if rows() == 2:
            raise RuntimeError("too many resources requested for launch")
        return torch.full((3,), 1.5 if rows() == 4 else 1.0)

    assert best(tunable(run, 2, 4), CPU, lambda run: [1.0 / rows()]) is None
    found = best(tunable(run, 2, 4, 8), CPU, lambda run: [1.0 / rows()])
    assert found is not None and found[0]["rows"] == 8


def test_whole_numbers_may_differ_by_a_rounding() -> None:
    def run() -> Tensor:
        return torch.full((3,), 100 + rows(), dtype=torch.uint8)

    found = best(tunable(run, 2, 3), CPU, lambda run: [1.0 / rows()])
    assert found is not None and found[0]["rows"] == 2


def test_the_shipped_table_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(tuning.__file__).with_name("tuning.json")
    monkeypatch.setattr(tuning, "SHIPPED_TABLE", path)
    for ops in tuning._read(path).values():
        assert all(config for configs in ops.values() for config in configs.values())
