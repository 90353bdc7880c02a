"""A model's folder at full size, its weights random: for what has to read them from a disk.

    python -m livereel.benchmarks.random_folder wan2.1-1.3b FOLDER

It loads as a trained model's folder does and takes as long: the DiT, the VAE and the text encoder
are of the published sizes, in bfloat16. The tokenizer alone is the demo's, and smaller.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from livereel.engine.checkpoint.folder import DEMO
from livereel.engine.checkpoint.load import build
from livereel.engine.checkpoint.save import new_folder, save_component, save_index, save_scheduler
from livereel.engine.cli import arguments
from livereel.engine.errors import InputError, LiveReelError
from livereel.engine.runners.torch import pick_device

from . import models
from .models import Part
from .random_weights import random_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UMT5_XXL: Mapping[str, Any] = {
    "model_type": "umt5", "architectures": ["UMT5EncoderModel"], "d_model": 4096, "d_kv": 64,
    "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256_384,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""google/umt5-xxl, of which Wan's models use the encoder."""


def write(name: str, out: Path, device: torch.device, text: Mapping[str, Any] = UMT5_XXL) -> None:
    """Write one of `models.MODELS`, of Wan's. Weights are drawn on `device`, part by part.

    Raises `InputError` for another model, and for a place where something lies or that cannot be
    written.
    """
    model = models.MODELS.get(name)
    if model is None or model.transformer.class_name != "WanTransformer3DModel":
        raise InputError(f"{name!r:.40} is none of Wan's models at full size")
    torch.manual_seed(0)
    parts = {
        "transformer": ("diffusers", model.transformer),
        "vae": ("diffusers", model.vae),
        "text_encoder": ("transformers", Part(class_name="UMT5EncoderModel", config=text)),
    }
    with new_folder(out) as draft:
        classes = {part: (library, made.class_name) for part, (library, made) in parts.items()}
        for part, (library, made) in parts.items():
            module = build(made.class_name, made.config, made.class_name)
            config = made.config
            if library == "diffusers":  # which writes the defaults too
                values: Any = module.config
                config = {"_class_name": made.class_name, **asdict(values)}
            save_component(
                draft, part, config, random_tensors(module, device, torch.bfloat16),
                stem="model" if library == "transformers" else "diffusion_pytorch_model",
            )  # fmt: skip
        shutil.copytree(DEMO / "tokenizer", draft / "tokenizer")
        classes["tokenizer"] = ("transformers", "PreTrainedTokenizerFast")
        classes["scheduler"] = save_scheduler(draft, shift=model.stream.shift)
        save_index(draft, classes, stream=model.stream)


def main(argv: Sequence[str] | None = None) -> int:
    """Write one folder. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="random_folder", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", metavar="MODEL", help="wan2.1-1.3b and the like")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--device", type=arguments.device, default="auto", help="to draw them on")
    options = parser.parse_args(argv)
    try:
        write(options.model, options.folder, pick_device(options.device))
    except LiveReelError as error:
        print(f"random_folder: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
