"""Tensors out of torch's pickled files, without running anything the file asks for.

Only `convert` comes here; a model is never loaded from a pickle.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# The states a training run saves side by side, the one to take first.
_STATES = ("generator_ema", "generator", "state_dict", "model", "module")


def read_pickle(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a state dict, mapped from disk, and under which key it lay (None: on top).

    Of a training run's states the averaged generator is preferred. Raises `CheckpointError` when
    the file is missing or corrupt, holds anything but plain data and tensors, or no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: nothing a user can act on
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler raises whatever a broken or hostile file leads it to
        raise CheckpointError(_refusal(path, error)) from error
    state: str | None = None
    if isinstance(value, Mapping):
        state = next((key for key in _STATES if isinstance(value.get(key), Mapping)), None)
        if state is not None:
            value = value[state]
    return _tensors(value, path), state


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"(?:GLOBAL|global) `?([\w.]+)", text)
    if wanted:
        return f"{path} was not loaded: it is not just tensors, but asks for {wanted[1][:80]}"
    # What torch says before this is advice to load the file in a way that runs what it asks for.
    said = text.rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    return f"{path} is not a whole file of tensors: {(said or [type(error).__name__])[0][:160]}"


def _tensors(value: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{path} holds no state dict of a model")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = ", ".join(repr(key)[:40] for key in list(value)[:5])
            raise CheckpointError(f"{path} holds no state dict of a model; its keys are {shown}")
        # A tensor may claim to be larger than its data, by strides of zero.
        if tensor.layout != torch.strided or tensor.is_meta or _claims_too_much(tensor):
            raise CheckpointError(f"{path}: {name[:80]!r} is no plain tensor")
    return dict(value)


def _claims_too_much(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
