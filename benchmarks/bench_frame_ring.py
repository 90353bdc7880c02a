"""How many frames a second cross from one process to another.

`python -m livereel.benchmarks.bench_frame_ring`: the reader looks at every row of every frame where
it lies in shared memory, the writer copies each one in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import numpy as np

from livereel.engine.native import FrameRing

_READER = """
import sys
import numpy as np
from livereel.engine.native import FrameRing
ring = FrameRing.attach(int(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    frame = ring.read(timeout=60)
    assert frame.tag == number
    np.asarray(frame)[:, 0].sum()
print("done", flush=True)
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="832x480", help="width x height")
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--slots", type=int, default=8)
    args = parser.parse_args(argv)
    width, height = map(int, args.size.split("x"))
    rate = measure(width, height, frames=args.frames, slots=args.slots)
    print(f"{args.size} RGB, {args.frames} frames, {args.slots} slots: {rate:,.0f} frames a second")


def measure(width: int, height: int, *, frames: int, slots: int) -> float:
    """Frames of that size a second, from the first that is written to the last that was read."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ring = FrameRing.create(slots=slots, slot_bytes=frame.size, drop_oldest=False)
    command = [sys.executable, "-c", _READER, str(ring.fileno()), str(frames)]
    with subprocess.Popen(command, pass_fds=[ring.fileno()], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        start = time.perf_counter()
        for number in range(frames):
            if not ring.write(frame, tag=number, timeout=60):
                raise SystemExit("the reader does not read")
        if not reader.stdout.readline():
            raise SystemExit("the reader failed")
        return frames / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
