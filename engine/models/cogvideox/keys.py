"""Names of CogVideoX's weights: as its authors publish them and as diffusers does.

The originals pack three projections, or two modulations, into one tensor, and hold tables that can
be computed; `unpack_*` undo the one and drop the other. What the shapes say about the configuration
stands here as well, and what a folder says beside.

The pairs were taken from both projects' module definitions (CogVideo at e519ece, its `sat` folder).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...registry import Layout, Pipeline

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_HEAD = 64
_WIDTH_2B = 1920
"""The one published width whose positions are sines and cosines."""

# --- transformer -----------------------------------------------------------------------------

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "ofs_embed.0": "ofs_embedding.linear_1",
    "ofs_embed.2": "ofs_embedding.linear_2",
    "mixins.patch_embed.proj": "patch_embed.proj",
    "mixins.patch_embed.text_proj": "patch_embed.text_proj",
    "mixins.final_layer.norm_final": "norm_out.norm",
    "mixins.final_layer.linear": "proj_out",
    "mixins.final_layer.adaLN_modulation.1": "norm_out.linear",
    "transformer.final_layernorm": "norm_final",
}
_BLOCK = {
    "attention.dense": "attn1.to_out.0",
    "input_layernorm": "norm1.norm",
    "post_attention_layernorm": "norm2.norm",
    "mlp.dense_h_to_4h": "ff.net.0.proj",
    "mlp.dense_4h_to_h": "ff.net.2",
}
_LISTS = {"query_layernorm_list": "attn1.norm_q", "key_layernorm_list": "attn1.norm_k"}
_ORIGINAL = re.compile(
    r"transformer\.layers\.(?P<block>\d{1,4})\.(?P<stem>.+)\.(?P<leaf>weight|bias)"
    r"|mixins\.adaln_layer\.(?P<list>\w+)\.(?P<entry>\d{1,4})\.(?P<leaf_>weight|bias)"
)
_DIFFUSERS = re.compile(
    r"transformer_blocks\.(?P<block>\d{1,4})\.(?P<stem>.+)\.(?P<leaf>weight|bias)"
)
_PACKED = re.compile(
    r"transformer\.layers\.(?P<qkv>\d{1,4})\.attention\.query_key_value\.(?P<leaf>weight|bias)"
    r"|mixins\.adaln_layer\.adaLN_modulations\.(?P<norms>\d{1,4})\.1\.(?P<leaf_>weight|bias)"
)
_POSITIONS = "mixins.pos_embed.pos_embedding"
_ROTATIONS = ("mixins.pos_embed.freqs_cos", "mixins.pos_embed.freqs_sin")
_UNUSED = re.compile(r"transformer\.(word_embeddings|position_embeddings)\..*|embed_tokens\..*")
_FIRST_PACKED = "transformer.layers.0.attention.query_key_value.weight"


def transformer_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """The authors' names of a transformer, unpacked, to diffusers'; others stay."""
    return {name: _to_diffusers(name) for name in names}


def _to_diffusers(name: str) -> str:
    match = _ORIGINAL.fullmatch(name)
    if match is None:
        stem, _, leaf = name.rpartition(".")
        return f"{_TOP[stem]}.{leaf}" if stem in _TOP else name
    if match["list"] is not None:
        stem = _LISTS.get(match["list"], "")
        at, leaf = match["entry"], match["leaf_"]
    else:
        stem, at, leaf = _BLOCK.get(match["stem"], ""), match["block"], match["leaf"]
    return f"transformer_blocks.{at}.{stem}.{leaf}" if stem else name


def transformer_to_original(names: Collection[str]) -> dict[str, str]:
    """The way back, for tensors that the original does not pack; others stay."""
    return {name: _to_original(name) for name in names}


def _to_original(name: str) -> str:
    block = {new: old for old, new in _BLOCK.items()}
    lists = {new: old for old, new in _LISTS.items()}
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        stem, _, leaf = name.rpartition(".")
        old = {new: old for old, new in _TOP.items()}.get(stem)
        return f"{old}.{leaf}" if old else name
    stem, at, leaf = match["stem"], match["block"], match["leaf"]
    if stem in lists:
        return f"mixins.adaln_layer.{lists[stem]}.{at}.{leaf}"
    return f"transformer.layers.{at}.{block[stem]}.{leaf}" if stem in block else name


def unpack_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An original's tensors with what it packs under diffusers' names, and no computed tables.

    Raises `CheckpointError` for a packed tensor that does not divide.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _PACKED.fullmatch(name)
        if match is None:
            computed = name == _POSITIONS and not any(table in tensors for table in _ROTATIONS)
            if not (computed or name in _ROTATIONS or _UNUSED.fullmatch(name)):
                out["patch_embed.pos_embedding" if name == _POSITIONS else name] = tensor
            continue
        parts = 3 if match["qkv"] is not None else 12
        if tensor.ndim == 0 or len(tensor) % parts:
            raise CheckpointError(f"{name} has shape {list(tensor.shape)}, not {parts} parts")
        pieces = tensor.chunk(parts)
        if match["qkv"] is not None:
            at = f"transformer_blocks.{match['qkv']}.attn1"
            for kind, piece in zip("qkv", pieces, strict=True):
                out[f"{at}.to_{kind}.{match['leaf']}"] = piece
            continue
        at, leaf = f"transformer_blocks.{match['norms']}", match["leaf_"]
        # Shift, scale and gate of attention and of the feed-forward: video's six, then text's.
        out[f"{at}.norm1.linear.{leaf}"] = _joined([*pieces[0:3], *pieces[6:9]])
        out[f"{at}.norm2.linear.{leaf}"] = _joined([*pieces[3:6], *pieces[9:12]])
    return out


def _joined(pieces: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(pieces)


def _is_transformer(names: Collection[str]) -> bool:
    return _FIRST_PACKED in names or (
        "patch_embed.proj.weight" in names
        and "transformer_blocks.0.attn1.to_q.weight" in names
        and "transformer_blocks.0.norm1.linear.weight" in names
    )


def transformer_config(shapes: Shapes, num_heads: int | None = None) -> dict[str, Any]:
    """The `config.json` of a transformer with these weights.

    Shapes do not tell all: heads are 64 wide unless `num_heads` is given, as in every published
    CogVideoX, and positions rotary but for the 2B.
    """
    proj = _shape(shapes, "patch_embed.proj.weight")
    width, newer = proj[0], len(proj) == 2
    heads = num_heads or width // _HEAD
    if heads < 1 or width % heads or (num_heads is None and width % _HEAD):
        raise CheckpointError(
            f"a transformer of width {width} has no whole number of heads"
            + (f" with {num_heads} of them" if num_heads else f" of {_HEAD}: say how many it has")
        )
    layers = {int(m[1]) for name in shapes if (m := re.match(r"transformer_blocks\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        raise CheckpointError(f"the weights hold {len(layers)} blocks, not numbered from 0 on")
    side, depth = 2, 2 if newer else 1
    patch = side**2 * depth
    out = _shape(shapes, "proj_out.weight")[0]
    channels = proj[1] // patch if newer else proj[1]
    pictures = channels != out // patch
    config: dict[str, Any] = {
        "_class_name": "CogVideoXTransformer3DModel",
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "num_attention_heads": heads,
        "num_layers": len(layers),
        "ofs_embed_dim": (
            shapes["ofs_embedding.linear_1.weight"][1]
            if "ofs_embedding.linear_1.weight" in shapes
            else None
        ),
        "out_channels": out // patch,
        "patch_bias": not newer and "patch_embed.proj.bias" in shapes,
        "patch_size": side,
        "patch_size_t": depth if newer else None,
        "text_embed_dim": _shape(shapes, "patch_embed.text_proj.weight")[1],
        "time_embed_dim": _shape(shapes, "time_embedding.linear_1.weight")[0],
        "use_learned_positional_embeddings": "patch_embed.pos_embedding" in shapes,
        "use_rotary_positional_embeddings": newer or width != _WIDTH_2B,
    }
    if newer:
        tall, wide = (96, 170) if pictures else (300, 300)
        config |= {"sample_frames": 81, "sample_height": tall, "sample_width": wide}
    return config


def transformer_pipeline(config: Mapping[str, Any]) -> Pipeline:
    """What stands beside a transformer with this `config.json`, as its authors sample it."""
    small = not config["use_rotary_positional_embeddings"]
    pictures = config["in_channels"] != config["out_channels"]
    newer = config["patch_size_t"] is not None
    scheduler = {
        "_class_name": "CogVideoXDDIMScheduler" if small else "CogVideoXDPMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": 3.0 if small else 1.0,
        "timestep_spacing": "trailing",
    }
    return Pipeline(
        class_name="CogVideoXImageToVideoPipeline" if pictures else "CogVideoXPipeline",
        scheduler=scheduler,
        vae={
            "invert_scale_latents": pictures and newer,
            "scaling_factor": 1.15258426 if small else 0.7,
        },
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) < 2 or 0 in shape:
        raise CheckpointError(f"the weights hold no {name!r} of two dimensions or more")
    return shape


# --- VAE -------------------------------------------------------------------------------------

_MID = re.compile(r"(encoder|decoder)\.mid\.block_([12])\.(.+)")
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d{1,2})\.(block\.(\d{1,2})|\w+)\.(.+)")
_MID_BACK = re.compile(r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)")
_LEVEL_BACK = re.compile(
    r"(encoder\.down|decoder\.up)_blocks\.(\d{1,2})\.(resnets\.(\d{1,2})|\w+\.0)\.(.+)"
)
_STEPS = {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}


def vae_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """The authors' names of a VAE to diffusers'. They count a decoder's levels from its end."""
    levels = _levels(names, _LEVEL)
    return {name: _vae_name(name, levels) for name in names}


