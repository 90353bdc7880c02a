"""Clips that are denoised as a whole, by models that do not stream.

Shapes: F pixel frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .controls import check_count, check_picture, check_prompt, check_seed
from .errors import InputError
from .memory import shortage_told
from .runners.clips import (
    check_request,
    clip_latents,
    clip_length,
    clip_parts,
    decoded_in_tiles,
    steps_taken,
)
from .runners.torch import TorchRunner
from .sampling.schedule import steps_left

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .runners.clips import ClipRequest
    from .runners.runner import Runner
    from .types import Frames

STEPS, GUIDANCE = 50, 5.0
"""What is taken where nothing else is asked for."""
_MAX_STEPS, _MAX_GUIDANCE = 1000, 100


def check_values(request: ClipRequest) -> None:
    """Raise `InputError` for a value that no model takes."""
    check_prompt(request.prompt)
    check_seed(request.seed)
    check_count("steps", request.steps, 1, _MAX_STEPS)
    steps_left(request.steps, request.strength)
    names = "guidance_scale", "low_noise_guidance_scale"
    for name, scale in zip(names, request.guidance, strict=True):
        if not 0 <= scale <= _MAX_GUIDANCE:
            raise InputError(f"{name} is {scale}; wanted a number from 0 to {_MAX_GUIDANCE}")
    for picture in (request.image, request.last_image):
        if picture is not None:
            check_picture(picture[None], request.width, request.height)
    if request.video is not None:
        check_picture(request.video, request.width, request.height)


@shortage_told()
@torch.inference_mode()
def whole_clip(
    runner: Runner,
    request: ClipRequest,
    scheduler: Mapping[str, Any],
    *,
    clean_start: bool,
    tell: Callable[[int, int], None],
) -> Frames:
    """uint8 frames `[F, H, W, 3]`, by a schedule that `scheduler` describes as diffusers'
    `scheduler_config.json` does.

    With `clean_start` the first latent frame is a picture's, and stays it. `tell(done, total)`
    hears of each step, and then of each part that is decoded. Raises `InputError` for what this
    model does not take.
    """
    assert isinstance(runner, TorchRunner)  # packages hold models that stream
    check_request(runner, request, clean_start=clean_start)
    steps = steps_taken(request)
    parts = clip_parts(runner, clip_length(runner, request.frames))
    clean = clip_latents(
        runner, request, scheduler, clean_start=clean_start,
        done=lambda step: tell(step, steps + len(parts)),
    )  # fmt: skip
    if request.tile:
        tiled = runner.frames(decoded_in_tiles(runner, clean, parts))[: request.frames]
        tell(steps + len(parts), steps + len(parts))
        return tiled
    pixels = np.empty((request.frames, request.height, request.width, 3), np.uint8)
    caches, at = None, 0
    for i, part in enumerate(clean.split(parts, dim=2)):
        decoded, caches = runner.decode(part, caches)
        frames = runner.frames(decoded)[: request.frames - at]
        pixels[at : at + len(frames)] = frames
        at += len(frames)
        tell(steps + i + 1, steps + len(parts))
    return pixels
