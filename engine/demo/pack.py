"""Write trained parts as the folder that ships: diffusers' layout, recipe, and a manifest.

`python -m livereel.engine.demo.train pack` calls it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.save import new_folder, save_component, save_index, save_scheduler, write_json
from ..config import StreamConfig
from ..text.vocabulary import build_tokenizer, save_tokenizer

MANIFEST = "manifest.json"
LIMIT = 32 * 1024 * 1024
"""Bytes that all of the demo's weights may take together."""


def pack(
    out: Path,
    *,
    words: list[str],
    transformer: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    vae: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    text: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    stream: StreamConfig,
    shift: float,
) -> Path:
    """Write the model's folder `out`, in place of one that is there; give its path.

    Each part is its config and its tensors; all floats are stored in bfloat16. `manifest.json`
    lists every file with its size and sha256. Raises `ValueError` when the weights exceed `LIMIT`.
    """
    parts = {
        "transformer": ("diffusers", "WanTransformer3DModel", *transformer),
        "vae": ("diffusers", "AutoencoderKLWan", *vae),
        "text_encoder": ("transformers", "UMT5EncoderModel", *text),
    }
    with new_folder(out, replace=True) as draft:
        classes = {name: (library, cls) for name, (library, cls, *_) in parts.items()}
        for name, (library, cls, config, tensors) in parts.items():
            kind = {"_class_name": cls} if library == "diffusers" else {"architectures": [cls]}
            save_component(
                draft, name, kind | dict(config), tensors, dtype=torch.bfloat16,
                stem="model" if library == "transformers" else "diffusion_pytorch_model",
            )  # fmt: skip
        save_tokenizer(build_tokenizer(words), draft / "tokenizer")
        classes["tokenizer"] = ("transformers", "PreTrainedTokenizerFast")
        classes["scheduler"] = save_scheduler(draft, shift=shift)
        save_index(draft, classes, stream=stream)
        write_json(draft / MANIFEST, {"files": checksums(draft)})
        size = sum(path.stat().st_size for path in draft.rglob("*.safetensors"))
        if size > LIMIT:
            raise ValueError(f"the weights take {size} bytes; the demo may ship {LIMIT}")
    return out


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file below `folder` but the manifest, by relative path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file, as `checksums` gives it."""
    files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
    return files
