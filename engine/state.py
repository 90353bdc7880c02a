"""A session's whole state, and the bytes it travels in.

Exact snapshots hold every tensor that the next chunk depends on, so that what follows is bitwise
what would have followed. Light ones hold the clean latents of the window instead of the KV ring and
the conv caches, which are then computed anew; what follows is close, not equal.

The bytes are a safetensors file whose metadata holds the plain values as JSON: nothing in a
snapshot can run code, and every number is checked before memory is spent on it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError
from .sampling.stream import WARM_UP, StreamState
from .sampling.window import KVRing, WindowLayout

if TYPE_CHECKING:
    from torch import Tensor

    from .runners.torch import TorchRunner
    from .sampling.stream import StreamSampler
    from .types import KV

FORMAT = 1
_LIMIT = 2**63


_NUMBERS = (
    "seed", "steps", "width", "height", "noise_offset", "chunk", "latent", "index", "pts",
)  # fmt: skip
_TENSORS = ("text", "pending", "recent", "sinks", "picture")


def save_state(state: StreamState, *, model: str, light: bool) -> bytes:
    """A snapshot's bytes; `model` names the weights it belongs to."""
    from safetensors.torch import save

    tensors = {name: value for name in _TENSORS if (value := getattr(state, name)) is not None}
    values: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    values |= {"format": FORMAT, "model": model, "light": light, "prompt": state.prompt}
    if light:
        pending = tensors.pop("pending", None)
        values["latent"] += 0 if pending is None else pending.shape[2]
    else:
        if state.ring is not None:
            tensors |= {"ring.k": state.ring.k, "ring.v": state.ring.v}
            values |= {
                "ring.sinks": state.ring.layout.sinks,
                "ring.recent": state.ring.layout.recent,
            }
        for i, cache in enumerate(state.caches or ()):
            tensors[f"cache.{i}"] = cache
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(flat, {"livereel": json.dumps(values)})


def load_state(data: bytes, *, model: str) -> tuple[StreamState, bool]:
    """The state in a snapshot's bytes, and whether it is a light one.

    Raises `InputError` when the bytes are no snapshot, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        values = json.loads(header["__metadata__"]["livereel"])
        light, owner, version = bool(values["light"]), values["model"], values["format"]
        numbers = {name: values[name] for name in _NUMBERS}
        prompt = values["prompt"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError("these bytes are no LiveReel snapshot, or a damaged one") from error
    if version != FORMAT:
        raise InputError(f"the snapshot has format {version}; this version reads {FORMAT}")
    if owner != model:
        raise InputError(f"the snapshot belongs to model {owner!r}; this engine runs {model!r}")
    sane = all(isinstance(n, int) and 0 <= n < 2 * _LIMIT for n in numbers.values())
    if not sane or not isinstance(prompt, str):
        raise InputError("the snapshot's numbers are out of range")
    state = StreamState(prompt=prompt, **numbers)
    for name in _TENSORS:
        setattr(state, name, tensors.get(name))
    if "ring.k" in tensors and "ring.v" in tensors:
        layout = WindowLayout(int(values["ring.sinks"]), int(values["ring.recent"]))
        state.ring = KVRing(layout, tensors["ring.k"], tensors["ring.v"])
    caches = [tensors[f"cache.{i}"] for i in range(len(tensors)) if f"cache.{i}" in tensors]
    state.caches = tuple(caches) or None
    return state, light


def check_state(state: StreamState, sampler: StreamSampler, runner: TorchRunner, text: KV) -> None:
    """Move a loaded state to the runner's device, having checked each tensor's shape.

    Raises `InputError` when one is not what this model's sessions hold.
    """
    config, (height, width) = sampler.config, sampler.size
    longest = max(config.window, config.sinks, WARM_UP)
    for name in ("pending", "recent", "sinks", "picture"):
        latents: Tensor | None = getattr(state, name)
        if latents is None:
            continue
        frame = (1, sampler.channels, latents.shape[2] if latents.ndim == 5 else 0, height, width)
        if latents.shape != frame or not 1 <= latents.shape[2] <= longest:
            raise InputError(f"the snapshot's {name} latents have shape {tuple(latents.shape)}")
        setattr(state, name, latents.to(runner.device, torch.float32))
    if not 1 <= state.steps <= len(config.timesteps):
        raise InputError(
            f"the snapshot runs {state.steps} steps; 1 to {len(config.timesteps)} work"
        )
    if state.text is not None:
        if state.text.ndim != 3 or state.text.shape[:2] != (1, config.max_sequence_length):
            raise InputError(f"the snapshot's text has shape {tuple(state.text.shape)}")
        state.text = state.text.to(runner.device, runner.dtype)
    if state.ring is not None:
        wanted = tuple(sampler.blank_ring(text).k.shape)
        if state.ring.layout != sampler.layout or not (
            tuple(state.ring.k.shape) == tuple(state.ring.v.shape) == wanted
        ):
            raise InputError(f"the snapshot's KV ring has shape {tuple(state.ring.k.shape)}")
        state.ring.k = state.ring.k.to(runner.device, runner.dtype)
        state.ring.v = state.ring.v.to(runner.device, runner.dtype)
    if state.caches is not None:
        blank = torch.zeros(1, sampler.channels, 1, height, width)
        shapes = [cache.shape for cache in runner.decode(blank)[1]]
        if shapes != [cache.shape for cache in state.caches]:
            raise InputError("the snapshot's conv caches are not those of this model's decoder")
        state.caches = tuple(cache.to(runner.device, runner.dtype) for cache in state.caches)
