"""Model families by name: the class that runs a component, how its weights may be laid out, and
what can be told of it without loading it.

The tables hold strings, resolved on first use. A new model is a folder under `models/` and a row in
each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .errors import CheckpointError

CLASSES: dict[str, str] = {
    "WanTransformer3DModel": "livereel.engine.models.wan.transformer:WanTransformer",
    "AutoencoderKLWan": "livereel.engine.models.wan.vae:WanVAE",
    "CogVideoXTransformer3DModel": (
        "livereel.engine.models.cogvideox.transformer:CogVideoXTransformer"
    ),
    "AutoencoderKLCogVideoX": "livereel.engine.models.cogvideox.vae:CogVideoXVAE",
    "CLIPVisionModel": "livereel.engine.models.clip.vision:CLIPVision",
    "CLIPVisionModelWithProjection": "livereel.engine.models.clip.vision:CLIPVisionProjected",
    "UMT5EncoderModel": "livereel.engine.text.encoder:UMT5Encoder",
    "T5EncoderModel": "livereel.engine.text.encoder:T5Encoder",
}
LAYOUTS: tuple[str, ...] = (
    "livereel.engine.models.wan.keys:TRANSFORMER",
    "livereel.engine.models.wan.keys:VAE",
    "livereel.engine.models.cogvideox.keys:TRANSFORMER",
    "livereel.engine.models.cogvideox.keys:VAE",
    "livereel.engine.models.clip.keys:TOWER",
    "livereel.engine.text.keys:UMT5",
    "livereel.engine.text.keys:T5",
)
CLIPS: dict[str, str] = {
    "CogVideoXTransformer3DModel": "livereel.engine.models.cogvideox.defaults:clip_config",
}
"""For a DiT's class what gives, from its config, size and rate of clips; Wan's where there is
none."""
WINDOWED = frozenset({"CogVideoXTransformer3DModel"})
"""Classes of DiTs that keep no keys and values: they stream over windows of past latents."""
DECODER_SIZES: dict[str, str] = {
    "AutoencoderKLCogVideoX": "livereel.engine.models.cogvideox.memory:DecoderSize",
}
"""For a VAE's class what tells the memory that its decoder takes; Wan's where there is none."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What stands in a folder beside a transformer: the pipeline that diffusers runs it with, its
    `scheduler_config.json` (None: Wan's), and fields of the VAE's config and of `model_index.json`
    that go with it."""

    class_name: str
    scheduler: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one component's weights are recognized, renamed and configured.

    The two maps take all names of a file at once and give `{name: renamed}`; a name they do not
    know, or which is in the wanted layout already, stays as it is. `matches` takes names in either
    layout. `config(shapes, num_heads)` takes diffusers' names and gives a diffusers `config.json`;
    it raises `CheckpointError` when shapes do not say enough or contradict each other. `tied` maps
    a name that a file may leave out to the one whose tensor it shares.

    Where an original packs several tensors into one, `unpack` takes all tensors of a file and gives
    those that `to_diffusers` renames.
    `pipeline(config)` says what goes with a transformer; Wan's where there is none.
    """

    component: str
    class_name: str
    to_diffusers: Callable[[Collection[str]], dict[str, str]]
    to_original: Callable[[Collection[str]], dict[str, str]]
    matches: Callable[[Collection[str]], bool]
    config: Callable[[Mapping[str, tuple[int, ...]], int | None], dict[str, Any]]
    tied: Mapping[str, str] = field(default_factory=dict)
    unpack: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    pipeline: Callable[[Mapping[str, Any]], Pipeline] | None = None


def resolve(class_name: str) -> type[Any]:
    """The class that runs `class_name`, a name from `model_index.json`; imports its module.

    Raises `CheckpointError` when the name is not in the table.
    """
    target = CLASSES.get(class_name)
    if target is None:
        raise CheckpointError(
            f"{class_name[:64]!r} is not a model class that LiveReel runs; "
            f"it runs {', '.join(CLASSES)}"
        )
    found: type[Any] = _load(target)
    return found


def clip_config(class_name: str) -> Callable[[Mapping[str, Any]], Any] | None:
    """What gives the `StreamConfig` of a folder without one, from its DiT's config."""
    found: Callable[[Mapping[str, Any]], Any] | None = _load_from(CLIPS, class_name)
    return found


def decoder_size(class_name: str) -> type[Any] | None:
    """The class that tells the memory of such a VAE's decoder."""
    found: type[Any] | None = _load_from(DECODER_SIZES, class_name)
    return found


def layouts() -> tuple[Layout, ...]:
    """Every known layout, in the table's order."""
    return tuple(_load(target) for target in LAYOUTS)


def layout_of(class_name: str) -> Layout | None:
    """The layout of the weights of `class_name`, if its originals come in one of their own."""
    return next((layout for layout in layouts() if layout.class_name == class_name), None)


def _load_from(table: Mapping[str, str], class_name: str) -> Any:
    return _load(table[class_name]) if class_name in table else None


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
