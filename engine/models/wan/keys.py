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
from ...registry import Layout

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
_LEAF = re.compile(r"(?P<stem>.+)(?P<leaf>\.weight|\.bias|\.gamma)")
_ORIGINAL_LAYER = re.compile(r"(?P<half>encoder|decoder)\.(?P<part>middle|downsamples|upsamples)\."
                             r"(?P<index>\d{1,4})\.(?P<rest>.+)")  # fmt: skip
_DIFFUSERS_LAYER = re.compile(
    r"(?P<half>encoder|decoder)\."
    r"(?P<at>mid_block\.(?:resnets|attentions)\.\d{1,4}|down_blocks\.\d{1,4}"
    r"|up_blocks\.\d{1,4}\.(?:resnets|upsamplers)\.\d{1,4})\.(?P<rest>.+)"
)


def vae_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """Wan 2.1's names of a VAE to diffusers' `AutoencoderKLWan`.

    Wan numbers a decoder's layers through; diffusers groups them by level. The first layer that
    doubles the picture tells how long a level is.
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


def vae_to_original(names: Collection[str]) -> dict[str, str]:
    """The way back of `vae_to_diffusers`."""
    pattern = re.compile(r"decoder\.up_blocks\.0\.resnets\.(\d{1,4})\.")
    resnets = [int(m[1]) for name in names if (m := pattern.match(name))]
    per_level = max(resnets) + 2 if resnets else 0
    return {name: _vae_original_name(name, per_level) for name in names}


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
    """The `config.json` of a VAE of Wan 2.1's layout with these weights; `num_heads` is unused.

    The statistics of the latents are not in the weights: diffusers' defaults, Wan 2.1's, are left
    to hold for 16 channels, and others get mean 0 and deviation 1.
    """
    base, in_channels = _shape(shapes, "encoder.conv_in.weight", 5)[:2]
    z_dim = _shape(shapes, "post_quant_conv.weight", 5)[0]
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
    patch = math.isqrt(in_channels // 3)
    if not all(widths) or any(level[0] % base for level in widths) or 3 * patch**2 != in_channels:
        raise CheckpointError("the VAE's weights are not in the layout of Wan 2.1")
    neutral = {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": base,
        "dim_mult": [level[0] // base for level in widths],
        "dropout": 0.0,
        "in_channels": in_channels,
        "is_residual": False,
        "num_res_blocks": len(widths[0]),
        "out_channels": in_channels,
        "patch_size": patch if patch > 1 else None,
        "scale_factor_spatial": 2 ** len(time) * patch,
        "scale_factor_temporal": 2 ** sum(time),
        "temperal_downsample": time,
        "z_dim": z_dim,
        **({} if z_dim == 16 else neutral),
    }


TRANSFORMER = Layout(
    component="transformer",
    class_name="WanTransformer3DModel",
    to_diffusers=transformer_to_diffusers,
    to_original=transformer_to_original,
    matches=_is_transformer,
    config=transformer_config,
)
VAE = Layout(
    component="vae",
    class_name="AutoencoderKLWan",
    to_diffusers=vae_to_diffusers,
    to_original=vae_to_original,
    matches=_is_vae,
    config=vae_config,
)
