"""A model folder with damage anywhere in it loads or is refused in one sentence, never worse."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from livereel.engine.engine import Engine
from livereel.engine.errors import LiveReelError

JUNK = (b"", b"\x00", b"\xff\xfe", b"{", b"]", b'"', b"-1", b"1e999", b"null", b"NaN", b"[[[[" * 50)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with a piece cut out, put in, or changed; mostly near the start, where headers lie."""
    for _ in range(rng.randint(1, 3)):
        reach = len(data) if rng.random() < 0.3 else min(len(data), 400)
        at = rng.randrange(reach + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + rng.randint(1, 40) :]
        elif kind == 2:
            data = data[:at] + rng.choice(JUNK) + data[at:]
        else:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data


def load_damaged(tiny_folder: Path, tmp_path: Path, seeds: range) -> int:
    """Damages a file for each seed and loads the folder; how often it was refused."""
    names = sorted(p.relative_to(tiny_folder) for p in tiny_folder.rglob("*") if p.is_file())
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = tmp_path / "damaged"
        shutil.copytree(tiny_folder, folder)
        name = rng.choice(names)
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
        try:
            Engine.load(folder, device="cpu", dtype="float32")
        except LiveReelError as error:
            refused += 1
            if not str(error) or "\n" in str(error):
                pytest.fail(f"seed {seed}, {name}: not one line: {error}")
        except Exception as error:
            pytest.fail(f"seed {seed}, {name}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    return refused


def test_damage_is_refused_in_a_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    assert load_damaged(tiny_folder, tmp_path, range(30)) > 5


@pytest.mark.slow
def test_much_damage_is_refused_in_a_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    assert load_damaged(tiny_folder, tmp_path, range(1000, 1600)) > 100
