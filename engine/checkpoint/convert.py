"""Published checkpoints of other layouts into a diffusers-layout folder that both projects load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import StreamConfig
from ..errors import CheckpointError, InputError
from ..registry import Layout
from .folder import MODEL_INDEX, read_json
from .load import build, find_layout, heads_beside
from .pickles import SUFFIXES, read_pickle
from .recipes import RECIPES, recipe_of
from .save import (
    new_folder,
    save_component,
    save_image_processor,
    save_index,
    save_scheduler,
)
from .weights import STEMS, Weights, check_shapes, weight_files

# Where the Wan repository's own download keeps its parts.
_WAN_VAES = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
_HIGH_NOISE, _LOW_NOISE = "high_noise_model", "low_noise_model"
_BOUNDARIES = (0.875, 0.9)  # of Wan 2.2 A14B: from text, from a picture
_WAN_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
_WAN_TOKENIZER = "google/umt5-xxl"
_WAN_PICTURES = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

_TOKENIZER_FILES = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "*.model",
    "*.txt",
)  # fmt: skip
_LIBRARIES = {"text_encoder": "transformers", "image_encoder": "transformers"}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A component ready to be written, its tensors under diffusers' names."""

    layout: Layout
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    state: str | None  # the key of a training run's file under which it lay
    keep_in_fp32: tuple[str, ...]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    recipe: str | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model in `source` to the new folder `out`, in diffusers' layout, and return it.

    `source` is a file of Wan's own (`.safetensors`, `.pth`), of Self-Forcing, LongLive or CausVid
    (`.pt`; the averaged generator is taken when there is one), or the folder that the Wan
    repository downloads, VAE, text and image encoder included, with one DiT or two; or of
    CogVideoX's own (`sat`). `vae` is such a file or a model's folder; `text` is a folder with a
    text encoder and its tokenizer, in either layout or side by side. What the config says is read
    off the shapes; the number of heads is `num_heads`, what a `config.json` beside says, or the
    width over 128.

    `recipe` (one of `RECIPES`) says what `livereel.json` holds; without it, names of files and the
    presence of an averaged generator decide, and plain weights get none.
    `dtype` casts the weights, but for those that run in float32; None keeps the file's.

    Raises `CheckpointError`, in one sentence that names the file, when something is missing,
    corrupt, unsafe or of no known layout, and `InputError` when `recipe` is unknown or `out` is
    there already.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    source = Path(source)
    if source.is_dir():
        if (source / MODEL_INDEX).is_file():
            raise CheckpointError(f"{source} is in diffusers' layout already")
        vae = vae or _wan_vae(source)
        text = text or (source if (source / _WAN_TEXT).is_file() else None)
    high, low = source / _HIGH_NOISE, source / _LOW_NOISE
    experts = high.is_dir() and low.is_dir()
    main = _read(high if experts else source, num_heads)
    parts = [main]
    if vae is not None:
        parts.append(_read(_vae_path(Path(vae)), None, "vae"))
    pictures = source / _WAN_PICTURES
    if pictures.is_file():
        parts.append(_read(pictures, None, "image_encoder"))
    stream = _stream(source, main, recipe)
    with new_folder(out) as draft:
        classes: dict[str, tuple[str, str]] = {}
        if text is not None:
            classes.update(_write_text(Path(text), draft, dtype))
        pipeline = None if main.layout.pipeline is None else main.layout.pipeline(main.config)
        options = {} if pipeline is None else dict(pipeline.index)
        if experts:
            second = _read(low, num_heads, "transformer")
            _write(second, draft, dtype, "transformer_2")
            classes["transformer_2"] = _class(second.layout)
            conditioned = second.config["in_channels"] != second.config["out_channels"]
            options["boundary_ratio"] = _BOUNDARIES[conditioned]
        for part in parts:
            if pipeline is not None and part.layout.component == "vae":
                part = replace(part, config={**part.config, **pipeline.vae})
            _write(part, draft, dtype)
            classes[part.layout.component] = _class(part.layout)
            if part.layout.component == "image_encoder":
                side = part.config["image_size"]
                classes["image_processor"] = save_image_processor(draft, side)
        if "transformer" in classes:
            classes["scheduler"] = save_scheduler(
                draft,
                shift=stream.shift if stream else 5.0,
                config=None if pipeline is None else pipeline.scheduler,
            )
        name = "WanPipeline" if pipeline is None else pipeline.class_name
        save_index(draft, classes, stream=stream, pipeline=name, options=options)
    return Path(out)


def _wan_vae(folder: Path) -> Path | None:
    return next((folder / name for name in _WAN_VAES if (folder / name).is_file()), None)


def _class(layout: Layout) -> tuple[str, str]:
    return _LIBRARIES.get(layout.component, "diffusers"), layout.class_name


