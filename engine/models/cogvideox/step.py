"""One pass of the CogVideoX DiT over a chunk behind clean latents, at a fixed shape.

What exported graphs compute: `livereel.engine.sampling.windowed` with the place of every latent
frame as data, so that one graph serves a stream from its second chunk on.

Shapes: C channels, P latent frames of the past, T of the chunk, H W latent space, t patches along
time, n tokens of a patch in time, L text tokens, E width of the text, D hidden width, d head width;
batch 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...layers.attention import attention
from ...layers.rope import RopeTable
from .positions import rotations, waves
from .transformer import Stream

if TYPE_CHECKING:
    from .transformer import CogVideoXTransformer


class CogVideoXStep(nn.Module):
    """`CogVideoXTransformer.forward` over a clip of past and chunk, some of whose past may be
    missing.

    Raises `InputError` for a model that stores its positions, and for a past and a chunk that
    together patches do not tile.
    """

    cos: Tensor
    sin: Tensor
    waves: Tensor

    def __init__(
        self, model: CogVideoXTransformer, past: int, frames: int, height: int, width: int
    ) -> None:
        super().__init__()
        config = model.config
        if config.use_learned_positional_embeddings:
            raise InputError("a model that stores its positions cannot be exported")
        side, self.depth = config.patch_size, config.temporal_patch
        if (past + frames) % self.depth:
            raise InputError(
                f"this model's chunks, with what they see of the past, must be a multiple of "
                f"{self.depth} latent frames, got {past + frames}"
            )
        self.model, self.past, self.frames = model, past, frames
        self.grid = height // side, width // side
        patches, cpu = (past + frames) // self.depth, torch.device("cpu")
        if config.use_rotary_positional_embeddings:
            rope = rotations(config, patches, *self.grid, device=cpu)
            for name, table in (("cos", rope.cos), ("sin", rope.sin)):
                self.register_buffer(name, table.unflatten(0, (patches, -1)))
        else:
            self.register_buffer("waves", waves(config, patches, *self.grid, device=cpu))

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, past: Tensor, positions: Tensor
    ) -> Tensor:
        """Velocity of the latents' shape, fp32.

        `latent` `[1, C, T, H, W]` fp32, `timestep` `[1]` on 0..999, `text` `[1, L, E]`, `past`
        `[1, C, P, H, W]` fp32, clean. `positions` `[P + T]` has the place of each latent frame,
        those of the past first: 0 is the oldest one seen, and -1 one that is not there. Where a
        patch has several latent frames, they are in order and their first one's place is its own.
        """
        model = self.model
        clip = torch.cat([past, latent], dim=2) if self.past else latent
        clean = timestep.new_zeros(1, self.past)
        times = torch.cat([clean, timestep.unsqueeze(1).expand(1, self.frames)], dim=1)
        time = model.time(times)
        first = positions[:: self.depth]
        at = first.clamp_min(0) // self.depth
        video = model.patch_embed.patches(clip.to(model.dtype))
        rope = None
        if model.config.use_rotary_positional_embeddings:
            cos, sin = (x.index_select(0, at).flatten(0, 1) for x in (self.cos, self.sin))
            rope = RopeTable(cos, sin)
        else:
            video = video + self.waves.index_select(0, at).to(model.dtype)
        x = Stream(model.patch_embed.text(text.to(model.dtype)), video)
        missing = torch.where(first < 0, -math.inf, 0.0).to(model.dtype)
        over_video = missing.unsqueeze(1).expand(-1, video.shape[2]).flatten()
        bias = torch.cat([over_video.new_zeros(text.shape[1]), over_video])
        for block in model.transformer_blocks:
            x = block(x, time, rope, partial(attention, bias=bias))
        whole = model.unpatch(model.head(x.video, time), *self.grid)
        return whole[:, :, self.past :].float()
