"""TAEHV's tiny decoders in place of a video VAE's own: a few 2D convolutions and a frame of memory.

Ollin Boer Bohan, TAEHV (github.com/madebyollin/taehv): `taew2_1` for Wan 2.1, `taecvx` for
CogVideoX, `taew2_2` for Wan 2.2's 4x16x16; state-dict keys are those of its files. Every memory
block sees its input of the frame before, which is the state here. Latents are those that the DiT
works on. A clip's first latent frame gives one frame, each later one four: of what the layers make
of the first, the first three are dropped (upstream keeps them where `taecvx` is given an even
number of latent frames).

Shapes: B batch, C channels, T frames at a layer's rate, H W space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.weights import Weights, check_shapes, weight_files
from ...errors import CheckpointError, InputError
from ...layers.causal_conv import CacheTape, ConvCaches

if TYPE_CHECKING:
    from ...types import VAE

_MOST_CHANNELS = 4096
_BLOCKS = 3  # of memory, on each of the three levels
_TIME = (1, 2, 2)  # frames that a level makes of one
_SPACE = 8


class Memory(nn.Module):
    """Three convolutions of a frame and the one before it, added to the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def step(self, frames: Tensor, batch: int, tape: CacheTape) -> Tensor:
        """`[B T, C, H, W]` to the same."""
        x = frames.unflatten(0, (batch, -1))
        past = tape.take()
        before = torch.cat([torch.zeros_like(x[:, :1]) if past is None else past, x[:, :-1]], dim=1)
        tape.put(x[:, -1:].clone())
        y = self.conv(torch.cat([x, before], dim=2).flatten(0, 1))
        return F.relu(y + frames)


class Grow(nn.Module):
    """`frames` frames of each, by a convolution of single pixels."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B T, C, H, W]` to `[B T frames, C, H, W]`."""
        y: Tensor = self.conv(x)
        return y.reshape(-1, *x.shape[1:])


class Clamp(nn.Module):
    """Softly to -3 .. 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TinyDecoder(nn.Module):
    """Latents that a DiT works on, to frames. `widths` are its levels' channels."""

    def __init__(self, channels: int, widths: Sequence[int], patch: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        layers: list[nn.Module] = [Clamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for level, time in enumerate(_TIME):
            inside, outside = widths[level], widths[level + 1]
            layers += [Memory(inside) for _ in range(_BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), Grow(inside, time)]
            layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False)]
        last = nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1)
        self.decoder = nn.Sequential(*layers, nn.ReLU(), last)

    @classmethod
    def load(
        cls, path: Path, *, device: torch.device | str, dtype: torch.dtype | None
    ) -> TinyDecoder:
        """Read a .safetensors file of TAEHV's, or the one in a folder; its encoder is left out.

        Raises `CheckpointError` when the file is missing, damaged or of another layout.
        """
        with Weights(weight_files(path)) as weights:
            shapes = {name: x for name, x in weights.shapes.items() if name.startswith("decoder.")}
            with torch.device("meta"):
                model = cls(*_sizes(shapes, path))
            wanted = {name: tuple(x.shape) for name, x in model.state_dict().items()}
            # Files may hold rows for more frames than a layer makes: the last ones count.
            growing = re.compile(r"decoder\.\d+\.conv\.weight")
            cut = {
                name: wanted[name]
                for name, shape in shapes.items()
                if growing.fullmatch(name) and name in wanted
                and shape[1:] == wanted[name][1:] and shape[0] % wanted[name][0] == 0
            }  # fmt: skip
            check_shapes(model, {**shapes, **cut}, path)
            state = {
                name: weights.tensor(name)[-wanted[name][0] :].to(device, dtype).clone()
                for name in shapes
            }
        model.load_state_dict(state, strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def forward(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Latents `[B, C, T, H, W]` to frames in [-1, 1], and the new caches."""
        tape = CacheTape(caches)
        batch = len(latents)
        x = latents.transpose(1, 2).flatten(0, 1)
        for layer in self.decoder:
            x = layer.step(x, batch, tape) if isinstance(layer, Memory) else layer(x)
        x = x.unflatten(0, (batch, -1))
        if caches is None:
            x = x[:, _frames_made() - 1 :]
        if self.patch > 1:
            x = F.pixel_shuffle(x, self.patch)
        return x.transpose(1, 2).clamp(0, 1) * 2 - 1, tape.caches()


def _frames_made() -> int:
    one, two, three = _TIME
    return one * two * three


def _sizes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> tuple[int, list[int], int]:
    """Channels of the latents, the levels' widths, and the pixels that come as channels, a side."""
    names = ["decoder.1.weight", *(f"decoder.{i}.weight" for i in (8, 14, 20, 22))]
    found = [shapes.get(name, ()) for name in names]
    if any(
        len(shape) != 4 or not 1 <= min(shape) <= max(shape) <= _MOST_CHANNELS for shape in found
    ):
        raise CheckpointError(f"{path} is no tiny decoder in TAEHV's layout")
    first, *levels, last = found
    patch = {3: 1, 12: 2}.get(last[0])
    if patch is None:
        raise CheckpointError(f"{path} gives {last[0]} numbers a pixel; wanted 3 or 12")
    return first[1], [first[0], *(shape[0] for shape in levels)], patch


class TinyVAE:
    """A VAE whose pictures are made by a tiny decoder; its encoder and scale are its own."""

    def __init__(self, vae: VAE, decoder: TinyDecoder) -> None:
        """Raises `CheckpointError` for a decoder of other latents than the VAE's."""
        sizes = (decoder.channels, _frames_made(), _SPACE * decoder.patch)
        wanted = (vae.channels, vae.temporal_factor, vae.spatial_factor)
        if sizes != wanted:
            raise CheckpointError(
                "the tiny decoder is for latents of {} channels, {} frames and {} pixels of each "
                "side; the VAE's are of {}, {} and {}".format(*sizes, *wanted)
            )
        self._decoder = decoder
        self.encode, self.normalize, self.denormalize = vae.encode, vae.normalize, vae.denormalize
        self.channels, self.temporal_factor, self.spatial_factor = wanted
        self.chunk = vae.chunk
        # Six blocks remember a latent frame each, and three half of one.
        self.decoder_memory = 2 * _BLOCKS + -(-_BLOCKS // 2)

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As a VAE's. Raises `InputError` for other latents."""
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; wanted [B, {self.channels}, T, h, w]"
            )
        frames: tuple[Tensor, ConvCaches] = self._decoder(self.normalize(latents), caches)
        return frames
