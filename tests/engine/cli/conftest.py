from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from livereel.engine import Chunk, ChunkStats, Video
from livereel.engine.cli import arguments


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The path of a tiny model folder: 64x48 at 16 fps, sizes in steps of 16, weights of nothing.

    It can be asked about, and a `FakeEngine` can stand for it, but it does not run.
    """
    folder = tmp_path / "model"
    classes = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
    stream = {"window": 3, "timesteps": [1000, 500], "fps": 16, "width": 64, "height": 48}
    transformer = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    files = {
        "model_index.json": {name: ["diffusers", cls] for name, cls in classes.items()},
        "livereel.json": stream,
        "transformer/config.json": transformer,
        "vae/config.json": {"base_dim": 8},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name in classes:
        save_file({"a": np.zeros(10, np.float32)}, folder / name / "model.safetensors")
    return str(folder)


class FakeEngine:
    """Gives gray frames in chunks of four and remembers what it was asked."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None
        self.asked: dict[str, Any] = {}
        self.before_chunk: Callable[[int], None] = lambda index: None

    def load(self, options: Any) -> FakeEngine:
        self.loaded = {name: getattr(options, name) for name in ("model", "device", "dtype")}
        return self

    def open(self, prompt: str, **asked: Any) -> Iterator[Chunk]:
        self.asked = {"prompt": prompt, **asked}
        total, height, width = asked["frames"], asked["height"], asked["width"]
        stats = ChunkStats(
            text_s=0,
            dit_s=0,
            cache_s=0,
            vae_s=0,
            convert_s=0,
            passes=3,
            decoder_calls=1,
            fps=9,
            lead_s=0.5,
            deadline_met=True,
            jitter_s=0,
            steps=2,
            rate=16,
            skipped=(),
        )
        for index, start in enumerate(range(0, total, 4)):
            self.before_chunk(index)
            count = min(4, total - start)
            frames = np.full((count, height, width, 3), 40 * index % 256, np.uint8)
            yield Chunk(frames=frames, index=index, pts=start, stats=stats)

    def generate(self, prompt: str, **asked: Any) -> Video:
        self.asked = {"prompt": prompt, **asked}
        shape = (asked["frames"], asked["height"], asked["width"], 3)
        for done in (1, 2):
            asked["progress"](done, 2)
        return Video(frames=np.zeros(shape, np.uint8), fps=asked["fps"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """What `livereel generate` loads instead of a model."""
    engine = FakeEngine()
    monkeypatch.setattr(arguments, "load_engine", engine.load)
    return engine
