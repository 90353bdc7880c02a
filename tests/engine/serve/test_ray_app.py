"""The application on a Ray of this machine: two CPU replicas, no model, through Serve's proxy."""

from __future__ import annotations

import importlib.util
import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from livereel.engine.serve.client import Stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve]"),
]
PATIENCE_S = 240.0


class Watcher(threading.Thread):
    """Someone who watches a stream until told to stop."""

    def __init__(self, url: str, prompt: str) -> None:
        super().__init__(daemon=True)
        self._stream = Stream(url, prompt, api_key="a key for tests")
        self._enough = threading.Event()
        self.frames: list[tuple[int, int]] = []
        """Each one's number, and how many it may stand for."""

    def run(self) -> None:
        with self._stream as stream:
            for frame in stream:
                self.frames.append((frame.number, frame.span))
                if self._enough.is_set():
                    break

    def more(self, count: int) -> None:
        """Wait for so many frames more."""
        wanted = len(self.frames) + count
        wait(lambda: len(self.frames) >= wanted or not self.is_alive())
        assert self.is_alive()

    def stop(self) -> None:
        self._enough.set()
        self.join(30)

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


def replicas() -> set[str]:
    """The engines' actors."""
    import ray

    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if "#Engines#" in actor["name"]}


def running() -> int:
    from ray import serve

    engines = serve.status().applications["livereel"].deployments["Engines"]
    return sum(n for state, n in engines.replica_states.items() if state == "RUNNING")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A local Ray that takes little, kept to this process's cores, with the application on it."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_raylet_start_wait_time_s": "300",
            "LIVEREEL_API_KEY": "a key for tests",
        }.items():
            patch.setenv(name, value)
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        from livereel.engine.serve import ray_app

        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ray.init(
            namespace="livereel", num_cpus=2, include_dashboard=False, log_to_driver=False,
            object_store_memory=80 << 20,
        )  # fmt: skip
        try:
            serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
            settings = ray_app.Settings(
                fake=(0.1, 0.02, 4), device="cpu", min_replicas=1, max_replicas=2,
                sessions_each=1, cpus_each=0.1, upscale_delay_s=0, downscale_delay_s=5,
            )  # fmt: skip
            serve.run(ray_app.build(settings), name="livereel", route_prefix="/")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def test_replicas_come_with_sessions_and_these_go_on_when_one_dies_or_is_taken_away(
    url: str,
) -> None:
    import httpx
    import ray

    assert httpx.get(f"{url}/readyz").status_code == 401
    headers = {"Authorization": "Bearer a key for tests"}
    assert httpx.get(f"{url}/readyz", headers=headers).json() == {"status": "ready"}
    (first,) = replicas()
    watchers = [Watcher(url, prompt) for prompt in ("red", "blue")]
    for watcher in watchers:
        watcher.start()
    wait(lambda: running() == 2)  # more than one session each
    late = Watcher(url, "green")  # goes where nobody is
    late.start()
    late.more(20)

    ray.kill(ray.get_actor(first, namespace="serve"))
    for watcher in [*watchers, late]:
        watcher.more(60)
    wait(lambda: running() == 2)  # Serve has another one made

    for watcher in (watchers[1], late):
        watcher.stop()
    wait(lambda: running() == 1 and len(replicas()) == 1)
    watchers[0].more(60)
    watchers[0].stop()
    for watcher in [*watchers, late]:
        watcher.check()