def _stream(source: Path, main: _Part, recipe: str | None) -> StreamConfig | None:
    if main.layout.component != "transformer":
        return None
    names = (source.name, *(parent.name for parent in source.parents[:2]))
    recipe = recipe or next((found for name in names if (found := recipe_of(name))), None)
    if recipe is None and main.state == "generator_ema":
        recipe = "self-forcing"
    if recipe is None and main.state == "generator":
        raise CheckpointError(
            f"{source} does not tell how it was distilled: say recipe={' or '.join(RECIPES)}"
        )
    return RECIPES[recipe] if recipe else None


def _read(path: Path, num_heads: int | None, component: str | None = None) -> _Part:
    """A part from a file or folder of weights, its names and shapes checked against its class."""
    tensors, state = _tensors(path)
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if plain.setdefault(_unwrapped(name), tensor) is not tensor:
            raise CheckpointError(f"{path} holds {_unwrapped(name)!r} twice, under two prefixes")
    layout = find_layout(plain, path)
    if component is not None and layout.component != component:
        raise CheckpointError(f"{path} holds a {layout.component}, not a {component}")
    if layout.unpack is not None:
        try:
            plain = layout.unpack(plain)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    renamed = layout.to_diffusers(list(plain))
    named = {renamed[name]: tensor for name, tensor in plain.items()}
    if len(named) != len(plain):
        raise CheckpointError(f"{path} mixes two layouts' names")
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    values = _config_beside(path, layout)
    if values is None:
        try:
            values = layout.config(shapes, num_heads or heads_beside(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    module = build(layout.class_name, values, path)
    shared = {name: shapes[other] for name, other in layout.tied.items() if other in shapes}
    check_shapes(module, _as_built({**shared, **shapes}, module), path)
    return _Part(
        layout=layout,
        config=values,
        tensors=named,
        state=state,
        keep_in_fp32=tuple(getattr(module, "keep_in_fp32", ())),
    )


def _as_built(shapes: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Shapes by the module's names: releases of transformers differ in a prefix."""
    known = module.state_dict()
    return {name if name in known else name.removeprefix("vision_model."): shape
            for name, shape in shapes.items()}  # fmt: skip


def _config_beside(path: Path, layout: Layout) -> dict[str, Any] | None:
    """The config of a component's folder, unless it is Wan's own, which has other fields."""
    file = path / "config.json"
    if not path.is_dir() or not file.is_file():
        return None
    values = read_json(file)
    architectures = values.get("architectures")
    named = [values.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return values if layout.class_name in named else None


def _tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Every tensor of a file or of sharded files, mapped from disk, and its state's key."""
    if path.suffix in SUFFIXES and not path.is_dir():
        return read_pickle(path)
    if path.suffix not in (".safetensors", ".json") and not path.is_dir():
        what = "is of no known kind" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; weights end in .safetensors, {', '.join(SUFFIXES)}")
    with Weights(weight_files(path)) as weights:
        return {name: weights.tensor(name) for name in weights.shapes}, None


def _unwrapped(name: str) -> str:
    """A name without what wrappers for training put around modules."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _vae_path(path: Path) -> Path:
    """A model's folder in either layout stands for the VAE in it."""
    if (path / "vae").is_dir():
        return path / "vae"
    return _wan_vae(path) or path


def _write(part: _Part, draft: Path, dtype: torch.dtype | None, name: str | None = None) -> None:
    """Into the folder `name`, by default the one that such parts have."""
    of_transformers = part.layout.component in _LIBRARIES
    save_component(
        draft,
        name or part.layout.component,
        part.config,
        part.tensors,
        stem=STEMS[1] if of_transformers else STEMS[0],
        dtype=dtype,
        keep_in_fp32=part.keep_in_fp32,
    )


def _write_text(path: Path, draft: Path, dtype: torch.dtype | None) -> dict[str, tuple[str, str]]:
    """The text encoder and tokenizer of a model's folder in either layout."""
    if (path / MODEL_INDEX).is_file():
        tokenizer, weights = path / "tokenizer", path / "text_encoder"
    elif (path / _WAN_TEXT).is_file():
        tokenizer, weights = path / _WAN_TOKENIZER, path / _WAN_TEXT
    elif (path / "config.json").is_file() and (path / "tokenizer_config.json").is_file():
        tokenizer = weights = path
    else:
        raise CheckpointError(
            f"{path} holds neither {MODEL_INDEX} nor {_WAN_TEXT}, nor a config.json beside a "
            "tokenizer_config.json"
        )
    kind = read_json(tokenizer / "tokenizer_config.json").get("tokenizer_class")
    if not isinstance(kind, str):
        raise CheckpointError(f"{tokenizer / 'tokenizer_config.json'} names no tokenizer_class")
    part = _read(weights, None, "text_encoder")
    _write(part, draft, dtype)
    (draft / "tokenizer").mkdir()
    for pattern in _TOKENIZER_FILES:
        for file in sorted(tokenizer.glob(pattern)):
            shutil.copyfile(file, draft / "tokenizer" / file.name)
    return {"text_encoder": _class(part.layout), "tokenizer": ("transformers", kind)}
