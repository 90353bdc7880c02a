"""The manifest of a package: all that a runtime must know to stream with its graphs.

`manifest.json` holds, in plain JSON:

    manifest   1, the version of this layout
    format     "onnx", "tensorrt", "tensorrt-rtx" or "aoti"
    chips      what the graphs run on: "any", an instruction set ("x86_64-avx512"), GPUs ("sm_89")
    model      name, family (the DiT's class in diffusers) and fingerprint of the weights
    versions   of what wrote it: {"livereel": "0.1.0", "torch": "2.13.0", ...}
    dtype      of the weights, the state and the activations
    stream     the recipe, as in `livereel.json`; its width and height are those of the graphs, and
               where it has `control_channels` or `goal_channels`, the DiT's latents have so many
               more than `latent`
    seed       the rule that noise is drawn by
    latent     sizes and scale of the latents: see `Latent`
    graphs     by name: file, inputs, outputs, and which output is which input of the next call
    files      by path: bytes and sha256 of everything in the folder but the manifest

`livereel.export` documents what each graph computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .config import StreamConfig
from .errors import CheckpointError

Format = Literal["onnx", "tensorrt", "tensorrt-rtx", "aoti"]

MANIFEST = "manifest.json"
VERSION = 1
SEED_RULE = "philox4x32-10 normal(seed, chunk, step)"
"""Names `livereel.engine.sampling.noise.normal`, whose arithmetic `csrc/philox.h` writes down."""
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}

_MOST = 10_000
_MOST_NUMBERS = 1 << 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}){0,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a graph: its name, dtype ("float32") and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One step graph. `state` maps outputs to the inputs that they become in the next call."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Latent:
    """The latents of a package's pictures.

    A latent frame `[channels, height, width]` stands for `temporal_factor` frames (a stream's first
    for one), a latent pixel for `spatial_factor` pixels a side; `height` and `width` are multiples
    of `patch`. The DiT's scale is `(x - mean) / std` of the VAE's, a number for each channel.
    `past` latent frames are what `denoise` sees besides its own, `decoder_memory` as in
    `livereel.engine.types.VAE`, and `text_width` that of the prompt's embedding. The DiT wants
    chunk and past together to be a multiple of `temporal_patch` latent frames, and the VAE to be
    called with `vae_chunk` of them at a time, where that is part of the result.
    """

    channels: int
    height: int
    width: int
    temporal_factor: int
    spatial_factor: int
    patch: int
    past: int
    decoder_memory: int
    text_width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temporal_patch: int = 1
    vae_chunk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them, without those that most models leave at their defaults."""
        values = {**vars(self), "mean": list(self.mean), "std": list(self.std)}
        rare = {name: values.pop(name) for name in _RARE}
        return values | {name: x for name, x in rare.items() if x != _RARE[name]}


_RARE = {"temporal_patch": 1, "vae_chunk": None}


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a file of a package must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds; the module's docstring says what each value is."""

    format: Format
    chips: tuple[str, ...]
    name: str
    family: str
    fingerprint: str
    versions: Mapping[str, str]
    dtype: str
    stream: StreamConfig
    latent: Latent
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileInfo] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the graphs were made for GPUs of some kind."""
        return bool(self.chips) and all(chip.startswith("sm_") for chip in self.chips)

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them; `from_dict` gives the same manifest back."""
        return {
            "manifest": VERSION,
            "format": self.format,
            "chips": list(self.chips),
            "model": {"name": self.name, "family": self.family, "fingerprint": self.fingerprint},
            "versions": dict(self.versions),
            "dtype": self.dtype,
            "stream": self.stream.to_dict(),
            "seed": SEED_RULE,
            "latent": self.latent.to_dict(),
            "graphs": {
                name: {
                    "file": graph.file,
                    "inputs": [{**vars(x), "shape": list(x.shape)} for x in graph.inputs],
                    "outputs": [{**vars(x), "shape": list(x.shape)} for x in graph.outputs],
                    "state": dict(graph.state),
                }
                for name, graph in self.graphs.items()
            },
            "files": {name: vars(info) for name, info in self.files.items()},
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = MANIFEST) -> Manifest:
        """Read what JSON holds. Raises `CheckpointError` that names `source` and the value that is
        missing, unknown, of the wrong type or out of bounds."""
        try:
            return _read(values)
        except _BadValue as bad:
            raise CheckpointError(f"{source}: {bad}") from None


class _BadValue(Exception):
    """A value that cannot be used, told in half a sentence."""


