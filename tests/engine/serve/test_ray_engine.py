"""`RayEngine` and its replicas in one process without Ray; calls go where Serve would send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from livereel.engine import InputError
from livereel.engine.serve import ray_engine
from livereel.engine.serve.fake import FakeEngine, number_of
from livereel.engine.serve.messages import (
    Applied,
    ChunkReady,
    Ended,
    Event,
    Pause,
    Resume,
    Resumed,
    Spec,
    Update,
)
from livereel.engine.serve.ray_engine import RayEngine
from livereel.engine.serve.ray_replica import Replica
from livereel.engine.serve.worker_client import Busy, Gone


class Cluster:
    """Replicas by name, and the handle of their deployment."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.dead: set[str] = set()
        self.cancelled = 0

    async def add(self, name: str) -> None:
        self.replicas[name] = Replica(FakeEngine(chunk_s=0.01, hurry=True), name)
        await self.replicas[name].start()

    def kill(self, name: str) -> None:
        """Nothing comes of it any more, and calls go elsewhere."""
        self.dead.add(name)

    def choose(self, session_id: str) -> str:
        alive = {name: r for name, r in self.replicas.items() if name not in self.dead}
        if session_id in alive:
            return session_id
        return min(alive, key=lambda name: len(alive[name]._room))

    def options(self, **options: Any) -> Handle:
        return Handle(self, **options)

    def __getattr__(self, method: str) -> Handle:
        return Handle(self, method_name=method)


class Handle:
    def __init__(
        self, cluster: Cluster, method_name: str = "", session_id: str = "", stream: bool = False
    ) -> None:
        self.cluster, self.method, self.session, self.stream = (
            cluster, method_name, session_id, stream
        )  # fmt: skip

    def __getattr__(self, method: str) -> Handle:
        return Handle(self.cluster, method, self.session, self.stream)

    def remote(self, *values: object) -> Any:
        name = self.cluster.choose(self.session)
        work = getattr(self.cluster.replicas[name], self.method)(*values)
        return Streamed(self.cluster, name, work) if self.stream else self.answer(name, work)

    async def answer(self, name: str, work: Awaitable[Any]) -> Any:
        found = await work
        if name in self.cluster.dead:
            raise ConnectionError("the actor died")
        return found


class Streamed:
    def __init__(self, cluster: Cluster, name: str, items: AsyncIterator[Any]) -> None:
        self.cluster, self.name, self.items = cluster, name, items

    async def __anext__(self) -> Any:
        item = asyncio.ensure_future(self.items.__anext__())
        while not item.done():
            await asyncio.wait((item,), timeout=0.01)
            if self.name in self.cluster.dead:
                item.cancel()
                raise ConnectionError("the actor died")
        return item.result()

    def cancel(self) -> None:
        """As Serve does, if it can."""
        self.cluster.cancelled += 1


def run(test: Callable[[Cluster, RayEngine], Awaitable[None]], *names: str) -> None:
    async def whole() -> None:
        cluster = Cluster()
        for name in names:
            await cluster.add(name)
        engine = RayEngine(cluster)
        await engine.start()
        try:
            await test(cluster, engine)
        finally:
            await engine.stop()
            for replica in cluster.replicas.values():
                await replica.stop()

    asyncio.run(asyncio.wait_for(whole(), 30))


async def take(events: AsyncIterator[Event], chunks: int) -> list[Event]:
    """What comes up to and with so many chunks."""
    taken: list[Event] = []
    while chunks:
        taken.append(await events.__anext__())
        chunks -= isinstance(taken[-1], ChunkReady)
    return taken


def frames(events: list[Event]) -> list[int]:
    return [
        event.pts + i for event in events if isinstance(event, ChunkReady)
        for i in range(event.count)
    ]  # fmt: skip


def at(engine: RayEngine, session: str) -> str:
    return engine._sessions[session].placed.replica


def test_a_session_is_played_and_steered_and_ends() -> None:
    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red", frames=30, live=False))
        events = engine.events(opened.session)
        first = await take(events, 1)
        await engine.control(opened.session, Update(event_id="a", prompt="blue"))
        rest = [event async for event in events]
        assert frames(first + rest) == list(range(30))
        assert [event.event_id for event in rest if isinstance(event, Applied)] == ["a"]
        for event in first:
            if isinstance(event, ChunkReady):
                assert number_of(event.pixels[0]) == event.pts
        assert rest[-1] == Ended(reason="finished")
        with pytest.raises(Gone):
            await engine.control(opened.session, Pause(event_id="b"))
        with pytest.raises(InputError):
            await engine.open(Spec(prompt="red", width=100))
        assert not cluster.replicas["a"]._room

    run(test, "a")


def test_sessions_go_where_the_fewest_are_and_stay_there() -> None:
    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = [await engine.open(Spec(prompt="red")) for _ in range(4)]
        assert sorted(at(engine, o.session) for o in opened) == ["a", "a", "b", "b"]
        for o in opened:
            home = at(engine, o.session)
            await take(engine.events(o.session), 3)
            assert at(engine, o.session) == home
        assert len((await engine.state()).sessions) == 4
        await engine.close(opened[0].session)
        await asyncio.sleep(0.1)
        counts = [r.record_autoscaling_stats()["sessions"] for r in cluster.replicas.values()]
        assert sum(counts) == 3

    run(test, "a", "b")


