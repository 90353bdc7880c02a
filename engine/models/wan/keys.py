"""Names of Wan's weights: as the Wan repository writes them and as diffusers does, both ways.

Every map takes all names of a file at once and gives `{name: renamed}`; names that it does not know
stay as they are, so that a strict load can complain of them, and names already in the wanted layout
stay too. What the shapes say about the configuration stands here as well.

The pairs were taken from both projects' module definitions (Wan2.1 at 9737cba).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ...errors import CheckpointError
from ...registry import Layout, Pipeline
from .vae_config import LATENTS_MEAN_2_2, LATENTS_STD_2_2

Shapes = Mapping[str, tuple[int, ...]]


# --- transformer -----------------------------------------------------------------------------

_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
# Of a block's three layer norms only the cross-attention's has weights; diffusers calls it norm2.
_BLOCK = {
    **{f"self_attn.{a}": f"attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"cross_attn.{a}": f"attn2.{b}" for a, b in (_ATTENTION | _IMAGE_ATTENTION).items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_TOP = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_PARAMETER = re.compile(r"(?P<block>blocks\.\d{1,4}\.)?(?P<stem>.+?)(?P<leaf>\.weight|\.bias)?")


def transformer_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """Wan's names of a transformer (T2V, I2V, FLF2V) to diffusers' `WanTransformer3DModel`."""
    return {name: _rename(name, _BLOCK, _TOP) for name in names}


def transformer_to_original(names: Collection[str]) -> dict[str, str]:
    """The way back of `transformer_to_diffusers`."""
    block = {new: old for old, new in _BLOCK.items()}
    top = {new: old for old, new in _TOP.items()}
    return {name: _rename(name, block, top) for name in names}


def _rename(name: str, block: Mapping[str, str], top: Mapping[str, str]) -> str:
    match = _PARAMETER.fullmatch(name)
    if match is None:
        return name
    prefix, stem, leaf = match["block"] or "", match["stem"], match["leaf"] or ""
    return prefix + (block if prefix else top).get(stem, stem) + leaf


def _is_transformer(names: Collection[str]) -> bool:
    found = set(transformer_to_diffusers(names).values())
    return {"patch_embedding.weight", "blocks.0.attn1.to_q.weight"} <= found


def transformer_config(shapes: Shapes, num_heads: int | None = None) -> dict[str, Any]:
    """The `config.json` of a transformer with these weights.

    Shapes do not tell the number of heads: unless given, it is the width over 128, as in every
    published Wan.
    """
    width, in_channels, *patch = _shape(shapes, "patch_embedding.weight", 5)
    heads = num_heads or width // 128
    if heads < 1 or width % heads or (num_heads is None and width % 128):
        raise CheckpointError(
            f"a transformer of width {width} has no whole number of heads"
            + (f" with {num_heads} of them" if num_heads else " of 128: say how many it has")
        )
    layers = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d{1,4})\.", name))}
    if layers != set(range(len(layers))):
        raise CheckpointError(f"the weights hold {len(layers)} blocks, not numbered from 0 on")
    image = "condition_embedder.image_embedder."
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": _optional(shapes, "blocks.0.attn2.add_k_proj.weight", 2, 1),
        "attention_head_dim": width // heads,
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "eps": 1e-06,
        "ffn_dim": _shape(shapes, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        "freq_dim": _shape(shapes, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "image_dim": _optional(shapes, image + "norm1.weight", 1, 0),
        "in_channels": in_channels,
        "num_attention_heads": heads,
        "num_layers": len(layers),
        "out_channels": _shape(shapes, "proj_out.weight", 2)[0] // math.prod(patch),
        "patch_size": patch,
        "pos_embed_seq_len": _optional(shapes, image + "pos_embed", 3, 1),
        "qk_norm": "rms_norm_across_heads" if "blocks.0.attn1.norm_q.weight" in shapes else None,
        "rope_max_seq_len": 1024,
        "text_dim": _shape(shapes, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
    }


def _shape(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(f"the weights hold no {name!r} of {ndim} dimensions")
    return shape


def _optional(shapes: Shapes, name: str, ndim: int, axis: int) -> int | None:
    return _shape(shapes, name, ndim)[axis] if name in shapes else None


def transformer_pipeline(config: Mapping[str, Any]) -> Pipeline:
    """What goes with a DiT: more channels in than out are those of pictures to start from, and 48
    are TI2V-5B's, which has such a picture in place of its first latents."""
    pictures = config["in_channels"] != config["out_channels"]
    clean = config["in_channels"] == config["out_channels"] == len(LATENTS_MEAN_2_2)
    return Pipeline(
        class_name="WanImageToVideoPipeline" if pictures else "WanPipeline",
        index={"expand_timesteps": True} if clean else {},
    )


# --- VAE -------------------------------------------------------------------------------------