def _read(values: Mapping[str, Any]) -> Manifest:
    if values.get("manifest") != VERSION:
        raise _BadValue(
            f"manifest is {values.get('manifest')!r:.40}; this version of LiveReel reads {VERSION}"
        )
    names = (
        "manifest", "format", "chips", "model", "versions", "dtype", "stream", "seed", "latent",
        "graphs", "files",
    )  # fmt: skip
    top = _object(values, "the manifest", names)
    if top["format"] not in get_args(Format):
        raise _BadValue(f"format must be one of {get_args(Format)}, got {top['format']!r:.40}")
    if top["seed"] != SEED_RULE:
        raise _BadValue(f"seed must be {SEED_RULE!r}, got {top['seed']!r:.80}")
    model = _object(top["model"], "model", ("name", "family", "fingerprint"))
    try:
        stream = StreamConfig.from_dict(_object(top["stream"], "stream"), source="stream")
    except CheckpointError as error:
        raise _BadValue(str(error)) from None
    files = {
        _match(_PATH, name, "a file's name"): FileInfo(
            bytes=_whole(info["bytes"], f"bytes of {name}", 0, 1 << 50),
            sha256=_match(_SHA256, info["sha256"], f"sha256 of {name}"),
        )
        for name, entry in _object(top["files"], "files").items()
        for info in (_object(entry, f"files.{name:.99}", ("bytes", "sha256")),)
    }
    manifest = Manifest(
        format=top["format"],
        chips=tuple(_match(_NAME, chip, "a chip") for chip in _list(top["chips"], "chips")),
        name=_text(model["name"], "model.name"),
        family=_match(_NAME, model["family"], "model.family"),
        fingerprint=_match(_NAME, model["fingerprint"], "model.fingerprint"),
        versions={
            _text(name, "a name in versions"): _text(version, f"versions.{name:.40}")
            for name, version in _object(top["versions"], "versions").items()
        },
        dtype=_dtype(top["dtype"], "dtype", floats=True),
        stream=stream,
        latent=_latent(top["latent"]),
        graphs={
            _match(_NAME, name, "a graph's name"): _graph(graph, f"graphs.{name:.40}")
            for name, graph in _object(top["graphs"], "graphs").items()
        },
        files=files,
    )
    for name, graph in manifest.graphs.items():
        if graph.file not in files:
            raise _BadValue(f"graphs.{name} names the file {graph.file!r}, which files lacks")
    return manifest


def _latent(value: object) -> Latent:
    given = _object(value, "latent")
    names = tuple(
        name for name in Latent.__dataclass_fields__ if name not in _RARE or name in given
    )
    found = _object(given, "latent", names)
    numbers = {
        name: _whole(found[name], f"latent.{name}", 0 if name == "past" else 1, 1 << 20)
        for name in names
        if name not in ("mean", "std")
    }
    scale: dict[str, tuple[float, ...]] = {}
    for name in ("mean", "std"):
        entries = _list(found[name], f"latent.{name}")
        real = all(type(x) in (int, float) and math.isfinite(x) for x in entries)
        if not real or len(entries) != numbers["channels"]:
            raise _BadValue(f"latent.{name} must be {numbers['channels']} numbers")
        scale[name] = tuple(float(x) for x in entries)
    if min(scale["std"]) <= 0:
        raise _BadValue("latent.std must lie above 0")
    return Latent(**numbers, **scale)  # type: ignore[arg-type]


def _graph(value: object, name: str) -> Graph:
    found = _object(value, name, ("file", "inputs", "outputs", "state"))
    inputs = tuple(_tensor(x, f"{name}.inputs") for x in _list(found["inputs"], f"{name}.inputs"))
    outputs = tuple(
        _tensor(x, f"{name}.outputs") for x in _list(found["outputs"], f"{name}.outputs")
    )
    state = _object(found["state"], f"{name}.state")
    given, made = ({x.name: x for x in specs} for specs in (inputs, outputs))
    if len(given) != len(inputs) or len(made) != len(outputs):
        raise _BadValue(f"{name} has two tensors of one name")
    for output, entry in state.items():
        if output not in made or not isinstance(entry, str):
            raise _BadValue(f"{name}.state maps {output!r:.40}, which is no output, or to no name")
        if entry in given and replace(given[entry], name=output) != made[output]:
            raise _BadValue(f"{name}.state maps {output!r} to an input of another shape or dtype")
    return Graph(
        file=_match(_PATH, found["file"], f"{name}.file"),
        inputs=inputs,
        outputs=outputs,
        state=dict(state),
    )


def _tensor(value: object, name: str) -> TensorSpec:
    found = _object(value, name, ("name", "dtype", "shape"))
    shape = tuple(
        _whole(x, f"{name}.shape", 0, 1 << 31) for x in _list(found["shape"], f"{name}.shape")
    )
    if math.prod(shape) > _MOST_NUMBERS or len(shape) > 8:
        raise _BadValue(f"{name} has a tensor of shape {shape!s:.80}, more than any model's")
    return TensorSpec(
        name=_match(_NAME, found["name"], f"{name}.name"),
        dtype=_dtype(found["dtype"], f"{name}.dtype"),
        shape=shape,
    )


def _object(value: object, name: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST:
        raise _BadValue(f"{name} must be an object of at most {_MOST} values")
    if keys is not None and (wrong := set(keys).symmetric_difference(value)):
        key = sorted(wrong)[0]
        raise _BadValue(f"{name} {'lacks' if key in keys else 'has an unknown'} {key[:64]!r}")
    return value


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise _BadValue(f"{name} must be a list of at most {_MOST} values")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise _BadValue(f"{name} must be a text of 1 to 200 characters, got {value!r:.40}")
    return value


def _match(pattern: re.Pattern[str], value: object, name: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _BadValue(f"{name} cannot be {value!r:.80}")
    return value


def _dtype(value: object, name: str, *, floats: bool = False) -> str:
    known = [dtype for dtype in DTYPE_BYTES if "float" in dtype or not floats]
    if not isinstance(value, str) or value not in known:
        raise _BadValue(f"{name} must be one of {', '.join(known)}, got {value!r:.40}")
    return value


def _whole(value: object, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _BadValue(f"{name} must be a whole number from {low} to {high}, got {value!r:.40}")
    return value
