"""Launch configurations by op, chip and shape: block sizes, warps, pipeline stages.

An op's launcher has a default for every shape. What was measured to be faster goes before it: the
table beside this file, and before that the user's own, which `livereel tune` fills by timing
candidates on the GPU that is there. Nothing is timed when an op is launched, so that a live stream
never waits for it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .jit import triton

Config = Mapping[str, int]
"""A launcher's numbers by name: `{"rows": 4, "num_warps": 8}`."""

Table = dict[str, dict[str, dict[str, Config]]]
"""Chip (`sm_90`), op, shape key (`D1536`), configuration."""

SHIPPED_TABLE = Path(__file__).with_name("tuning.json")

_forced: dict[str, Config] = {}


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """An op at a shape that counts, and the configurations to try there.

    `prepare` makes inputs on a device and gives a function that runs the op on them.
    """

    op: str
    key: str
    candidates: tuple[Config, ...]
    prepare: Callable[[torch.device], Callable[[], Tensor]]


def configuration(op: str, key: str, default: Config, device: torch.device) -> Config:
    """What `op`'s launcher should use at the shape `key` on `device`.

    The user's table goes before the shipped one, and that before `default`; an entry that does not
    have the names of `default` was made for another version of the op and is passed over.
    """
    found = _forced.get(op)
    if found is None and device.type == "cuda":
        found = _table(chip(device)).get(op, {}).get(key)
    return found if found is not None and found.keys() == default.keys() else default


@lru_cache(maxsize=16)
def chip(device: torch.device) -> str:
    """`sm_90` for a CUDA device of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@contextmanager
def forced(op: str, config: Config) -> Iterator[None]:
    """Let `op` be launched with `config` whatever the tables say."""
    before = _forced.get(op)
    _forced[op] = config
    try:
        yield
    finally:
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


def user_table() -> Path:
    """The user's own table, in the cache folder of the system (`XDG_CACHE_HOME`)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "livereel", "tuning.json")


def save(chip: str, found: Mapping[str, Mapping[str, Config]], path: Path) -> None:
    """Put configurations by op and key into the table at `path`, for this Triton's version.

    What was found before for other shapes and chips stays; entries of another Triton's do not.
    """
    table = _read(path)
    ops = table.setdefault(chip, {})
    for op, configs in found.items():
        ops.setdefault(op, {}).update(configs)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    content = {"triton": triton.__version__, "chips": table}
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)
    _table.cache_clear()


def best(
    tunable: Tunable, device: torch.device, timed: Callable[[Callable[[], Tensor]], Sequence[float]]
) -> tuple[Config, float, float] | None:
    """The fastest candidate, its milliseconds, and those of what is used now.

    A candidate that does not launch on this chip, or whose result differs from what the op gives
    now by more than its rounding, is passed over. None when none is left that is faster.
    """
    run = tunable.prepare(device)
    wanted = run()
    now = median(timed(run))
    fastest: tuple[Config, float] | None = None
    for config in tunable.candidates:
        with forced(tunable.op, config):
            try:
                same = _close(run(), wanted)
            except (RuntimeError, triton.runtime.errors.OutOfResources):
                continue  # more registers or shared memory than there are
            took = median(timed(run)) if same else now
        if took < (fastest[1] if fastest else now):
            fastest = config, took
    return None if fastest is None else (*fastest, now)


def _close(x: Tensor, y: Tensor) -> bool:
    """Whether two results of one op in one dtype are the same but for the order of their sums."""
    if not x.is_floating_point():
        return int((x.int() - y.int()).abs().max()) <= 1
    scale = y.float().abs().max()
    error = (x.float() - y.float()).abs().max()
    return bool(error <= 4 * torch.finfo(x.dtype).eps * scale)


@lru_cache(maxsize=8)
def _table(chip: str) -> Mapping[str, Mapping[str, Config]]:
    merged: dict[str, dict[str, Config]] = {}
    for path in (SHIPPED_TABLE, user_table()):
        for op, configs in _read(path).get(chip, {}).items():
            merged.setdefault(op, {}).update(configs)
    return merged


def _read(path: Path) -> Table:
    """The table at `path`, empty when there is none or it is another Triton's."""
    try:
        content: Any = json.loads(path.read_text())
        tuned_with = content["triton"]
        table: Table = {
            chip: {
                op: {
                    key: {name: int(n) for name, n in config.items()}
                    for key, config in keys.items()
                }
                for op, keys in ops.items()
            }
            for chip, ops in content["chips"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is no tuning table and is not used: {error!r}", stacklevel=2)
        return {}
    return table if path == SHIPPED_TABLE or tuned_with == triton.__version__ else {}
