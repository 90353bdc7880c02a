"""A whole server in a thread of the test's process, on a port of its own, before a fake engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from livereel.engine.serve import run
from livereel.engine.serve.app import Server
from livereel.engine.serve.fake import FakeEngine
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.security import Guard

T = TypeVar("T")


class Live:
    """A server that listens; `server` and `engine` may be looked into by `call`."""

    def __init__(
        self,
        folder: Path,
        engine: FakeEngine,
        *,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.engine = engine
        guard = Guard(host="127.0.0.1", key=key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._socket = run.bind("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(engine=engine, guard=guard, folder=folder, limits=limits or Limits())
        self._web = run.web_server(self.server)
        self.submit(self.server.start()).result(300)
        self._serving = self.submit(self._web.serve(sockets=[self._socket]))
        self.http = httpx.Client(base_url=self.url, timeout=20)
        while not self._web.started:
            self.call(asyncio.sleep(0.01))

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives when it has run on the server's loop."""
        return self.submit(work).result(20)

    def close(self) -> None:
        self.http.close()
        self._web.should_exit = True
        self._serving.result(20)
        self.call(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


MakeLive = Callable[..., Live]


@pytest.fixture
def make_live(tmp_path: Path) -> Iterator[MakeLive]:
    """Starts servers; `engine`, `key`, `limits` and `folder` as wanted."""
    started = []

    def make(**wanted: Any) -> Live:
        folder = wanted.pop("folder", tmp_path / "state")
        started.append(Live(folder, wanted.pop("engine", FakeEngine()), **wanted))
        return started[-1]

    yield make
    for live in started:
        live.close()


@pytest.fixture
def live(make_live: MakeLive) -> Live:
    """A server with a fake engine for four sessions."""
    return make_live()
