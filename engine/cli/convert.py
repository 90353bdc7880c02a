"""`livereel convert`: published checkpoints of other layouts into a model folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import memory
from ..checkpoint.folder import open_folder
from ..checkpoint.recipes import RECIPES
from ..errors import InputError
from . import arguments

SUMMARY = "turn a published checkpoint into a model folder in diffusers' layout"
EXAMPLES = """\
examples:
  livereel convert Wan2.1-T2V-1.3B/ -o models/wan-1.3b
  livereel convert self_forcing_dmd.pt -o models/self-forcing \\
      --vae Wan2.1-T2V-1.3B/Wan2.1_VAE.pth --text Wan2.1-T2V-1.3B/

  livereel convert CogVideoX-2b-sat/transformer/1/mp_rank_00_model_states.pt -o models/cogvideox \\
      --vae CogVideoX-2b-sat/vae/3d-vae.pt --text t5-v1_1-xxl/

what is read:
  Wan's own .safetensors and .pth and the folder they are published in; Self-Forcing's and
  LongLive's .pt (the averaged generator when there is one); CausVid's .pt; CogVideoX's own .pt
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file or Wan's own folder")
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="the folder to make; it must be new"
    )
    parser.add_argument("--vae", metavar="PATH", help="a VAE file, or a model folder that has one")
    parser.add_argument("--text", metavar="DIR", help="a folder with text encoder and tokenizer")
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="how it is streamed (default: told from the file)",
    )
    parser.add_argument(
        "--heads",
        type=arguments.whole(1, 4096),
        help="attention heads, when they are not as wide as published",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(memory.DTYPE_BYTES),
        help="of the weights written (default: as they are)",
    )


def run(options: argparse.Namespace) -> int:
    """Convert and say what came out. Returns the exit code."""
    for path in (options.source, options.vae, options.text):
        if path is not None and not os.path.exists(path):
            raise InputError(f"{path} does not exist")
    out = Path(options.output)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already; give a new name or remove it first")

    import torch

    from ..checkpoint.convert import convert

    out = convert(
        options.source,
        out,
        vae=options.vae,
        text=options.text,
        recipe=options.recipe,
        num_heads=options.heads,
        dtype=options.dtype and getattr(torch, options.dtype),
    )
    counts = memory.count_parameters(open_folder(out))
    parts = ", ".join(f"{name} {memory.millions(count)}" for name, count in counts.items())
    print(f"{out}: {parts}")
    return 0
