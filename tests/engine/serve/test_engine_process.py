"""The engine's process: it serves, dies, hangs, is started anew, and leaves nothing behind.

Its backend has no model, so that a process starts in a moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeGuard

import pytest

from livereel.engine.errors import InputError, ResourceError
from livereel.engine.serve import engine_process
from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.fake import color_of, number_of
from livereel.engine.serve.messages import (
    Applied,
    ChunkReady,
    DeadlineMissed,
    Ended,
    Event,
    Failed,
    Pause,
    Resumed,
    Spec,
    Update,
)
from livereel.engine.serve.worker import Setup
from livereel.engine.serve.worker_client import Busy, Gone, Rejected

from .talk import held

FAST = Setup(fake=(0.005, 0.002, 4))


def with_engine(
    body: Callable[[EngineProcess], Awaitable[None]], setup: Setup = FAST, timeout: float = 90
) -> None:
    async def run() -> None:
        engine = EngineProcess(setup)
        await engine.start()
        pid = engine.pid
        try:
            await body(engine)
        finally:
            await engine.stop()
            assert not _alive(pid)

    asyncio.run(asyncio.wait_for(run(), timeout))


def _alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Seconds until it holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it does not come to hold"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


class Watcher:
    """Takes all that a session's stream has."""

    def __init__(self, engine: EngineProcess, session: str) -> None:
        self.events: list[Event] = []
        self.numbers: list[int] = []
        self.colors: dict[int, tuple[int, ...]] = {}
        self.task = asyncio.create_task(self._watch(engine, session))

    async def _watch(self, engine: EngineProcess, session: str) -> None:
        async for event in engine.events(session):
            if isinstance(event, ChunkReady):
                for i, picture in enumerate(event.pixels):
                    self.numbers.append(number_of(picture))
                    assert self.numbers[-1] == event.pts + i
                    self.colors[event.pts + i] = tuple(picture[-1, -1])
            else:
                self.events.append(event)

    def seen(self, frames: int) -> Callable[[], bool]:
        wanted = len(self.numbers) + frames
        return lambda: len(self.numbers) >= wanted


def test_a_stream_from_its_first_frame_to_its_last() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", frames=30, fps=60.0))
        watcher = Watcher(engine, opened.session)
        await watcher.task
        assert watcher.numbers == list(range(30))
        assert watcher.events[-1] == Ended(reason="finished")
        with pytest.raises(Gone):
            await engine.control(opened.session, Pause(event_id="p"))
        assert (await engine.state()).sessions == () and engine.health == "ready"

    with_engine(body)


def test_an_engine_that_cannot_start_says_why() -> None:
    async def run() -> None:
        engine = EngineProcess(Setup(model="/nowhere"))
        with pytest.raises(ResourceError, match="/nowhere"):
            await engine.start()
        assert engine.pid is None
        await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 300))


def test_what_the_engine_refuses_comes_back_as_it_was_raised() -> None:
    async def body(engine: EngineProcess) -> None:
        with pytest.raises(InputError, match="the prompt is empty"):
            await engine.open(Spec(prompt=" "))
        opened = await engine.open(Spec(prompt="a circle"))
        with pytest.raises(Rejected, match="steps is 9"):
            await engine.control(opened.session, Update(event_id="1", steps=9))
        with pytest.raises(Busy, match="1 sessions are open") as refused:
            await engine.open(Spec(prompt="a circle"))
        assert refused.value.retry_after_s > 0
        await until(lambda: engine.health == "busy")

    with_engine(body, Setup(fake=(0.005, 0.0, 1), sessions=1))


def test_a_killed_engine_is_started_anew_and_its_sessions_go_on() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await until(watcher.seen(120))  # a snapshot was taken by now
        await engine.control(opened.session, Update(event_id="1", prompt="a square"))
        await until(lambda: any(isinstance(e, Applied) for e in watcher.events))
        await until(watcher.seen(20))
        old = engine.pid
        assert old is not None
        os.kill(old, signal.SIGKILL)
        assert await until(lambda: engine.health == "down") < 2
        with pytest.raises(Busy, match="down"):
            await engine.open(Spec(prompt="a circle"))
        await until(lambda: any(isinstance(e, Resumed) for e in watcher.events))
        await until(watcher.seen(60))
        assert watcher.numbers == list(range(len(watcher.numbers)))
        assert watcher.colors[len(watcher.numbers) - 1] == color_of("a square")
        assert [e.event_id for e in watcher.events if isinstance(e, Applied)] == ["1"]
        assert engine.restarts == 1 and engine.pid != old and not _alive(old)

    with_engine(body)


def test_a_paused_session_is_still_paused_in_the_next_engine() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await until(watcher.seen(10))
        await engine.control(opened.session, Pause(event_id="p"))
        await until(lambda: any(isinstance(e, Applied) for e in watcher.events))
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: any(isinstance(e, Resumed) for e in watcher.events))
        await until(lambda: engine.health == "ready")
        await asyncio.sleep(0.5)
        (session,) = (await engine.state()).sessions
        assert session.state == "paused"
        assert [e.event_id for e in watcher.events if isinstance(e, Applied)] == ["p"]

    with_engine(body)


def test_a_stopped_engine_is_seen_within_two_seconds_and_replaced() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await until(watcher.seen(120))
        old = engine.pid
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        assert await until(lambda: engine.health == "silent") < 2
        await until(lambda: engine.health == "ready")
        await until(watcher.seen(60))
        assert watcher.numbers == list(range(len(watcher.numbers))) and not _alive(old)

    with_engine(body)


