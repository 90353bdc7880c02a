"""CogVideoX's VAE with random weights on a GPU: 49 frames decoded, beside diffusers in turns.

    python -m livereel.benchmarks.bench_cogvideox [--rounds 5] [--size 720x480] [--json FILE]

All roads decode the same latents in the same chunks, 3, 2, 2, ...; weights are drawn on the device,
so nothing is read from disk. diffusers is measured as it comes, and once more with its convolutions
channels last; where it is not installed it is left out. This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from livereel.engine.layers.layout import channels_last
from livereel.engine.models.cogvideox.vae import CogVideoXVAE

from .harness import REPO, Environment, write_json
from .models import find
from .random_weights import random_part

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = ("livereel", "torch", "triton", "diffusers")
LATENTS = 13


def build(device: torch.device, dtype: torch.dtype) -> CogVideoXVAE:
    """The published VAE's layout, with weights of a trained model's size."""
    torch.manual_seed(0)
    return cast(CogVideoXVAE, random_part(find("cogvideox-2b").vae, device, dtype))


def peers(vae: CogVideoXVAE) -> dict[str, Callable[[Tensor], Tensor]]:
    """diffusers' decoders with the same weights."""
    if find_spec("diffusers") is None:
        return {}
    diffusers: Any = import_module("diffusers")

    def load() -> Any:
        with torch.device("meta"):
            model = diffusers.AutoencoderKLCogVideoX()
        model.load_state_dict(vae.state_dict(), assign=True)
        return model.eval().requires_grad_(False)

    plain, last = load(), load()
    last.load_state_dict({k: v.clone() for k, v in vae.state_dict().items()}, assign=True)
    channels_last(last)
    return {
        "diffusers": lambda z: plain.decode(z).sample,
        "diffusers, channels last": lambda z: (
            last.decode(z.contiguous(memory_format=torch.channels_last_3d)).sample
        ),
    }


def measure(decode: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[float, int]:
    """Milliseconds of one decoding, and the most memory held beside what was held before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    decode(latents)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), torch.cuda.max_memory_allocated() - before


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, if asked, write. Returns the exit code."""
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="bench_cogvideox", description=summary)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="720x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("bench_cogvideox runs on a CUDA device, and torch sees none here")
    width, height = (int(side) // 8 for side in options.size.split("x"))
    device, dtype = torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    vae = build(device, dtype)
    fused = vae.fused()
    roads: dict[str, Callable[[Tensor], Tensor]] = {
        "triton": lambda z: fused.decode(z)[0],
        "reference": lambda z: vae.decode(z)[0],
        **peers(vae),
    }
    latents = torch.randn(1, vae.channels, LATENTS, height, width, device=device, dtype=dtype)
    environment = Environment.capture(threads=torch.get_num_threads(), packages=PACKAGES, repo=REPO)
    results: dict[str, list[tuple[float, int]]] = {}
    report: dict[str, Any] = {}
    written = {
        "size": options.size,
        "roads": report,
        "environment": dataclasses.asdict(environment),
    }
    for turn in range(options.rounds + 1):
        for name, decode in roads.items():
            if "failed" in report.get(name, {}):
                continue
            try:
                figure = measure(decode, latents)
            except Exception as error:  # the others have their turn
                traceback.print_exc()
                report[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
                continue
            if turn:  # the first one compiles and tunes
                own = results.setdefault(name, [])
                own.append(figure)
                most = max(peak for _, peak in own)
                report[name] = {"ms": [ms for ms, _ in own], "peak_bytes": most}
        if options.json is not None:
            write_json(options.json, written)
    for name, found in report.items():
        said = "failed"
        if "ms" in found:
            said = f"{statistics.median(found['ms']):8.1f} ms  {found['peak_bytes'] / 1e9:6.1f} GB"
        print(f"{name:26}{said}")
    return int(any("failed" in found for found in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
