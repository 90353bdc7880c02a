"""A stream of Wan 2.1 1.3B with random weights on a GPU: how fast, and where the time goes.

    python -m livereel.benchmarks.bench_wan [--chunks 20] [--size 832x480] [--json FILE]

Weights are drawn on the device, so nothing is read from disk; what is timed does not depend on
their values. The recipe is Self-Forcing's: chunks of 3 latent frames in a window of 21, four passes
and the cache pass. Each road is a stream of its own: the reference, Triton's kernels, these
replayed as CUDA graphs, and that with the DiT in fp8 where the chip has it. One that fails is told,
and the file has what there is after each. This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
import traceback
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from livereel.engine.config import DEFAULT_SELF_FORCING
from livereel.engine.layers.linear_fp8 import convert_linears
from livereel.engine.layers.road import Road
from livereel.engine.models.wan.transformer import WanTransformer
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

from .harness import REPO, Environment, write_json
from .models import find
from .random_weights import RandomText, random_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from livereel.engine.text.encoder import TextEncoder

PACKAGES = ("livereel", "torch", "triton")
WARM_UP = 9
"""Chunks until the window is full and graphs are captured."""
ROADS: tuple[tuple[str, Road, bool, bool], ...] = (
    ("triton, graphs", "triton", True, False),
    ("triton", "triton", False, False),
    ("reference", "reference", False, False),
    ("triton, graphs, fp8", "triton", True, True),
)
"""Name, road, whether graphs are replayed, and whether the DiT is in fp8 from then on."""


def build(device: torch.device, dtype: torch.dtype) -> tuple[WanTransformer, WanVAE]:
    """The DiT of 1.3B and Wan 2.1's VAE, with weights of a trained model's size."""
    dit, vae = random_parts(find("wan2.1-1.3b"), device, dtype)
    return cast(WanTransformer, dit), cast(WanVAE, vae)


def measure(runner: TorchRunner, size: tuple[int, int], chunks: int) -> dict[str, Any]:
    """One stream's first frame, steady chunks and peak memory, in milliseconds and bytes."""
    width, height = size
    config = replace(DEFAULT_SELF_FORCING, width=width, height=height)
    start = StreamState("", seed=0, steps=len(config.timesteps), width=width, height=height)
    torch.cuda.reset_peak_memory_stats()
    session = Session(runner, config, start, model="random", fps=config.fps)
    begun = time.perf_counter()
    next(session)
    first = time.perf_counter() - begun
    list(islice(session, WARM_UP - 1))
    begun = time.perf_counter()
    made = list(islice(session, chunks))
    took = time.perf_counter() - begun
    stages = {
        stage: 1000 * statistics.median(getattr(chunk.stats, f"{stage}_s") for chunk in made)
        for stage in ("dit", "cache", "vae", "convert")
    }
    frames = sum(len(chunk.frames) for chunk in made)
    return {
        "first_frame_ms": 1000 * first,
        "chunk_ms": 1000 * took / chunks,
        "fps": frames / took,
        "stages_ms": stages,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, if asked, write. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench_wan", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--size", default="832x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("bench_wan runs on a CUDA device, and torch sees none here")
    width, height = (int(side) for side in options.size.split("x"))
    device, dtype = torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    dit, vae = build(device, dtype)
    text = cast("TextEncoder", RandomText(device, dit.text_width))
    environment = Environment.capture(threads=torch.get_num_threads(), packages=PACKAGES, repo=REPO)
    results: dict[str, Any] = {}
    report = {
        "model": "Wan 2.1 1.3B, random weights, bfloat16",
        "size": options.size,
        "gpu": torch.cuda.get_device_name(device),
        "environment": dataclasses.asdict(environment),
        "roads": results,
    }
    for name, road, graphs, fp8 in ROADS:
        if fp8 and torch.cuda.get_device_capability(device) < (9, 0):
            continue
        if fp8:
            convert_linears(dit, keep=dit.keep_in_bf16, road=road)
        try:
            runner = TorchRunner.on_road(road, dit, vae, text, device, dtype)
            found = measure(replace(runner, graphs=graphs), (width, height), options.chunks)
            said = f"{found['fps']:7.1f} fps  {found['chunk_ms']:8.1f} ms/chunk"
        except Exception as error:  # the other roads have their turn, what was measured is kept
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
            said = "failed"
        results[name] = found
        print(f"{name:21}{said}", flush=True)
        if options.json is not None:
            write_json(options.json, report)
        gc.collect()
        torch.cuda.empty_cache()
    return int(any("failed" in found for found in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
