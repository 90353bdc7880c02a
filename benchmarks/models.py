"""Models at their full size, by name: what their published `config.json` files say.

Importing this imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livereel.engine.checkpoint.folder import DEMO, open_folder
from livereel.engine.checkpoint.recipes import RECIPES
from livereel.engine.config import DEFAULT_SELF_FORCING, StreamConfig
from livereel.engine.errors import InputError
from livereel.engine.models.wan.vae_config import LATENTS_MEAN_2_2, LATENTS_STD_2_2

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component's class, by diffusers' name, and the fields of its config that are not the
    class's defaults."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A DiT and a VAE, the recipe they stream by, and the length of a clip, in frames of pixels."""

    transformer: Part
    vae: Part
    frames: int
    stream: StreamConfig = DEFAULT_SELF_FORCING


def _stream(width: int, height: int, fps: float, tokens: int) -> StreamConfig:
    values = DEFAULT_SELF_FORCING.to_dict()
    values |= {"width": width, "height": height, "fps": fps, "max_sequence_length": tokens}
    return StreamConfig.from_dict(values)


_WAN_VAE = Part(class_name="AutoencoderKLWan")
_WAN_2_2_VAE = Part(
    class_name="AutoencoderKLWan",
    config={
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "is_residual": True,
        "latents_mean": LATENTS_MEAN_2_2,
        "latents_std": LATENTS_STD_2_2,
    },
)

MODELS: Mapping[str, Model] = {
    "wan2.1-1.3b": Model(
        transformer=Part(
            class_name="WanTransformer3DModel",
            config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        ),
        vae=_WAN_VAE,
        frames=81,
    ),
    "wan2.1-14b": Model(
        transformer=Part(class_name="WanTransformer3DModel"), vae=_WAN_VAE, frames=81
    ),
    "wan2.2-5b": Model(
        transformer=Part(
            class_name="WanTransformer3DModel",
            config={
                "num_attention_heads": 24,
                "ffn_dim": 14336,
                "num_layers": 30,
                "in_channels": 48,
                "out_channels": 48,
            },
        ),
        vae=_WAN_2_2_VAE,
        frames=121,
        stream=_stream(1280, 704, 24.0, 512),
    ),
    "cogvideox-2b": Model(
        transformer=Part(class_name="CogVideoXTransformer3DModel"),
        vae=Part(class_name="AutoencoderKLCogVideoX"),
        frames=49,
        stream=RECIPES["windows-2b"],
    ),
    "cogvideox-5b": Model(
        transformer=Part(
            class_name="CogVideoXTransformer3DModel",
            config={
                "num_attention_heads": 48,
                "num_layers": 42,
                "use_rotary_positional_embeddings": True,
            },
        ),
        vae=Part(class_name="AutoencoderKLCogVideoX", config={"scaling_factor": 0.7}),
        frames=49,
        stream=RECIPES["windows-5b"],
    ),
}


def find(name: str) -> Model:
    """One of `MODELS`, "demo", or a model folder, of which the configs alone are read.

    Raises `InputError` for a name that is neither, `CheckpointError` for a folder that is no model.
    """
    if name in MODELS:
        return MODELS[name]
    path = DEMO if name == "demo" else Path(name)
    if not path.is_dir():
        raise InputError(
            f"unknown model {name!r}: give a model folder or one of demo, {', '.join(MODELS)}"
        )
    folder = open_folder(path)
    transformer, vae = folder.component("transformer"), folder.component("vae")
    return Model(
        transformer=Part(class_name=transformer.class_name, config=transformer.config),
        vae=Part(class_name=vae.class_name, config=vae.config),
        frames=81,
        stream=folder.stream,
    )
