"""`livereel embed`: a prompt's embedding in a file, for runtimes that read no text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint.folder import ModelFolder

SUMMARY = "write a prompt's embedding to a file, for the C++ runtime"
EXAMPLES = """\
examples:
  livereel export --format aoti -o packages/demo-aoti
  livereel embed "a red circle moving right on a black background" \\
      --model packages/demo-aoti -o circle.safetensors
  livereel-run packages/demo-aoti --prompt-embeds circle.safetensors --seconds 4 -o circle.y4m
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("prompt", type=arguments.prompt, help="what the video should show")
    parser.add_argument(
        "--model",
        default="demo",
        metavar="MODEL",
        help='"demo", a model folder or a package (default: demo)',
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="a safetensors file, which gets the tensor text, float32 [tokens, width]",
    )


def run(options: argparse.Namespace) -> int:
    """Encode and write. Returns the exit code."""
    from safetensors.torch import save_file

    folder = arguments.find_model(options.model)
    arguments.check_file(options.out)
    text = _encode(folder, options.prompt)
    draft = options.out.with_name(f"{options.out.name}.part")
    try:
        save_file({"text": text}, draft)
        draft.replace(options.out)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{options.out}: {text.shape[0]} tokens of {text.shape[1]} numbers")
    return 0


def _encode(folder: ModelFolder, prompt: str) -> Tensor:
    """The embedding `[tokens, width]`, fp32, by the model's encoder, or the package's graph."""
    import torch

    from ..engine import Engine
    from ..text.encoder import TextEncoder

    length = folder.stream.max_sequence_length
    with torch.inference_mode():
        if folder.exported:
            text = Engine.load(folder.path).runner.encode_text(prompt, length)
        else:
            text = TextEncoder.load(folder.path, dtype=torch.float32).encode([prompt], length)
    return text[0].float().contiguous()