def _vae_name(name: str, levels: int) -> str:
    if (mid := _MID.fullmatch(name)) is not None:
        return f"{mid[1]}.mid_block.resnets.{int(mid[2]) - 1}.{_shortcut(mid[3])}"
    match = _LEVEL.fullmatch(name)
    if match is None:
        return name
    level = int(match[2]) if match[1] == "encoder.down" else levels - 1 - int(match[2])
    inner = f"resnets.{match[4]}" if match[4] is not None else _STEPS.get(match[3], match[3])
    return f"{match[1]}_blocks.{level}.{inner}.{_shortcut(match[5])}"


def _shortcut(name: str) -> str:
    return name.replace("nin_shortcut.", "conv_shortcut.", 1)


def vae_to_original(names: Collection[str]) -> dict[str, str]:
    """The way back of `vae_to_diffusers`."""
    levels = _levels(names, _LEVEL_BACK)
    return {name: _vae_original_name(name, levels) for name in names}


def _vae_original_name(name: str, levels: int) -> str:
    if (mid := _MID_BACK.fullmatch(name)) is not None:
        return f"{mid[1]}.mid.block_{int(mid[2]) + 1}.{mid[3]}"
    match = _LEVEL_BACK.fullmatch(name)
    if match is None:
        return name
    level = int(match[2]) if match[1] == "encoder.down" else levels - 1 - int(match[2])
    steps = {new: old for old, new in _STEPS.items()}
    inner = f"block.{match[4]}" if match[4] is not None else steps.get(match[3], match[3])
    leaf = match[5].replace("conv_shortcut.", "nin_shortcut.", 1)
    return f"{match[1]}.{level}.{inner}.{leaf}"