def test_a_session_that_kills_the_engine_is_given_up_and_no_other() -> None:
    async def body(engine: EngineProcess) -> None:
        good = Watcher(engine, (await engine.open(Spec(prompt="a circle", fps=48.0))).session)
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        bad = Watcher(engine, opened.session)
        await until(bad.seen(20))
        await engine.control(opened.session, Update(event_id="1", prompt="crash"))
        await bad.task
        assert isinstance(bad.events[-2], Failed) and bad.events[-2].code == "engine"
        assert bad.events[-1] == Ended(reason="failed")
        await until(good.seen(60))
        assert good.numbers == list(range(len(good.numbers)))

    with_engine(body)


def test_a_pass_that_never_ends_is_ended_and_other_sessions_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_process, "HUNG_S", 0.5)

    async def body(engine: EngineProcess) -> None:
        good = Watcher(engine, (await engine.open(Spec(prompt="a circle", fps=48.0))).session)
        await until(good.seen(60))
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        bad = Watcher(engine, opened.session)
        await until(bad.seen(10))
        await engine.control(opened.session, Update(event_id="1", prompt="hang"))
        await bad.task
        assert bad.events[-1] == Ended(reason="failed")
        await until(good.seen(60))
        assert good.numbers == list(range(len(good.numbers))) and engine.restarts >= 3

    with_engine(body)
    assert "fake_backend.py" in capfd.readouterr().err  # where it hung


def test_memory_that_ran_out_is_told_within_a_second_and_the_next_chunk_comes() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await until(watcher.seen(10))
        await engine.control(opened.session, Update(event_id="1", prompt="out of memory"))
        await until(lambda: any(isinstance(e, Failed) for e in watcher.events))
        await until(watcher.seen(60))
        assert watcher.numbers == list(range(len(watcher.numbers)))

    with_engine(body)


def test_draining_ends_streams_with_what_they_can_be_gone_on_from() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await until(watcher.seen(10))
        await engine.drain(5.0)
        await watcher.task
        last = watcher.events[-1]
        assert isinstance(last, Ended) and last.reason == "draining" and last.snapshot
        assert engine.health == "draining"
        with pytest.raises(Busy):
            await engine.open(Spec(prompt="a circle"))

    with_engine(body)


def test_an_engine_that_hangs_is_drained_all_the_same() -> None:
    async def body(engine: EngineProcess) -> None:
        opened = await engine.open(Spec(prompt="a circle", fps=48.0))
        watcher = Watcher(engine, opened.session)
        await engine.control(opened.session, Update(event_id="1", prompt="hang"))
        await asyncio.sleep(0.2)
        start = time.monotonic()
        await engine.drain(1.0)
        await watcher.task
        assert time.monotonic() - start < 3
        assert isinstance(watcher.events[-1], Ended)

    with_engine(body)


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_sessions_leave_nothing_behind(count: int) -> None:
    async def body(engine: EngineProcess) -> None:
        before = held(os.getpid()), held(engine.pid)
        for i in range(count):
            opened = await engine.open(Spec(prompt="a circle"))
            stream = engine.events(opened.session)
            for _ in range(i % 3):
                await anext(stream)
            if i % 2:
                await stream.aclose()  # type: ignore[attr-defined]
            await engine.close(opened.session)
            del stream
        assert (await engine.state()).sessions == ()
        assert (held(os.getpid()), held(engine.pid)) == before
        tasks = len(asyncio.all_tasks())
        assert tasks < 8

    with_engine(body, timeout=300)


_TOO_MUCH = "a crowd"
_SHORT = f"""
import torch
from livereel.engine.session import Session
make = Session._make
def short(self, state, updates, pushed):
    if {_TOO_MUCH!r} in (update.prompt for update in updates):
        torch.empty(1 << 60, dtype=torch.uint8)
    return make(self, state, updates, pushed)
Session._make = short
"""


def test_memory_that_runs_out_in_a_pass_costs_its_session_alone(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SHORT)  # Python runs it when the process starts
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    async def clip(engine: EngineProcess) -> bytes:
        opened = await engine.open(Spec(prompt="a red ball", seed=3, frames=25, live=False))
        made = [e.pixels.tobytes() async for e in engine.events(opened.session) if ready(e)]
        return b"".join(made)

    def ready(event: Event) -> TypeGuard[ChunkReady]:
        return isinstance(event, ChunkReady)

    async def body(engine: EngineProcess) -> None:
        wanted = await clip(engine)
        other = await engine.open(Spec(prompt="a blue ball"))
        others = engine.events(other.session)
        opened = await engine.open(Spec(prompt="a red ball"))
        events = engine.events(opened.session)
        assert isinstance(await anext(events), ChunkReady)
        await engine.control(opened.session, Update(event_id="1", prompt=_TOO_MUCH))
        left = [event async for event in events if not ready(event)]
        *failed, end = [event for event in left if isinstance(event, (Failed, Ended))]
        assert end == Ended(reason="failed")
        assert {event.code for event in failed if isinstance(event, Failed)} == {"memory"}
        assert not any(isinstance(event, Applied) for event in left)
        for _ in range(3):
            assert isinstance(await anext(others), (ChunkReady, DeadlineMissed))
        assert await clip(engine) == wanted
        assert engine.restarts == 0

    with_engine(body, Setup(model=str(tiny_folder), device="cpu"), timeout=300)


_SERVER = """
import asyncio, sys
from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.messages import Spec
from livereel.engine.serve.worker import Setup
async def main():
    engine = EngineProcess(Setup(fake=(0.005, 0.0, 1)))
    await engine.start()
    await engine.open(Spec(prompt=sys.argv[1]))
    print(engine.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("prompt", ["a circle", "hang"])
def test_the_engine_does_not_outlive_its_server(prompt: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, prompt], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        assert _alive(engine)
        server.kill()
        server.wait()
    end = time.monotonic() + 10
    while _running(engine):
        assert time.monotonic() < end
        time.sleep(0.02)


def _running(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