_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_TOP = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{half}.conv1": f"{half}.conv_in" for half in ("encoder", "decoder")},
    **{f"{half}.head.0": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{f"{half}.head.2": f"{half}.conv_out" for half in ("encoder", "decoder")},
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
# Wan 2.2's levels are sequences of their own; the resampling, if any, is the last of one.
_ORIGINAL_LEVEL = re.compile(
    r"(?:(?P<encoder>encoder\.downsamples\.(?P<down>\d{1,4})\.downsamples)"
    r"|(?P<decoder>decoder\.upsamples\.(?P<up>\d{1,4})\.upsamples))"
    r"\.(?P<index>\d{1,4})\.(?P<rest>.+)"
)
_DIFFUSERS_LEVEL = re.compile(
    r"(?P<half>encoder\.down|decoder\.up)_blocks\.(?P<level>\d{1,4})\."
    r"(?P<at>resnets\.(?P<index>\d{1,4})|downsampler|upsampler)\.(?P<rest>.+)"
)
_LEAF = re.compile(r"(?P<stem>.+)(?P<leaf>\.weight|\.bias|\.gamma)")
_ORIGINAL_LAYER = re.compile(r"(?P<half>encoder|decoder)\.(?P<part>middle|downsamples|upsamples)\."
                             r"(?P<index>\d{1,4})\.(?P<rest>.+)")  # fmt: skip
_DIFFUSERS_LAYER = re.compile(
    r"(?P<half>encoder|decoder)\."
    r"(?P<at>mid_block\.(?:resnets|attentions)\.\d{1,4}|down_blocks\.\d{1,4}"
    r"|up_blocks\.\d{1,4}\.(?:resnets|upsamplers)\.\d{1,4})\.(?P<rest>.+)"
)


def vae_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """Wan's names of a VAE to diffusers' `AutoencoderKLWan`.

    Wan 2.1 numbers a decoder's layers through; diffusers groups them by level. The first layer that
    doubles the picture tells how long a level is. Wan 2.2 has levels of its own.
    """
    pattern = re.compile(r"decoder\.upsamples\.(\d{1,4})\.resample\.")
    ends = [int(m[1]) for name in names if (m := pattern.match(name))]
    per_level = min(ends) + 1 if ends else 0
    return {name: _vae_name(name, per_level) for name in names}


def _vae_name(name: str, per_level: int) -> str:
    match = _LEAF.fullmatch(name)
    if match is None:
        return name
    stem, leaf = match["stem"], match["leaf"]
    if (inner := _ORIGINAL_LEVEL.fullmatch(stem)) is not None:
        return _level_name(inner) + leaf
    layer = _ORIGINAL_LAYER.fullmatch(stem)
    if layer is None:
        return _VAE_TOP.get(stem, stem) + leaf
    rest = _RESIDUAL.get(layer["rest"], layer["rest"])
    index = int(layer["index"])
    if layer["part"] == "middle":
        at = f"mid_block.{_MIDDLE.get(layer['index'], layer['index'])}"
    elif layer["part"] == "downsamples":
        at = f"down_blocks.{index}"
    else:
        level, place = divmod(index, per_level) if per_level else (0, index)
        last = per_level and place == per_level - 1
        at = f"up_blocks.{level}." + ("upsamplers.0" if last else f"resnets.{place}")
    return f"{layer['half']}.{at}.{rest}{leaf}"


def _level_name(match: re.Match[str]) -> str:
    """diffusers' name of a layer in one of Wan 2.2's levels."""
    half, level = ("encoder.down", match["down"])
    if match["encoder"] is None:
        half, level = "decoder.up", match["up"]
    rest = match["rest"]
    if rest.split(".")[0] in ("resample", "time_conv"):
        return f"{half}_blocks.{level}.{half.split('.')[1]}sampler.{rest}"
    return f"{half}_blocks.{level}.resnets.{match['index']}.{_RESIDUAL.get(rest, rest)}"


def vae_to_original(names: Collection[str]) -> dict[str, str]:
    """The way back of `vae_to_diffusers`."""
    pattern = re.compile(r"decoder\.up_blocks\.0\.resnets\.(\d{1,4})\.")
    resnets = [int(m[1]) for name in names if (m := pattern.match(name))]
    per_level = max(resnets) + 2 if resnets else 0
    if any(".upsampler." in name or "down_blocks.0.resnets." in name for name in names):
        return {name: _residual_original_name(name, per_level) for name in names}
    return {name: _vae_original_name(name, per_level) for name in names}


def _residual_original_name(name: str, per_level: int) -> str:
    """Wan 2.2's name; its encoder has a block less in each level than its decoder."""
    found = _LEAF.fullmatch(name)
    layer = _DIFFUSERS_LEVEL.fullmatch(found["stem"]) if found else None
    if found is None or layer is None:
        return _vae_original_name(name, per_level)
    down = layer["half"] == "encoder.down"
    half = "encoder.downsamples" if down else "decoder.upsamples"
    index = layer["index"] or (per_level - 2 if down else per_level - 1)
    rest = {new: old for old, new in _RESIDUAL.items()}.get(layer["rest"], layer["rest"])
    return f"{half}.{layer['level']}.{half.split('.')[1]}.{index}.{rest}{found['leaf']}"


def _vae_original_name(name: str, per_level: int) -> str:
    match = _LEAF.fullmatch(name)
    if match is None:
        return name
    stem, leaf = match["stem"], match["leaf"]
    layer = _DIFFUSERS_LAYER.fullmatch(stem)
    if layer is None:
        return {new: old for old, new in _VAE_TOP.items()}.get(stem, stem) + leaf
    rest = {new: old for old, new in _RESIDUAL.items()}.get(layer["rest"], layer["rest"])
    block, *where = layer["at"].split(".")
    if block == "mid_block":
        inner = ".".join(where)
        at = "middle." + {new: old for old, new in _MIDDLE.items()}.get(inner, inner)
    elif block == "down_blocks":
        at = f"downsamples.{where[0]}"
    else:
        place = per_level - 1 if where[1] == "upsamplers" else int(where[2])
        at = f"upsamples.{int(where[0]) * per_level + place}"
    return f"{layer['half']}.{at}.{rest}{leaf}"


def _is_vae(names: Collection[str]) -> bool:
    found = set(vae_to_diffusers(names).values())
    return {"quant_conv.weight", "post_quant_conv.weight", "decoder.conv_in.weight"} <= found


def vae_config(shapes: Shapes, num_heads: int | None = None) -> dict[str, Any]:
    """The `config.json` of a VAE of Wan's layouts with these weights; `num_heads` is unused.

    The statistics of the latents are not in the weights: those published for 16 channels (Wan 2.1)
    and 48 (Wan 2.2) are taken, and others get mean 0 and deviation 1.
    """
    base, in_channels = _shape(shapes, "encoder.conv_in.weight", 5)[:2]
    z_dim = _shape(shapes, "post_quant_conv.weight", 5)[0]
    residual = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
    widths, time = (_residual_levels if residual else _plain_levels)(shapes)
    patch = math.isqrt(in_channels // 3)
    if not all(widths) or any(level[0] % base for level in widths) or 3 * patch**2 != in_channels:
        raise CheckpointError("the VAE's weights are not in the layout of Wan 2.1 or 2.2")
    mult = [level[0] // base for level in widths]
    decoder_base = _shape(shapes, "decoder.conv_in.weight", 5)[0] // mult[-1]
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": base,
        "decoder_base_dim": None if decoder_base == base else decoder_base,
        "dim_mult": mult,
        "dropout": 0.0,
        "in_channels": in_channels,
        "is_residual": residual,
        "num_res_blocks": len(widths[0]),
        "out_channels": in_channels,
        "patch_size": patch if patch > 1 else None,
        "scale_factor_spatial": 2 ** len(time) * patch,
        "scale_factor_temporal": 2 ** sum(time),
        "temperal_downsample": time,
        "z_dim": z_dim,
        **_statistics(z_dim),
    }


def _plain_levels(shapes: Shapes) -> tuple[list[list[int]], list[bool]]:
    """Widths of the encoder's blocks, level by level, and which resampling is one of time too."""
    widths: list[list[int]] = [[]]
    time: list[bool] = []
    index = 0
    while any(name.startswith(f"encoder.down_blocks.{index}.") for name in shapes):
        at = f"encoder.down_blocks.{index}."
        if at + "resample.1.weight" in shapes:
            time.append(at + "time_conv.weight" in shapes)
            widths.append([])
        else:
            widths[-1].append(_shape(shapes, at + "conv1.weight", 5)[0])
        index += 1
    return widths, time


def _residual_levels(shapes: Shapes) -> tuple[list[list[int]], list[bool]]:
    """The same of Wan 2.2's layout."""
    widths: list[list[int]] = []
    time: list[bool] = []
    while (at := f"encoder.down_blocks.{len(widths)}.") + "resnets.0.conv1.weight" in shapes:
        blocks: list[int] = []
        while (name := f"{at}resnets.{len(blocks)}.conv1.weight") in shapes:
            blocks.append(_shape(shapes, name, 5)[0])
        widths.append(blocks)
        if at + "downsampler.resample.1.weight" in shapes:
            time.append(at + "downsampler.time_conv.weight" in shapes)
    return widths, time


def _statistics(z_dim: int) -> dict[str, list[float]]:
    """Mean and deviation of latents; 16 channels are left to the config's defaults."""
    if z_dim == 16:
        return {}
    mean, std = (0.0,) * z_dim, (1.0,) * z_dim
    if z_dim == len(LATENTS_MEAN_2_2):
        mean, std = LATENTS_MEAN_2_2, LATENTS_STD_2_2
    return {"latents_mean": list(mean), "latents_std": list(std)}


TRANSFORMER = Layout(
    component="transformer",
    class_name="WanTransformer3DModel",
    to_diffusers=transformer_to_diffusers,
    to_original=transformer_to_original,
    matches=_is_transformer,
    config=transformer_config,
    pipeline=transformer_pipeline,
)
VAE = Layout(
    component="vae",
    class_name="AutoencoderKLWan",
    to_diffusers=vae_to_diffusers,
    to_original=vae_to_original,
    matches=_is_vae,
    config=vae_config,
)
