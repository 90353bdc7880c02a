"""Memory of encoders that came and went is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COME_AND_GO = """
import sys
from pathlib import Path
import numpy as np
from livereel.engine.serve import heap
from livereel.engine.serve.encoder import LEVELS, Encoder

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "compact":
    heap.keep_compact()
frame = np.zeros((256, 256, 3), np.uint8)
small, before = [], 0
for turn in range(4):
    encoders = [Encoder(256, 256, 16.0, LEVELS[0]) for _ in range(8)]
    small += [encoder.encode(frame) for encoder in encoders]
    full = resident()
    del encoders
    if turn == 0:
        before = resident()
print(full - resident(), resident() - before)
"""


def come_and_go(heap: str) -> tuple[int, int]:
    """Bytes that the last encoders gave back, and by how much the process had grown then."""
    told = subprocess.run(
        [sys.executable, "-c", COME_AND_GO, heap], capture_output=True, text=True, check=True
    ).stdout
    given_back, grown = map(int, told.split())
    return given_back, grown


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_encoders_leave_no_holes() -> None:
    """How much stays is the C library's and the encoder's; that it is far less is ours."""
    given_back, grown = come_and_go("compact")
    _, grown_as_glibc_begins = come_and_go("as it is")
    assert given_back > 2 << 20
    assert grown < grown_as_glibc_begins / 2
