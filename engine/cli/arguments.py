"""Options that several commands share, each checked as it is read."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .. import memory
from ..checkpoint.folder import DEMO, ModelFolder, open_folder
from ..config import MAX_FPS, MAX_SIDE, MIN_FPS
from ..errors import InputError
from ..package import Package, is_package, read_manifest
from ..text.cleaning import MAX_CHARACTERS

if TYPE_CHECKING:
    from ..engine import Engine

MAX_SECONDS = 24 * 3600.0

DTYPES = ("auto", *memory.DTYPE_BYTES)
LOADED = (*DTYPES, "fp8")
"""What a model may be loaded in."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--device` and `--dtype`."""
    parser.add_argument(
        "--model",
        default="demo",
        metavar="MODEL",
        help='"demo", a model folder in diffusers\' layout, or a package (see livereel export)',
    )
    parser.add_argument(
        "--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--dtype",
        choices=LOADED,
        default="auto",
        help="of weights and state (default: auto); fp8 is bfloat16 with the DiT's large products "
        "in fp8, for Hopper GPUs and newer ones",
    )


def add_runner(parser: argparse.ArgumentParser) -> None:
    """`--decoder` and `--provider`."""
    parser.add_argument(
        "--decoder",
        type=decoder,
        default="own",
        help='what makes pictures of latents: the VAE\'s "own", "tiny", which lies in the model\'s '
        "tiny_decoder/, or a .safetensors file of TAEHV's (default: own)",
    )
    parser.add_argument(
        "--provider",
        choices=("auto", "cpu", "cuda", "tensorrt"),
        default="auto",
        help="what onnxruntime runs an ONNX package by (default: auto, the device's own)",
    )


def seconds(text: str) -> float:
    """A length of time."""
    return _above_zero(text, MAX_SECONDS)


def minutes(text: str) -> float:
    """A length of time, in minutes."""
    return _above_zero(text, MAX_SECONDS / 60)


def _above_zero(text: str, high: float) -> float:
    value = _float(text)
    if not 0 < value <= high:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and at most {high:g} (a day), got {text!r}"
        )
    return value


def lora(text: str) -> tuple[str, float]:
    """PATH or PATH:STRENGTH."""
    path, _, strength = text.rpartition(":")
    if not path or not re.fullmatch(r"[+-]?\d{1,3}(\.\d{0,6})?", strength):
        path, strength = text, "1"
    _check_weights(path)
    return path, float(strength)


def decoder(text: str) -> str:
    """What makes pictures of latents: "own", "tiny", or a file of weights."""
    if text not in ("own", "tiny"):
        _check_weights(text)
    return text


def _check_weights(name: str) -> None:
    """Refuse what is no whole file of weights, before a model is loaded that they are for."""
    from safetensors import SafetensorError, safe_open

    path = Path(name)
    if path.is_dir():
        return
    try:
        with safe_open(name, framework="np"):
            return
    except (SafetensorError, OSError, ValueError) as error:
        what = f"is not a whole safetensors file: {error}" if path.exists() else "does not exist"
    raise argparse.ArgumentTypeError(f"{name:.200} {what}")


def strength(text: str) -> float:
    """How much of a video is made anew."""
    value = _float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return value


def fps(text: str) -> float:
    """Frames a second."""
    value = _float(text)
    if not MIN_FPS <= value <= MAX_FPS:
        raise argparse.ArgumentTypeError(
            f"must be a number from {MIN_FPS:g} to {MAX_FPS:g}, got {text!r}"
        )
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for whole numbers from `low` to `high`, both included."""

    def read(text: str) -> int:
        if not (re.fullmatch(r"[+-]?\d{1,20}", text) and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low} to {high}, got {text!r}"
            )
        return int(text)

    return read


def prompt(text: str) -> str:
    """A prompt that says something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; say what the video should show")
    if len(text) > MAX_CHARACTERS:
        raise argparse.ArgumentTypeError(
            f"has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        )
    return text


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    found = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, such as 128x128, got {text!r}")
    return int(found[1]), int(found[2])


def device(text: str) -> str:
    """A torch device that LiveReel runs on."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def resolve(device: str, dtype: str) -> tuple[str, str]:
    """What "auto" means on this machine. Imports torch.

    Raises `ResourceError` for a GPU that is not there.
    """
    from ..runners.torch import pick_device, pick_dtype

    picked = pick_device(device)
    return str(picked), str(pick_dtype(dtype, picked)).removeprefix("torch.")


def load_engine(options: argparse.Namespace) -> Engine:
    """Load the model that `add_model`'s and `add_runner`'s options name. Imports torch, which
    takes seconds."""
    from ..engine import Engine

    return Engine.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        decoder=options.decoder,
        provider=options.provider,
    )


def find_model(name: str) -> ModelFolder:
    """Open a model's folder or a package, whose files are checked when it is loaded. Raises
    `InputError` when there is none."""
    path = DEMO if name == "demo" else Path(name)
    if not path.exists():
        raise InputError(f'unknown model {name!r}: give "demo" or the path of a model folder')
    if is_package(path):
        return Package(path=path, manifest=read_manifest(path)).folder
    return open_folder(path)


def fit_size(wanted: tuple[int, int] | None, folder: ModelFolder) -> tuple[int, int]:
    """The picture size to make, by default the model's own.

    Raises `InputError`, which names sizes near by, unless both sides are multiples of its step.
    """
    if wanted is None:
        return folder.stream.width, folder.stream.height
    own = (folder.stream.width, folder.stream.height)
    if folder.exported and wanted != own:
        raise InputError(
            f"size {wanted[0]}x{wanted[1]}: this package makes {own[0]}x{own[1]}; "
            f"livereel export --size writes one that does"
        )
    step = memory.size_step(folder)
    below = [max(step, side // step * step) for side in wanted]
    above = [max(step, -(-side // step) * step) for side in wanted]
    if below != above or below != list(wanted):
        near = dict.fromkeys(f"{width}x{height}" for width, height in (below, above))
        raise InputError(
            f"size {wanted[0]}x{wanted[1]} does not fit this model: width and height must be "
            f"multiples of {step}, such as {' or '.join(near)}"
        )
    if max(wanted) > MAX_SIDE:
        raise InputError(f"size {wanted[0]}x{wanted[1]}: a side has at most {MAX_SIDE} pixels")
    return wanted


def check_file(path: Path) -> None:
    """Raise `InputError` now rather than after an hour's work."""
    place = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"cannot write {path}: name a file in a folder that exists")
