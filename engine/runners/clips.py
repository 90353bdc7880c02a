"""Whole clips by a loaded model: from a prompt, and from pictures or a clip if they are given.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import CLIP_PART
from ..errors import InputError
from ..layers.chunks import cut
from ..layers.pixels import to_float
from ..sampling import schedule
from ..sampling.clip import sample_clip
from ..sampling.conditions import CleanStart, Conditioned, Experts
from ..sampling.named import scheduler_of
from ..sampling.noise import normal
from .tiled import Tile, decode_tiled, encode_tiled

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Denoiser, Frames, ImageDenoiser
    from .runner import Runner
    from .torch import TorchRunner


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """A clip that is wanted.

    `frames` of `height` x `width` pixels. `guidance` are the scales for the DiT and, in a model of
    two, for the one of low noise. `image` and `last_image` are the first and the last frame, uint8
    `[H, W, 3]`; `video`, uint8 `[frames, H, W, 3]`, is changed by the last `strength` of the steps.
    `tile` says that the VAE works in tiles. Of what a DiT takes `told_channels` for it is told
    nothing in a clip.
    """

    prompt: str
    negative: str
    frames: int
    height: int
    width: int
    seed: int
    steps: int
    guidance: tuple[float, float]
    text_length: int
    image: Frames | None = None
    last_image: Frames | None = None
    video: Frames | None = None
    strength: float = 1.0
    tile: bool = False
    told_channels: int = 0


def check_request(runner: TorchRunner, request: ClipRequest, *, clean_start: bool) -> None:
    """Raise `InputError` for pictures that this model has no use for, or lacks."""
    dit = runner.transformer
    pictured = dit.condition_channels > request.told_channels
    wants = pictured or dit.image_width is not None
    if wants and request.image is None:
        raise InputError("this model starts from a picture: give it an image")
    if wants and request.video is not None:
        raise InputError("this model starts from pictures, not from a video")
    if request.image is not None and not (wants or clean_start):
        raise InputError("this model makes clips from text alone; leave the image out")
    if request.last_image is None:
        if dit.images == 2:
            raise InputError("this model wants a first and a last picture: give it a last_image")
        return
    factor = runner.vae.temporal_factor
    one = dit.images == 1 or (dit.image_width is not None and dit.images != 2)
    if not pictured or one:
        raise InputError("this model knows no last picture; leave the last_image out")
    if request.frames == 1 or (request.frames - 1) % factor:
        near = max(1, (request.frames - 1) // factor) * factor + 1
        raise InputError(
            f"a clip that ends with a picture has 1 + a multiple of {factor} frames, such as "
            f"{near}; got {request.frames}"
        )


def clip_latents(
    runner: TorchRunner,
    request: ClipRequest,
    scheduler: Mapping[str, Any],
    *,
    clean_start: bool,
    done: Callable[[int], None],
) -> Tensor:
    """Clean latents `[1, C, T, h, w]` of a clip that `check_request` lets pass.

    `scheduler` is the folder's `scheduler_config.json`; `done` is called with the steps taken.
    """
    sampling = scheduler_of(scheduler)
    plan = sampling.timetable(scheduler, request.steps)
    factor, space = runner.vae.temporal_factor, runner.vae.spatial_factor
    wanted = clip_length(runner, request.frames)
    # Patches in time want a multiple: what there is too much comes first, and is dropped.
    count = wanted + -wanted % runner.transformer.temporal_patch
    shape = (1, runner.transformer.channels, count, request.height // space, request.width // space)
    start = None
    if request.video is not None:
        plan = plan.tail(request.strength)
        missing = (wanted - 1) * factor + 1 - len(request.video)
        video = np.concatenate([request.video, request.video[-1:].repeat(missing, axis=0)])
        start = (
            _encoded_in_tiles(runner, video)
            if request.tile
            else torch.cat(list(encoded(runner, video, runner.parts_at_once)), dim=2)
        )
        start = torch.cat([start[:, :, :1]] * (count - wanted) + [start], dim=2)
    denoiser = _denoiser(runner, request, shape, clean_start)
    high, low = (sampling.guidance(scale, request.steps) for scale in request.guidance)
    split = runner.low_noise is not None
    guided = request.guidance[0] > 1 or (split and request.guidance[1] > 1)
    clean = sample_clip(
        denoiser,
        noise=lambda step: normal(request.seed, 0, step, shape).to(runner.device),
        text=runner.encode_text(request.prompt, request.text_length),
        negative_text=runner.encode_text(request.negative, request.text_length) if guided else None,
        schedule=plan,
        solver=sampling.solver,
        guidance=lambda t: (low if split and t < runner.boundary else high)(t),
        start=start,
        callback=lambda step, _: done(step + 1),
    )
    clean = denoiser.put(clean) if isinstance(denoiser, CleanStart) else clean
    return clean[:, :, count - wanted :]


def clip_length(runner: Runner, frames: int) -> int:
    """Latent frames of a clip of so many frames."""
    return -(-(frames - 1) // runner.vae.temporal_factor) + 1


def clip_parts(runner: TorchRunner, latents: int) -> list[int]:
    """How many of a clip's latent frames go through the decoder at a time."""
    chunk, at_once = runner.vae.chunk, runner.parts_at_once
    if chunk is not None:
        return _joined(cut(latents, chunk), at_once)
    part = at_once * CLIP_PART
    whole, rest = divmod(latents, part)
    return [part] * whole + [rest] * (rest > 0)


