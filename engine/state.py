"""A session's whole state, and the bytes it travels in.

Exact snapshots hold every tensor that the next chunk depends on, so that what follows is bitwise
what would have followed. Light ones hold the newest clean latents instead of the KV ring, the conv
caches and the prompt's embedding, which are then computed anew; what follows is close, not equal.

The bytes are a safetensors file whose metadata holds the plain values as JSON: nothing in a
snapshot can run code, and every number and shape is checked before anything is computed from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .config import MAX_GIVEN
from .errors import InputError
from .sampling.noise import SEED_LIMIT
from .sampling.stream import StreamState, first_size
from .sampling.track import check_track
from .sampling.window import LATENT_LIMIT, KVRing

if TYPE_CHECKING:
    from torch import Tensor

    from .runners.runner import Runner
    from .sampling.stream import StreamSampler

FORMAT = 1

_COUNT_LIMIT = 2**63
_LIMITS = {"seed": SEED_LIMIT, "latent": LATENT_LIMIT}
_NUMBERS = (
    "seed", "steps", "width", "height", "noise_offset", "chunk", "latent", "index", "pts",
)  # fmt: skip
_LATENTS = ("recent", "sinks", "anchors", "given", "goal")
"""What light snapshots hold."""


def save_state(state: StreamState, *, model: str, layout: str, light: bool) -> bytes:
    """A snapshot's bytes; `model` names the weights it belongs to, `layout` how its ring and caches
    lie in memory."""
    from safetensors.torch import save

    values: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    values |= {"format": FORMAT, "model": model, "light": light, "prompt": state.prompt}
    values["layout"] = layout
    if state.goal is not None:  # one that is past is as one that is reached now
        values["goal_ahead"] = max(0, state.goal_ahead)
    tensors = {name: getattr(state, name) for name in _LATENTS}
    # The first chunk may be the sinks, or was given, and the file wants memory of each one's own.
    tensors = {name: None if x is None else x.clone() for name, x in tensors.items()}
    if state.track is not None:
        tensors["track"] = state.track[min(state.track_at, len(state.track)) - 1 :].clone()
    if light:
        values["latent"] += 0 if state.pending is None else state.pending.shape[2]
    else:
        tensors |= {"text": state.text, "pending": state.pending}
        tensors |= {f"cache.{i}": cache for i, cache in enumerate(state.caches or ())}
        if state.ring is not None and state.latent:
            tensors |= {"ring.k": state.ring.k, "ring.v": state.ring.v}
    flat = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if tensor is not None
    }
    return save(flat, {"livereel": json.dumps(values)})


def load_state(
    data: bytes, *, model: str, layout: str
) -> tuple[StreamState, dict[str, Tensor], bool]:
    """The numbers in a snapshot's bytes, its tensors as they are, and whether it is a light one.

    One of another layout is made light. `fill_state` puts the two together. Raises `InputError`
    when the bytes are no snapshot, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        values = json.loads(header["__metadata__"]["livereel"])
        light, owner, version = values["light"], values["model"], values["format"]
        numbers = {name: values[name] for name in _NUMBERS}
        numbers["goal_ahead"] = values.get("goal_ahead", 0)
        prompt = values["prompt"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("these bytes are no LiveReel snapshot, or a damaged one") from error
    if version != FORMAT:
        raise InputError(f"the snapshot has format {version!r:.40}; this version reads {FORMAT}")
    if owner != model:
        raise InputError(f"the snapshot belongs to model {owner!r:.80}; this engine runs {model!r}")
    for name, number in numbers.items():
        limit = _LIMITS.get(name, _COUNT_LIMIT)
        if type(number) is not int or not 0 <= number < limit:
            raise InputError(f"the snapshot's {name} is {number!r:.40}, which cannot be")
    if light is not True and values.get("layout", "torch") != layout:
        pending = tensors.get("pending")
        numbers["latent"] += 0 if pending is None or pending.ndim != 5 else pending.shape[2]
        kept = (*_LATENTS, "track")
        tensors, light = {name: tensors[name] for name in kept if name in tensors}, True
    return StreamState(prompt=prompt, **numbers), tensors, light is True


def fill_state(
    state: StreamState,
    tensors: Mapping[str, Tensor],
    sampler: StreamSampler,
    runner: Runner,
    *,
    light: bool,
) -> None:
    """Put a snapshot's tensors into the state that came with them, on the runner's device.

    How many chunks there were fixes which tensors there are and their shapes. Raises `InputError`
    for one that is missing, one too many, or not what this model's sessions hold.
    """
    wanted = _shapes(state, tensors, sampler, runner, light)
    for name in {**wanted, **tensors}:
        found = tensors.get(name)
        shape = None if found is None else tuple(found.shape)
        if shape != wanted.get(name) or not (found is None or found.is_floating_point()):
            raise InputError(
                f"the snapshot's {name:.40} is of shape {shape}; wanted {wanted.get(name)}"
            )

    def take(name: str, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return tensors[name].to(runner.device, dtype) if name in tensors else None

    state.pending, state.recent = take("pending"), take("recent")
    state.sinks, state.anchors = take("sinks"), take("anchors")
    state.given, state.goal = take("given"), take("goal")
    state.track, state.track_at = tensors["track"].double() if "track" in tensors else None, 1
    state.text = take("text", runner.dtype)
    k, v = take("ring.k", runner.dtype), take("ring.v", runner.dtype)
    state.ring = None if k is None or v is None else KVRing(sampler.ring_layout, k, v)
    caches = (take(f"cache.{i}", runner.dtype) for i in range(len(tensors)))
    state.caches = tuple(cache for cache in caches if cache is not None) or None


def _shapes(
    state: StreamState,
    tensors: Mapping[str, Tensor],
    sampler: StreamSampler,
    runner: Runner,
    light: bool,
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that belongs to a state with these numbers."""
    config, channels = sampler.config, sampler.kept_channels
    kept = "recent", "sinks", "anchors", "pending"
    given = tensors.get("given")
    if given is not None and (given.ndim != 5 or not 1 <= given.shape[2] <= MAX_GIVEN):
        raise InputError(f"the snapshot starts from latents of shape {tuple(given.shape)}")
    first = first_size(config, given)
    before, last = _made(state.chunk, first, config.chunk_latents)
    total = before + last
    if state.latent != total and (light or state.latent != before):
        raise InputError(f"the snapshot counts {state.latent} latent frames; wanted {total}")
    latents = {
        "recent": min(total, sampler.recent),
        "sinks": min(total, config.sinks),
        "anchors": len(sampler.old_anchors(total)),
        "given": 0 if given is None else given.shape[2],
        "goal": 1 if "goal" in tensors and config.goal_channels else 0,
        "pending": total - state.latent,
    }
    shapes: dict[str, tuple[int, ...]] = {
        name: (1, channels if name in kept else sampler.channels, count, *sampler.size)
        for name, count in latents.items()
        if count
    }
    track = tensors.get("track")
    if track is not None and config.control_channels:
        check_track(track)
        shapes["track"] = tuple(track.shape)
    if light:
        return shapes
    if "text" in tensors:
        shapes["text"] = (1, config.max_sequence_length, runner.text_encoder.width)
    if state.latent:
        shapes["ring.k"] = shapes["ring.v"] = sampler.ring_shape
    if total:
        caches = enumerate(runner.cache_shapes(*sampler.size))
        shapes |= {f"cache.{i}": shape for i, shape in caches}
    return shapes


def _made(chunks: int, first: int, later: int) -> tuple[int, int]:
    """Latent frames of all of a stream's chunks but the newest, and of the newest."""
    return (0, chunks * first) if chunks < 2 else (first + (chunks - 2) * later, later)
