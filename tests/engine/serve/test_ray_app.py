"""The application on a Ray of this machine: two CPU replicas, no model, through Serve's proxy."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from livereel.engine.serve import run
from livereel.engine.serve.client import Stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve]"),
]
PATIENCE_S = 600.0
KEY = "a key for tests"


class Watcher(threading.Thread):
    """Someone who watches a stream until told to stop."""

    def __init__(self, url: str, prompt: str) -> None:
        super().__init__(daemon=True)
        self._stream = Stream(url, prompt, api_key=KEY)
        self._enough = threading.Event()
        self.frames: list[tuple[int, int]] = []
        """Each one's number, and how many it may stand for."""

    def run(self) -> None:
        with self._stream as stream:
            for frame in stream:
                self.frames.append((frame.number, frame.span))
                if self._enough.is_set():
                    stream.stop()

    def more(self, count: int) -> None:
        """Wait for so many frames more."""
        wanted = len(self.frames) + count
        wait(lambda: len(self.frames) >= wanted or not self.is_alive())
        assert self.is_alive()

    def stop(self) -> None:
        self._enough.set()
        self.join(PATIENCE_S)

    def check(self) -> None:
        """No number came twice, none is missing."""
        for (number, span), (following, _) in itertools.pairwise(self.frames):
            assert number < following <= number + span
        assert self.frames[0][0] == 0
        assert self._stream._stream.lost == 0


def wait(condition: Callable[[], bool]) -> None:
    over = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < over, "it takes too long"
        time.sleep(0.2)


CHILD = """
import sys, threading, time
from livereel.engine.cli import replicas

ray_app = replicas.app()

def watch():
    from ray import serve
    while "Engines" in (known := serve.status().applications["livereel"].deployments):
        print(known["Engines"].replica_states.get("RUNNING", 0), flush=True)
        time.sleep(0.5)

settings = ray_app.Settings(
    fake=(0.1, 0.02, 4), device="cpu", min_replicas=1, max_replicas=2, sessions_each=1,
    cpus_each=0.1, upscale_delay_s=0, downscale_delay_s=5,
)
ready = threading.Thread(target=watch, daemon=True).start
ray_app.run(settings, sys.argv[1], int(sys.argv[2]), ready)
"""
LITTLE = {
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # rather than a file in somebody's home
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 << 20),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # and patience, where the machine has other things to do
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_health_check_failure_threshold": "100",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


class Live:
    """The application in a process, with a Ray of its own that takes little."""

    def __init__(self) -> None:
        probe = run.bind("127.0.0.1", 0)
        port = probe.getsockname()[1]
        probe.close()
        self.url = f"http://127.0.0.1:{port}"
        self.running = 0
        """Replicas that Serve says are running."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, KEY, str(port)],
            env={**os.environ, **LITTLE},
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.running = int(line)

    def replicas(self) -> list[psutil.Process]:
        """The engines' processes."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ServeReplica:livereel:Engines" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            process.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def live() -> Iterator[Live]:
    started = Live()
    wait(lambda: started.running > 0 or started.process.poll() is not None)
    yield started
    if started.process.poll() is None:
        started.end()


def test_replicas_come_and_go_with_sessions_and_these_go_on_when_one_dies(live: Live) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{live.url}/readyz").status_code == 401
    assert httpx.get(f"{live.url}/readyz", headers=headers, timeout=60).status_code == 200
    (first,) = live.replicas()
    watchers = [Watcher(live.url, prompt) for prompt in ("red", "blue")]
    for watcher in watchers:
        watcher.start()
    wait(lambda: live.running == 2)  # there is more than a session each
    watchers.append(Watcher(live.url, "green"))  # goes where nobody is
    watchers[-1].start()
    watchers[-1].more(20)

    first.kill()
    for watcher in watchers:
        watcher.more(60)
    wait(lambda: live.running == 2 and first.pid not in {p.pid for p in live.replicas()})

    for watcher in watchers[1:]:
        watcher.stop()
    wait(lambda: live.running == 1 and len(live.replicas()) == 1)
    watchers[0].more(60)

    family = psutil.Process(live.process.pid).children(recursive=True)
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(PATIENCE_S) == 0
    wait(lambda: not any(process.is_running() for process in family))  # nothing stays behind
    watchers[0].join(PATIENCE_S)
    for watcher in watchers:
        watcher.check()


BATCH = """
from livereel.engine.orders import Order
from livereel.engine.cli import replicas

settings = replicas.app().Settings(
    fake=(0.01, 0.01, 4), device="cpu", min_replicas=2, max_replicas=2, sessions_each=2,
    cpus_each=0.1,
)
orders = [
    Order(
        line=i, prompt="red", seed=0, frames=10 * i, fps=16, width=128, height=128, steps=None
    )
    for i in range(1, 7)
]
made = dict.fromkeys(orders, 0)
for order, got in replicas.app().make_clips(settings, orders):
    made[order] += 0 if got is None else len(got)
print(list(made.values()))
"""


def test_clips_are_made_on_replicas() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BATCH], env={**os.environ, **LITTLE}, stdout=subprocess.PIPE,
        text=True, timeout=2 * PATIENCE_S, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[10, 20, 30, 40, 50, 60]"
