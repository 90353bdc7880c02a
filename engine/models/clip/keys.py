"""Names of CLIP's vision tower: as the Wan repository's file has them and as transformers does.

The file holds a whole CLIP, of which image-to-video DiTs read the picture's side alone. It packs
three projections into one tensor, and its embeddings' shapes begin with ones; `unpack` undoes both.
The pairs were taken from both projects' module definitions (`wan/modules/clip.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...registry import Layout

if TYPE_CHECKING:
    from torch import Tensor

_HEAD_WIDTH = 80  # of ViT-H, the tower that Wan's file holds
_TOP = {
    "visual.patch_embedding": "vision_model.embeddings.patch_embedding",
    "visual.pre_norm": "vision_model.pre_layrnorm",
    "visual.post_norm": "vision_model.post_layernorm",
}
_EMBEDDINGS = {
    "visual.cls_embedding": "vision_model.embeddings.class_embedding",
    "visual.pos_embedding": "vision_model.embeddings.position_embedding.weight",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_ORIGINAL = re.compile(r"visual\.transformer\.(\d{1,4})\.(.+)\.(weight|bias)")
_TRANSFORMERS = re.compile(r"vision_model\.encoder\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_LAYER = "vision_model.encoder.layers.{}.{}.{}"


def to_transformers(names: Collection[str]) -> dict[str, str]:
    """The file's names, unpacked, to those of `CLIPVisionModel`; others stay."""
    return {
        name: _renamed(name, _ORIGINAL, _LAYER, _BLOCK, {**_TOP, **_EMBEDDINGS}) for name in names
    }


def to_original(names: Collection[str]) -> dict[str, str]:
    """The way back, for tensors that the file does not pack; others stay."""
    block, top = ({new: old for old, new in pairs.items()} for pairs in (_BLOCK, _TOP))
    goal = "visual.transformer.{}.{}.{}"
    return {name: _renamed(name, _TRANSFORMERS, goal, block, top) for name in names}


def _renamed(
    name: str, pattern: re.Pattern[str], goal: str, block: Mapping[str, str], top: Mapping[str, str]
) -> str:
    match = pattern.fullmatch(name)
    if match is not None:
        stem = block.get(match[2])
        return name if stem is None else goal.format(match[1], stem, match[3])
    if name in top:
        return top[name]
    stem, _, leaf = name.rpartition(".")
    return f"{top[stem]}.{leaf}" if stem in top else name


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors alone, with packed ones under transformers' names.

    Raises `CheckpointError` for a packed tensor that does not divide.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(("textual.", "visual.head")) or name == "log_scale":
            continue
        match = _ORIGINAL.fullmatch(name)
        if match is None or match[2] != "attn.to_qkv":
            padded = name in _EMBEDDINGS and tensor.ndim == 3 and len(tensor) == 1
            out[name] = tensor[0].squeeze(0) if padded else tensor
            continue
        if tensor.ndim == 0 or len(tensor) % 3:
            raise CheckpointError(f"{name} of shape {list(tensor.shape)} is not three projections")
        for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
            out[_LAYER.format(match[1], f"self_attn.{part}_proj", match[3])] = chunk
    return out


def _is_tower(names: Collection[str]) -> bool:
    original = {"visual.cls_embedding", "visual.transformer.0.attn.to_qkv.weight"}
    ours = {"vision_model.pre_layrnorm.weight", _LAYER.format(0, "self_attn.q_proj", "weight")}
    return original <= set(names) or ours <= set(names)


def config(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None) -> dict[str, Any]:
    """The `config.json` of a tower with these weights; heads are ViT-H's, `num_heads` is unused.

    Raises `CheckpointError` when they lack a tensor that it is read off, or say what cannot be.
    """
    embeddings = "vision_model.embeddings"
    patch = shapes.get(f"{embeddings}.patch_embedding.weight", ())
    places = shapes.get(f"{embeddings}.position_embedding.weight", ())
    inner = shapes.get(_LAYER.format(0, "mlp.fc1", "weight"), ())
    if len(patch) != 4 or len(places) != 2 or len(inner) != 2:
        raise CheckpointError("it lacks the embeddings or the first block of a CLIP vision tower")
    side = math.isqrt(max(places[0] - 1, 0))
    if side**2 != places[0] - 1 or patch[0] % _HEAD_WIDTH:
        raise CheckpointError(
            f"a tower of {places[0]} places and width {patch[0]} is none of CLIP's with heads of "
            f"{_HEAD_WIDTH}"
        )
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": patch[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": len({m[1] for m in map(_TRANSFORMERS.fullmatch, shapes) if m}),
        "num_attention_heads": patch[0] // _HEAD_WIDTH,
        "image_size": side * patch[2],
        "patch_size": patch[2],
        "layer_norm_eps": 1e-5,
    }


TOWER = Layout(
    component="image_encoder",
    class_name="CLIPVisionModel",
    to_diffusers=to_transformers,
    to_original=to_original,
    matches=_is_tower,
    config=config,
    unpack=unpack,
)
