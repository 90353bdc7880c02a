"""What a CogVideoX VAE decoder takes, told from its config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...layers.chunks import cut
from .config import CHUNK, CogVideoXVAEConfig

_COPIES = 5
"""Of the widest activations, at the peak."""


@dataclass(frozen=True)
class DecoderSize:
    """As `memory.py` asks for it; areas are pixels', amounts bytes unless said otherwise."""

    config: CogVideoXVAEConfig

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> DecoderSize:
        """Of a VAE with this `config.json`."""
        return cls(CogVideoXVAEConfig.from_dict(values))

    @property
    def spatial(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self.config.spatial_factor

    @property
    def temporal(self) -> int:
        """Frames that a latent frame stands for."""
        return self.config.temporal_compression_ratio

    def conv_caches(self, width: int, height: int) -> int:
        """Numbers in the decoder's caches: two past input frames of each causal convolution."""
        widths = self.config.block_out_channels[::-1]
        area = (width // self.spatial) * (height // self.spatial)
        numbers = area * (self.config.latent_channels + 4 * widths[0])
        convs = 2 * (self.config.layers_per_block + 1)
        for level, (incoming, out) in enumerate(pairwise((widths[0], *widths))):
            numbers += 4**level * area * (incoming + (convs - 1) * out)
        return 2 * (numbers + width * height * widths[-1])

    def latents(self, frames: int) -> int:
        """Latent frames of a clip: its first stands for one frame, each later one for several."""
        return 1 + math.ceil((frames - 1) / self.temporal)

    def part(self, latents: int) -> int:
        """Latent frames of a clip that go through the decoder together, at the most."""
        return max(cut(latents, CHUNK))

    def call(self, width: int, height: int, latents: int, item: int) -> int:
        """The last level's buffers at their peak, and the frames as floats."""
        frames = latents * self.temporal
        widest = max(self.config.block_out_channels[:2])
        return frames * width * height * (widest * _COPIES * item + 3 * 8)
