"""A `livereel serve` of one's own to measure, and what its processes cost."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass

import psutil

_READY = re.compile(r"LiveReel is live at (\S+)")


@dataclass(frozen=True)
class Usage:
    """Of the server's own process and of those under it, which are the engine's: seconds of CPU,
    resident bytes, and open files."""

    cpu_s: float
    engine_cpu_s: float
    memory: int
    engine_memory: int
    files: int
    engine_files: int


class Served:
    """The server as a child process; ends with the `with` block."""

    def __init__(self, model: str = "demo") -> None:
        self._model = model

    def __enter__(self) -> Served:
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "livereel.engine.cli", "serve", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--model", self._model, "--state", self._folder.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        found = _READY.match(said)
        if found is None:
            self._process.kill()
            raise RuntimeError(f"the server did not start: {said!r}")
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._folder.cleanup()

    def usage(self) -> Usage:
        """Since its start."""
        server = psutil.Process(self._process.pid)
        cpu, engine_cpu, engine_memory, engine_files = server.cpu_times(), 0.0, 0, 0
        for child in server.children(recursive=True):
            times = child.cpu_times()
            engine_cpu += times.user + times.system
            engine_memory += child.memory_info().rss
            engine_files += child.num_fds()
        return Usage(
            cpu_s=cpu.user + cpu.system,
            engine_cpu_s=engine_cpu,
            memory=server.memory_info().rss,
            engine_memory=engine_memory,
            files=server.num_fds(),
            engine_files=engine_files,
        )

    def metric(self, name: str) -> float:
        """The sum of a Prometheus series over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if re.match(rf"{re.escape(name)}(\{{|\s)", line)
        )
