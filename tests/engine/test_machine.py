"""What the machine says of itself, from files made up and from the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from livereel.engine import machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}


def test_free_memory_is_what_the_machine_says(tmp_path: Path) -> None:
    assert machine.available_ram(write(tmp_path, MEMINFO)) == 8000 * 1024


def test_a_parent_cgroup_may_be_the_tightest(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs"
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/jobs/one\n",
            f"{group}/memory.max": "3000000",
            f"{group}/memory.current": "1000000",
            f"{group}/memory.stat": "anon 900000\ninactive_file 50000\n",
            f"{group}/one/memory.max": "max",
            f"{group}/one/memory.current": "900000",
        },
    )
    assert machine.available_ram(root) == 2_050_000


def test_cgroup_version_1_inside_a_container(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "3:cpu:/x\n2:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "500000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "600000",
        },
    )
    assert machine.available_ram(root) == 0


def test_a_machine_without_proc_still_answers(tmp_path: Path) -> None:
    free = machine.available_ram(tmp_path)
    assert free is None or free > 0


def test_peak_memory_remembers_what_was_touched_and_not_what_the_parent_holds() -> None:
    program = (
        "from livereel.engine.machine import peak_memory; before = peak_memory(); "
        "b'x' * (64 << 20); print([before, peak_memory()])"
    )
    ballast = b"x" * (256 << 20)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    before, after = json.loads(done.stdout)
    assert before < len(ballast)
    assert 60 << 20 < after - before < 80 << 20


def test_there_is_a_processor_with_a_core() -> None:
    assert machine.cpu_name()
    assert machine.cores() >= 1
