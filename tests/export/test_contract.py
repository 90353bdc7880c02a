"""The graphs' documented contract: the loop in the docstring streams LiveReel's own frames."""

from __future__ import annotations

import textwrap
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import livereel.export
from livereel.engine.engine import Engine
from livereel.engine.package import read_manifest
from livereel.engine.sampling.noise import normal

PROMPT, SEED, CHUNKS = "a red ball moving left", 5, 4


def example() -> str:
    """The docstring's code: its last block of indented lines."""
    text = livereel.export.__doc__ or ""
    start, end = text.index("    import json"), text.index("`text` is what")
    return textwrap.dedent(text[start:end])


def test_the_documented_loop_streams_the_same_frames(exported: Path, engine: Engine) -> None:
    shown: list[np.ndarray[Any, Any]] = []
    names = {
        "package": str(exported),
        "chunks": CHUNKS,
        "text": engine.runner.encode_text(PROMPT, 8).numpy(),
        "noise": lambda chunk, step, shape: normal(SEED, chunk, step, shape).numpy(),
        "show": shown.append,
    }
    exec(example(), names)
    frames = np.concatenate(shown, axis=2)
    wanted = [chunk.frames for chunk in islice(engine.open(PROMPT, seed=SEED), CHUNKS)]
    got = ((frames[0].transpose(1, 2, 3, 0) + 1) * 127.5).round()
    assert np.abs(got - np.concatenate(wanted)).max() <= 1


def test_the_graphs_are_those_documented(exported: Path) -> None:
    text = livereel.export.__doc__ or ""
    manifest = read_manifest(exported)
    listed = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert set(manifest.graphs) <= listed
    assert [x.name for x in manifest.graphs["denoise"].inputs] == [
        "latent", "timestep", "text_k", "text_v", "past_k", "past_v", "positions",
    ]  # fmt: skip
