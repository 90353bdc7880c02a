"""What this machine is and what it has left: processor, cores, memory. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The instruction sets that decide how fast a CPU is here."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    have = cpu_flags()
    return [feature for feature in wanted if feature in have]


def cpu_flags() -> frozenset[str]:
    """All that Linux says the CPU can do."""
    return frozenset((_cpu_line("flags") or _cpu_line("Features")).split())


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_ram(root: Path = Path("/")) -> int | None:
    """Bytes of RAM this process may still take: the least that machine and cgroups leave it.

    None when the machine doesn't tell.
    """
    limits = [*_meminfo(root), *_cgroups(root)]
    if limits:
        return max(0, min(limits))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory() -> int | None:
    """The most bytes of RAM this process has held; None when the machine doesn't tell.

    Linux carries `ru_maxrss` over from the parent of a new process, so its VmHWM is read instead.
    """
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_line(field: str) -> str:
    lines = (line for line in _lines(Path("/proc/cpuinfo")) if line.startswith(field))
    return next(lines, "").partition(":")[2].strip()


def _meminfo(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroups(root: Path) -> Iterator[int]:
    """What each cgroup above this process still allows, version 2 and version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = mount / path.strip("/")
        while True:
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                # File pages that nobody touched lately are given back when memory runs short.
                yield limit - used + _inactive_file(group)
            if group == mount:
                break
            group = group.parent


def _inactive_file(group: Path) -> int:
    stat = dict(line.split()[:2] for line in _lines(group / "memory.stat"))
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
