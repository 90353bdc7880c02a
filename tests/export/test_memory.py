"""A large DiT is exported and checked without its weights being held twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WIDE = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
"""The blocks of Wan2.1 1.3B."""
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from livereel.engine.checkpoint.folder import open_folder
from livereel.export import lint
from livereel.export.onnx import OnnxWriter, import_onnx_ir
from livereel.export.package import plan_export

def own():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

def watch():
    while True:
        seen.append(own())
        time.sleep(0.02)

import_onnx_ir()
plan, out = plan_export(open_folder(sys.argv[1])), Path(sys.argv[2])
seen = [own()]
threading.Thread(target=watch, daemon=True).start()
writer, steps = OnnxWriter(out), dict(plan.dit())
graphs = {name: writer.write(name, step) for name, step in steps.items()}
written = max(seen)
loaded = {name: writer.load(graph) for name, graph in graphs.items()}
errors = lint.errors(plan, "transformer", steps, loaded)
print(json.dumps({
    "start": seen[0], "written": written, "checked": max(seen), "error": max(errors.values()),
}))
"""
"""Exports a DiT, and says what memory it held at most, files that are mapped not counted."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_weights_are_not_held_twice(tiny_folder: Path, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    folder, out = shutil.copytree(tiny_folder, tmp_path / "wide"), tmp_path / "package"
    out.mkdir()
    config = WanTransformer3DModel.load_config(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    WanTransformer3DModel.from_config(config, **WIDE).save_pretrained(folder / "transformer")
    weights = sum(file.stat().st_size for file in (folder / "transformer").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, out], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    print(told, weights)
    assert told["checked"] - told["start"] < weights, (told, weights)
    assert told["error"] <= 1e-3
