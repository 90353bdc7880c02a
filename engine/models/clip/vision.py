"""A picture's tokens through a CLIP vision tower, as image-to-video DiTs read them.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021). The
tower is transformers'; what goes in and which layer comes out is here. Local files and safetensors
only.

Shapes: N pictures, H W space, M tokens (patches and one for the whole), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...checkpoint.folder import ModelFolder, read_json
from ...checkpoint.load import build
from ...checkpoint.weights import KeyMap, load_weights
from ...errors import CheckpointError, InputError
from ..fields import check_numbers, check_whole, refuse_others

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

    from ...types import Frames

_MOST = {"hidden_size": 8192, "intermediate_size": 65536, "num_hidden_layers": 128,
         "num_attention_heads": 256, "image_size": 1024, "patch_size": 256,
         "projection_dim": 65536}  # fmt: skip
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_SIDE, _MAX_ASPECT = 2048, 16


class CLIPVision:
    """The registry's name for transformers' `CLIPVisionModel`, imported when one is built."""

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> CLIPVisionModel:
        """Build from a transformers `config.json`; `CheckpointError` when that describes none."""
        from transformers import CLIPVisionModel

        return cast("CLIPVisionModel", _built(CLIPVisionModel, values))


class CLIPVisionProjected:
    """The same for `CLIPVisionModelWithProjection`, whose projection is of no use here."""

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> nn.Module:
        """See `CLIPVision.from_config`."""
        from transformers import CLIPVisionModelWithProjection

        return _built(CLIPVisionModelWithProjection, values)


def _built(kind: Callable[[Any], Any], values: Mapping[str, Any]) -> nn.Module:
    from transformers import CLIPVisionConfig

    for name, most in _MOST.items():
        if name in values:
            check_whole(name, values[name], most)
    try:
        model: nn.Module = kind(CLIPVisionConfig.from_dict(dict(values)))
    except Exception as error:  # whatever the library makes of a config that it did not write
        raise CheckpointError(f"no CLIP vision tower can be built: {error}") from error
    for module in model.modules():
        if "position_ids" in module._buffers:  # no file has these
            count = cast(int, module.num_positions)
            module.position_ids = torch.arange(count, device="cpu").unsqueeze(0)
    return model


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the tower takes: its shorter side to `side` pixels, the middle
    `crop` x `crop` cut out, values normalized by `mean` and `std`."""

    side: int = 224
    crop: int = 224
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """From a `preprocessor_config.json`. Raises `CheckpointError` for another way than CLIP's,
        or for sizes beyond what a tower has."""
        values = read_json(path)
        refuse_others(
            values,
            {
                "do_resize": True, "do_center_crop": True, "do_rescale": True,
                "do_normalize": True, "resample": int(Image.Resampling.BICUBIC),
            },
        )  # fmt: skip
        side, crop = values.get("size", 224), values.get("crop_size", 224)
        side = side.get("shortest_edge") if isinstance(side, dict) else side
        crop = crop.get("height") if isinstance(crop, dict) else crop
        mean, std = values.get("image_mean", _MEAN), values.get("image_std", _STD)
        mean, std = (tuple(x) if isinstance(x, list) else x for x in (mean, std))
        check_whole("size", side, _MAX_SIDE)
        assert isinstance(side, int)
        check_whole("crop_size", crop, side)
        assert isinstance(crop, int)
        check_numbers("image_mean", mean, length=3, above=-1e6)
        check_numbers("image_std", std, length=3, above=0)
        return cls(side, crop, mean, std)

    def __call__(self, picture: Frames) -> Tensor:
        """A uint8 picture `[H, W, 3]` to `[3, crop, crop]`."""
        height, width = picture.shape[:2]
        short = min(height, width)
        if max(height, width) > _MAX_ASPECT * short:
            raise InputError(
                f"the picture is {width}x{height}; a side may be {_MAX_ASPECT} times the other"
            )
        size = (int(width * self.side / short), int(height * self.side / short))
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        cut = image.crop((left, top, left + self.crop, top + self.crop))
        values = torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0).permute(2, 0, 1)
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        return (values - mean) / std


@dataclass(frozen=True)
class ImageEncoder:
    """The tower and what goes before it."""

    model: CLIPVisionModel
    preprocessing: Preprocessing

    @classmethod
    def load(
        cls, folder: ModelFolder, *, device: torch.device | str, dtype: torch.dtype
    ) -> ImageEncoder:
        """Read `image_encoder/` and `image_processor/` of a model's folder.

        Raises `CheckpointError` when either is missing, corrupt or of another kind.
        """
        component = folder.component("image_encoder")
        model = build(component.class_name, component.config, component.path / "config.json")
        load_weights(model, component.path, device=device, dtype=dtype, key_map=_key_map(model))
        preprocessing = Preprocessing.read(
            folder.path / "image_processor" / "preprocessor_config.json"
        )
        return cls(cast("CLIPVisionModel", model.to(device)), preprocessing)

    @property
    def width(self) -> int:
        """D of its tokens."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Frames]) -> Tensor:
        """Uint8 pictures `[H, W, 3]` to tokens `[N, M, D]` of the last layer but one."""
        values = torch.stack([self.preprocessing(picture) for picture in pictures])
        values = values.to(self.model.device, self.model.dtype)
        hidden = self.model(values, output_hidden_states=True).hidden_states
        tokens: Tensor = hidden[-2]
        return tokens


def _key_map(model: nn.Module) -> KeyMap:
    """Names in a file to the module's: releases of transformers differ in a prefix."""
    wanted = set(model.state_dict())

    def rename(name: str) -> str:
        bare = name.removeprefix("vision_model.")
        return next((found for found in (bare, f"vision_model.{bare}") if found in wanted), name)

    return lambda names: {name: rename(name) for name in names}