def _levels(names: Collection[str], pattern: re.Pattern[str]) -> int:
    matches = (pattern.fullmatch(name) for name in names)
    return 1 + max((int(match[2]) for match in matches if match is not None), default=0)


def unpack_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An original's tensors without those of the loss that it was trained with."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}


def _is_vae(names: Collection[str]) -> bool:
    found = set(vae_to_diffusers(names).values())
    return {
        "decoder.conv_in.conv.weight",
        "decoder.mid_block.resnets.0.norm1.norm_layer.weight",
    } <= found


def vae_config(shapes: Shapes, num_heads: int | None = None) -> dict[str, Any]:
    """The `config.json` of a VAE with these weights; `num_heads` is unused.

    How often time is halved and how many groups norms have is not in the weights: twice and 32, as
    in the published one. Its scale is the transformer's matter, see `transformer_pipeline`.
    """
    widths: list[int] = []
    while (name := f"encoder.down_blocks.{len(widths)}.resnets.0.conv2.conv.weight") in shapes:
        widths.append(_shape(shapes, name)[0])
    pattern = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d{1,2})\.conv1\.conv\.weight")
    blocks = sum(pattern.fullmatch(name) is not None for name in shapes)
    if not widths:
        raise CheckpointError("the VAE's weights are not in CogVideoX's layout")
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": widths,
        "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
        "latent_channels": _shape(shapes, "decoder.conv_in.conv.weight")[1],
        "layers_per_block": blocks,
        "temporal_compression_ratio": 4,
        "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
    }


TRANSFORMER = Layout(
    component="transformer",
    class_name="CogVideoXTransformer3DModel",
    to_diffusers=transformer_to_diffusers,
    to_original=transformer_to_original,
    matches=_is_transformer,
    config=transformer_config,
    unpack=unpack_transformer,
    pipeline=transformer_pipeline,
)
VAE = Layout(
    component="vae",
    class_name="AutoencoderKLCogVideoX",
    to_diffusers=vae_to_diffusers,
    to_original=vae_to_original,
    matches=_is_vae,
    config=vae_config,
    unpack=unpack_vae,
)
