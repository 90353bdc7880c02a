"""Watch a stream of `livereel serve`, change its prompt on the way, keep what was seen.

livereel serve &
python -m livereel.engine.serve.example http://127.0.0.1:8000 out.mp4
"""

from __future__ import annotations

import sys

import numpy as np

from ..types import Video
from .client import Stream

PROMPTS = (
    "a red circle moving right on a black background",
    "a large blue star moving left on a white background",
    "a small yellow square moving up on a gray background",
)
EVERY = 48


def main(url: str, path: str) -> None:
    """Three seconds of each prompt, at 16 frames a second."""
    frames = []
    with Stream(url, PROMPTS[0], seed=1) as stream:
        for frame in stream:
            frames.append(frame.pixels)
            part, at = divmod(len(frames), EVERY)
            if part == len(PROMPTS):
                break
            if at == 0:
                stream.update(prompt=PROMPTS[part])
    Video(frames=np.stack(frames), fps=16).save(path)


if __name__ == "__main__":
    main(*sys.argv[1:3])