def steps_taken(request: ClipRequest) -> int:
    """Steps that `clip_latents` counts."""
    if request.video is None:
        return request.steps
    return schedule.steps_left(request.steps, request.strength)


def encoded(runner: Runner, video: Frames, at_once: int = 1) -> Iterator[Tensor]:
    """Normalized latents of uint8 frames `[F, H, W, 3]`, F = 1 + 4n, so many parts at a time."""
    caches, at = None, 0
    for size in _frame_parts(runner, len(video), at_once):
        latents, caches = runner.encode(to_float(video[at : at + size]), caches)
        at += size
        yield latents


def _frame_parts(runner: Runner, frames: int, at_once: int) -> list[int]:
    """How many frames go through the encoder at a time."""
    factor, chunk = runner.vae.temporal_factor, runner.vae.chunk
    if chunk is not None:
        return _joined(cut(frames, factor * chunk), at_once)
    step = factor * CLIP_PART * at_once
    return [1, *(min(step, frames - first) for first in range(1, frames, step))]


def _joined(chunks: Sequence[int], at_once: int) -> list[int]:
    return [sum(chunks[i : i + at_once]) for i in range(0, len(chunks), at_once)]


def decoded_in_tiles(runner: Runner, latents: Tensor, parts: Sequence[int]) -> Tensor:
    """A clip's frames `[1, 3, F, H, W]` in [-1, 1]."""
    factor = runner.vae.spatial_factor
    return decode_tiled(runner.decode, latents, parts, factor=factor, tile=Tile())


def _encoded_in_tiles(runner: TorchRunner, video: Frames) -> Tensor:
    parts = _frame_parts(runner, len(video), runner.parts_at_once)
    factor = runner.vae.spatial_factor
    return encode_tiled(runner.encode, to_float(video), parts, factor=factor, tile=Tile())


def _denoiser(
    runner: TorchRunner, request: ClipRequest, shape: Sequence[int], clean_start: bool
) -> Denoiser | CleanStart:
    dit: ImageDenoiser = runner.transformer
    if runner.low_noise is not None:
        dit = Experts(runner.transformer, runner.low_noise, runner.boundary)
    batch, _, count, *space = shape
    if request.told_channels:
        zeros = torch.zeros(batch, request.told_channels, count, *space, device=runner.device)
        return Conditioned(dit, zeros, None)
    if request.image is None:
        return dit
    first = to_float(request.image[None])
    if clean_start:
        return CleanStart(dit, runner.encode(first)[0])
    shown = [request.image]
    last = None
    if request.last_image is not None:
        shown.append(request.last_image)
        last = to_float(request.last_image[None])
    channels = image = None
    if runner.transformer.condition_channels:
        channels = runner.transformer.picture_condition(
            runner.encode_picture, first, last, count, runner.vae.temporal_factor
        )
    if runner.image_encoder is not None:
        image = runner.image_encoder.encode(shown).flatten(0, 1).unsqueeze(0)
    return Conditioned(dit, channels, image)
