"""The application on a Ray of this machine: two CPU replicas, through Serve's proxy."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from livereel.engine.serve import run
from livereel.engine.serve.client import Frame, Stream
from livereel.engine.serve.fake import number_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve]"),
]
PATIENCE_S = 600.0
KEY = "a key for tests"


class Watcher(threading.Thread):
    """Someone who watches a stream until told to stop."""

    def __init__(self, url: str, prompt: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self._stream = Stream(url, prompt, api_key=KEY, **options)
        self._enough = threading.Event()
        self.frames: list[Frame] = []

    def run(self) -> None:
        with self._stream as stream:
            for frame in stream:
                self.frames.append(frame)
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

    def behind(self) -> int:
        """How many frames, of one that came last, its picture is behind its number: those that were
        made twice, since they were lost with a replica."""
        last = self.frames[-1]
        return last.number - number_of(last.pixels)

    def check(self) -> None:
        """No number came twice, none is missing."""
        for frame, after in itertools.pairwise(self.frames):
            assert frame.number < after.number <= frame.number + frame.span
        assert self.frames[0].number == 0
        assert self._stream._stream.lost == 0


def wait(condition: Callable[[], bool]) -> None:
    over = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < over, "it takes too long"
        time.sleep(0.2)


CHILD = """
import json, sys, threading, time
from livereel.engine.cli import replicas

ray_app = replicas.app()

def watch():
    from ray import serve
    while "Engines" in (known := serve.status().applications["livereel"].deployments):
        print(known["Engines"].replica_states.get("RUNNING", 0), flush=True)
        time.sleep(0.5)

settings = ray_app.Settings(device="cpu", cpus_each=0.1, max_replicas=2, **json.loads(sys.argv[3]))
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
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "60",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


class Live:
    """The application in a process, with a Ray of its own that takes little."""

    def __init__(self, **settings: Any) -> None:
        probe = run.bind("127.0.0.1", 0)
        port = probe.getsockname()[1]
        probe.close()
        self.url = f"http://127.0.0.1:{port}"
        self.running = 0
        """Replicas that Serve says are running."""
        self.moves = 0
        """Sessions that went on at another replica."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, KEY, str(port), json.dumps(settings)],
            env={**os.environ, **LITTLE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.running = int(line)
            else:
                self.moves += "session_moved" in line
                print(line, end="")

    def replicas(self) -> list[psutil.Process]:
        """The engines' processes."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ServeReplica:livereel:Engines" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
        self.process.kill()
        self.process.wait()

    def comes_up(self) -> bool:
        """Wait until it runs. It does not where the processes that Ray starts take longer than 15
        seconds to do so: Ray ends one of its own then, and the others live on."""
        wait(lambda: self.running > 0 or self._failed())
        return self.running > 0

    def _failed(self) -> bool:
        if self.process.poll() is not None:
            return True
        family = psutil.Process(self.process.pid).children()
        return any(process.status() == psutil.STATUS_ZOMBIE for process in family)

    def stop(self) -> None:
        """End it as people do; nothing of it stays behind."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0
        wait(lambda: not any(process.is_running() for process in family))


@contextlib.contextmanager
def live(**settings: Any) -> Iterator[Live]:
    for _ in range(4):
        started = Live(**settings)
        if started.comes_up():
            break
        started.end()
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end()


FAKE: dict[str, Any] = dict(
    fake=(0.1, 0.02, 4), sessions_each=2, upscale_delay_s=5, downscale_delay_s=10
)


def test_replicas_come_and_go_with_sessions_and_these_go_on() -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    watchers: list[Watcher] = []

    def watch(*prompts: str) -> None:
        for prompt in prompts:
            watchers.append(Watcher(app.url, prompt))
            watchers[-1].start()
            watchers[-1].more(1)

    with live(**FAKE) as app:
        assert httpx.get(f"{app.url}/readyz").status_code == 401
        assert httpx.get(f"{app.url}/readyz", headers=headers, timeout=60).status_code == 200
        (first,) = app.replicas()
        watch("red", "blue", "green")
        wait(lambda: app.running == 2)  # there are more than two sessions each
        watch("white")  # goes where nobody is
        watchers[-1].more(20)

        first.kill()
        for watcher in watchers:
            watcher.more(60)
        wait(lambda: app.moves >= 3)
        wait(lambda: app.running == 2 and first.pid not in {p.pid for p in app.replicas()})
        watch("yellow")  # goes to the new one, where nobody is

        for watcher in watchers[1:-1]:
            watcher.stop()
        last = watchers[0], watchers[-1]
        behind = [watcher.behind() for watcher in last]
        wait(lambda: app.running == 1 and len(app.replicas()) == 1)
        wait(lambda: app.moves >= 4)
        for watcher in last:
            watcher.more(60)
        assert [watcher.behind() for watcher in last] == behind
        app.stop()
    for watcher in watchers:
        watcher.join(PATIENCE_S)
        watcher.check()


def test_the_model_goes_on_at_another_replica() -> None:
    """One stream at each of two replicas; the pictures of that whose replica dies go on, too."""
    prompt = "a large red circle moving right on a black background"
    with live(min_replicas=2) as app:
        wait(lambda: app.running == 2)
        watchers = [Watcher(app.url, prompt, seed=seed) for seed in (1, 2)]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.more(40)
        app.replicas()[0].kill()
        for watcher in watchers:
            watcher.more(80)
        wait(lambda: app.moves >= 1)
        app.stop()
    for watcher in watchers:
        watcher.join(PATIENCE_S)
        watcher.check()
        colors = np.stack([frame.pixels for frame in watcher.frames]).mean((1, 2))
        assert abs(colors - colors[0]).max() < 15
        assert (colors[:, 0] > 1.5 * colors[:, 1:].max(1)).all()


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