def test_when_a_replica_dies_its_sessions_go_on_elsewhere_with_numbers_that_go_on() -> None:
    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = [await engine.open(Spec(prompt="red")) for _ in range(2)]
        streams = [engine.events(o.session) for o in opened]
        before = [await take(events, 3) for events in streams]
        victim = at(engine, opened[0].session)
        await engine.control(opened[0].session, Update(event_id="late", prompt="blue"))
        cluster.kill(victim)
        after = [await take(events, 5) for events in streams]
        for old, new in zip(before, after, strict=True):
            numbers = frames(old + new)
            assert numbers == list(range(len(numbers)))
        moved = [event for event in after[0] if isinstance(event, Resumed)]
        assert len(moved) == 1 and moved[0].pts in frames(after[0])
        assert not any(isinstance(event, Resumed) for event in after[1])
        told = [e.event_id for e in before[0] + after[0] if isinstance(e, Applied)]
        assert told == ["late"]  # once
        assert at(engine, opened[0].session) == at(engine, opened[1].session) != victim
        assert engine.moves == 1

    run(test, "a", "b")


def test_a_replica_that_is_taken_away_is_drained() -> None:
    """Serve sends nothing to it any more, though what it plays still comes; the pictures go on
    where they were, and what took hold before does not do so again."""

    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        events = engine.events(opened.session)
        await engine.control(opened.session, Update(event_id="a", prompt="blue"))
        before = await take(events, 3)
        leaving = at(engine, opened.session)
        kept = cluster.replicas.pop(leaving)
        kept.check_health()
        await kept.leave(1.0)
        with pytest.raises(RuntimeError):
            kept.check_health()
        after = await take(events, 6)
        chunks = [event for event in before + after if isinstance(event, ChunkReady)]
        assert [number_of(chunk.pixels[0]) for chunk in chunks] == [chunk.pts for chunk in chunks]
        numbers = frames(before + after)
        assert numbers == list(range(len(numbers)))
        assert sum(isinstance(event, Applied) for event in before + after) == 1
        assert not engine._sessions[opened.session].watched.given
        assert at(engine, opened.session) != leaving
        await engine.control(opened.session, Pause(event_id="p"))
        await kept.stop()

    run(test, "a", "b")


def test_a_replica_that_is_taken_away_and_says_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_engine, "_LAST_S", 0.1)

    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        events = engine.events(opened.session)
        before = await take(events, 3)
        kept = cluster.replicas.pop(at(engine, opened.session))
        numbers = frames(before + await take(events, 6))
        assert numbers == list(range(len(numbers)))
        await kept.stop()

    run(test, "a", "b")


def test_a_paused_session_moves_and_stays_paused() -> None:
    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        events = engine.events(opened.session)
        seen = await take(events, 2)
        await engine.control(opened.session, Pause(event_id="p"))
        while not isinstance(seen[-1], Applied):
            seen.append(await events.__anext__())
        cluster.kill(at(engine, opened.session))
        while not isinstance(seen[-1], Resumed):
            seen.append(await events.__anext__())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(take(events, 1), 0.5)
        await engine.control(opened.session, Resume(event_id="r"))
        seen += await take(engine.events(opened.session), 2)
        numbers = frames(seen)
        assert numbers == list(range(len(numbers)))
        assert [e.event_id for e in seen if isinstance(e, Applied)] == ["p", "r"]

    run(test, "a", "b")


def test_a_session_that_finds_no_replica_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_MOVES", 1)

    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        events = engine.events(opened.session)
        await take(events, 1)
        cluster.kill(at(engine, opened.session))
        await take(events, 3)
        cluster.kill(at(engine, opened.session))
        rest = [event async for event in events]
        assert rest[-1] == Ended(reason="failed")

    run(test, "a", "b", "c")


def test_a_placement_that_takes_too_long_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_OPEN_S", 0.05)

    async def forever(spec: Spec) -> Any:
        await asyncio.Event().wait()

    async def test(cluster: Cluster, engine: RayEngine) -> None:
        monkeypatch.setattr(cluster.replicas["a"]._engine, "open", forever)
        with pytest.raises(Busy):
            await engine.open(Spec(prompt="red"))
        assert cluster.cancelled == 1

    run(test, "a")


def test_what_ray_says_of_a_failed_call_is_not_for_the_client() -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError('Traceback\n  File "/home/somebody/engine.py"')

    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        cluster.replicas["a"].control = broken  # type: ignore[assignment]
        with pytest.raises(InputError, match=r"^the session's replica cannot be reached$"):
            await engine.control(opened.session, Update(event_id="a", prompt="blue"))

    run(test, "a")


def test_a_drain_gives_snapshots_to_go_on_from() -> None:
    async def test(cluster: Cluster, engine: RayEngine) -> None:
        opened = await engine.open(Spec(prompt="red"))
        events = engine.events(opened.session)
        seen = await take(events, 2)
        await engine.drain(1.0)
        assert engine.health == "draining"
        with pytest.raises(Busy):
            await engine.open(Spec(prompt="red"))
        ended = [event async for event in events][-1]
        assert isinstance(ended, Ended) and ended.reason == "draining"
        engine._draining = False
        again = await engine.open(Spec(snapshot=ended.snapshot))
        assert again.pts > max(frames(seen))

    run(test, "a")
