"""What a config.json may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from livereel.engine.errors import CheckpointError
from livereel.engine.models.fields import (
    check_numbers,
    check_whole,
    check_wholes,
    known_fields,
    refuse_others,
)


@dataclass
class Config:
    width: int
    levels: tuple[int, ...]


def test_known_fields_leave_the_others_out_and_make_lists_tuples() -> None:
    values = {"width": 3, "levels": [1, 2], "_class_name": "Thing"}
    assert known_fields(Config, values) == {"width": 3, "levels": (1, 2)}


def test_what_is_wanted_or_absent_passes() -> None:
    refuse_others({"a": 1}, {"a": 1, "b": []})
    with pytest.raises(CheckpointError, match="b=\\[2\\] is not supported; wanted \\[\\]"):
        refuse_others({"b": [2]}, {"b": []})


@pytest.mark.parametrize("value", [0, 9, -1, 2.0, True, "2", None, [2]])
def test_a_whole_number_in_bounds_is_asked_for(value: Any) -> None:
    check_whole("width", 8, 8)
    with pytest.raises(CheckpointError, match="width must be a whole number from 1 to 8, got"):
        check_whole("width", value, 8)


@pytest.mark.parametrize("values", [(), (1,) * 4, (1, 9), (1, None), 1, "12", [1]])
def test_a_list_of_whole_numbers_in_bounds_is_asked_for(values: Any) -> None:
    check_wholes("levels", (1, 8, 3), 8, length=3)
    with pytest.raises(CheckpointError, match="levels must be a list of 1 to 3 whole numbers"):
        check_wholes("levels", values, 8, length=3)


@pytest.mark.parametrize(
    "values", [(), (1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf")), (1.0, "1")]
)
def test_a_list_of_numbers_of_that_length_is_asked_for(values: Any) -> None:
    check_numbers("std", (0.5, 2), length=2, above=0)
    with pytest.raises(CheckpointError, match="std must be a list of 2 numbers above 0, got"):
        check_numbers("std", values, length=2, above=0)
