"""What a component's `config.json` says, read into a dataclass and bounded.

A config comes from outside. No number in it may make us build more than a real model could be, so
each is checked before a module is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import CheckpointError


def known_fields(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are fields of the dataclass `config`, lists made tuples."""
    known = {field.name for field in fields(config)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}


def refuse_others(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where `values` has another value for a key than `wanted`."""
    for key, only in wanted.items():
        if values.get(key, only) != only:
            raise CheckpointError(f"{key}={values[key]!r:.40} is not supported; wanted {only!r}")


def check_whole(name: str, value: object, most: int) -> None:
    """Raise `CheckpointError` unless `value` is a whole number from 1 to `most`."""
    if not _is_whole(value, most):
        raise CheckpointError(f"{name} must be a whole number from 1 to {most}, got {value!r:.40}")


def check_wholes(name: str, values: object, most: int, *, length: int) -> None:
    """Raise `CheckpointError` unless `values` are 1 to `length` whole numbers from 1 to `most`."""
    if (
        not isinstance(values, tuple)
        or not 1 <= len(values) <= length
        or not all(_is_whole(value, most) for value in values)
    ):
        raise CheckpointError(
            f"{name} must be a list of 1 to {length} whole numbers from 1 to {most}, "
            f"got {values!r:.40}"
        )


def check_numbers(name: str, values: object, *, length: int, above: float) -> None:
    """Raise `CheckpointError` unless `values` are `length` numbers above `above`, up to 1e6."""
    if (
        not isinstance(values, tuple)
        or len(values) != length
        or not all(_is_number(value) and above < value <= 1e6 for value in values)
    ):
        raise CheckpointError(
            f"{name} must be a list of {length} numbers above {above:g}, got {values!r:.40}"
        )


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
