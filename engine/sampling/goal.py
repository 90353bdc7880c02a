"""The picture that a stream is to arrive at, as channels behind the latents' own and its control's.

A DiT that arrives at pictures is given, beside each noisy latent frame, the picture's latent (as
Wan's first-and-last-frame DiTs see the last picture, and FramePack the frames at a clip's end;
Zhang and Agrawala 2025, arXiv 2504.12626) and, since it cannot see ahead, how far on the way each
of the latent frame's pixel frames is: of the way that was left when the chunk began, the share that
is behind it then. So it need not know how long a chunk or a clip is, and what went astray in one
chunk is made good in those after it. To set out from one place for another it must know places,
where rotary embeddings tell distances only: each latent pixel is told its own (CoordConv; Liu et
al. 2018, arXiv 1807.03247). Zeros leave the stream free.

Shapes: F pixel frames, C channels, T latent frames, H W latent space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..transfer import to_device

_PLACES = 4


def channels(latent: int, factor: int) -> int:
    """Channels of a picture whose latent has `latent`, where a latent frame is `factor` frames."""
    return factor + latent + _PLACES


def factor_of(channels: int, latent: int) -> int:
    """Frames of a latent frame, where a picture has so many channels and its latent `latent`."""
    return channels - latent - _PLACES


def shares(frames: int, ahead: int, *, first: bool) -> Tensor:
    """Of the way to the picture that is left at the frame before a chunk, the share that is behind
    each of the chunk's `frames`: `[F]`, fp32, 1 from the picture on.

    The picture is `ahead` frames after the chunk's first one. To the `first` frame of a stream
    leads no way.
    """
    begun = 0 if first else 1
    left = ahead + begun
    if left <= 0:
        return torch.ones(frames)
    return (torch.arange(begun, begun + frames, dtype=torch.float32) / left).clamp_max(1.0)


def draw(latent: Tensor, shares: Tensor, factor: int) -> Tensor:
    """Channels `[1, factor + C + 4, T, H, W]` of the picture with the normalized `latent`
    `[1, C, 1, H, W]`: before it a plane for each pixel frame of a latent frame, its share in it,
    behind it where each latent pixel is, as sine and cosine once round the height and the width.

    `shares` `[F]` are of whole latent frames, of `factor` frames each; a stream's first latent
    frame, where F says that there is one, stands for one frame, which all its planes show.
    """
    alone = -len(shares) % factor
    shares = torch.cat([shares[:1].expand(alone), shares]).to(latent)
    planes = shares.view(-1, factor).T[None, :, :, None, None]
    count, (height, width) = planes.shape[2], latent.shape[3:]
    parts = planes, latent, to_device(places(height, width), latent.device).to(latent)
    return torch.cat([part.expand(-1, -1, count, height, width) for part in parts], dim=1)


def places(height: int, width: int) -> Tensor:
    """Where each latent pixel is, `[1, 4, 1, H, W]`, fp32: sine and cosine of its y, then x."""
    y, x = ((torch.arange(n) + 0.5) * (2 * math.pi / n) for n in (height, width))
    rows, columns = (torch.stack([angle.sin(), angle.cos()]) for angle in (y, x))
    size = 2, height, width
    both = [rows.unsqueeze(2).expand(size), columns.unsqueeze(1).expand(size)]
    return torch.cat(both)[None, :, None]
