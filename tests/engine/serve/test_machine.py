"""The socket protocol as a state machine: whatever is said in whatever order, it keeps its rules.

The rules: each control that is sent on an open stream is answered once, by its id; frames come in
order without a gap; a cut and a return lose and double nothing; what is not allowed ends the socket
with a reason and leaves no stream behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from livereel.engine.serve import protocol
from livereel.engine.serve.fake import FakeEngine
from livereel.engine.serve.limits import Limits

from .conftest import Live

T = TypeVar("T")
PROMPTS = st.sampled_from(["a red circle", "a blue star", " ", "x" * 300])
WAIT_S = 10.0


class SocketMachine(RuleBasedStateMachine):
    """A client that does anything; the server is one for all runs of a machine."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.live = Live(
            Path(self.folder.name), FakeEngine(hurry=True), limits=Limits(lease_s=60.0)
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.ws: ClientConnection | None = None
        self.reader: asyncio.Task[None] | None = None
        self.token: str | None = None
        self.frames: list[int] = []
        self.sent: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.ended = False
        self.count = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def teardown(self) -> None:
        self.do(self.hang_up())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.live.close()
        self.folder.cleanup()

    # Rules

    @precondition(lambda self: self.ws is None and self.token is None)
    @rule(prompt=PROMPTS, seed=st.integers(-1, 5))
    def create(self, prompt: str, seed: int) -> None:
        good = prompt.strip() != "" and seed >= 0
        message = protocol.Create(event_id=self.new_id(), prompt=prompt, seed=seed, fps=200)
        assert self.do(self.dial(message)) == good

    @precondition(lambda self: self.ws is None and self.token is not None)
    @rule()
    def come_back(self) -> None:
        last = self.frames[-1] if self.frames else -1
        pending = tuple(self.sent - set(self.answers))
        message = protocol.Create(
            event_id=self.new_id(), resume=self.token, last_frame=last, pending=pending
        )
        assert self.do(self.dial(message))

    @precondition(lambda self: self.ws is not None)
    @rule(prompt=PROMPTS, steps=st.none() | st.integers(1, 9))
    def update(self, prompt: str, steps: int | None) -> None:
        self.ask(protocol.Update(event_id=self.new_id(), prompt=prompt, steps=steps))

    @precondition(lambda self: self.ws is not None)
    @rule(kind=st.sampled_from([protocol.Pause, protocol.Resume, protocol.Reset, protocol.Cut]))
    def steer(self, kind: Any) -> None:
        self.ask(kind(event_id=self.new_id()))

    @precondition(lambda self: self.ws is not None)
    @rule(frame=st.integers(0, 2**53 - 1), queue=st.integers(0, 10))
    def acknowledge(self, frame: int, queue: int) -> None:
        self.do(self.say(protocol.Ack(frame=frame, decode_queue=queue)))

    @precondition(lambda self: self.ws is not None)
    @rule()
    def look(self) -> None:
        self.do(asyncio.sleep(0.02))

    @precondition(lambda self: self.ws is not None)
    @rule()
    def cut(self) -> None:
        self.do(self.hang_up())

    @precondition(lambda self: self.ws is not None)
    @rule(text=st.sampled_from(["{}", "[]", '{"type":"session.stats"}', "\x00", '"']))
    def talk_nonsense(self, text: str) -> None:
        self.do(self.nonsense(text))

    @precondition(lambda self: self.ws is not None)
    @rule()
    def stop(self) -> None:
        self.ask(protocol.Stop(event_id=self.new_id()))
        self.do(self.heard(lambda: self.ended))
        self.do(self.hang_up())
        self.token, self.frames, self.ended = None, [], False
        self.sent.clear()
        self.answers.clear()

    # What holds always

    @invariant()
    def frames_are_in_order(self) -> None:
        frames = list(self.frames)
        assert frames == list(range(frames[0], frames[0] + len(frames))) if frames else True

    @invariant()
    def answers_come_once(self) -> None:
        if self.ws is not None:
            self.do(self.heard(lambda: self.ws is None or self.sent <= set(self.answers)))
        assert all(count == 1 for count in self.answers.values()), self.answers
        assert set(self.answers) <= self.sent

    @invariant()
    def nothing_piles_up(self) -> None:
        assert self.live.server.streams.count <= (self.token is not None)

    # How it is done

    def new_id(self) -> str:
        self.count += 1
        return f"e{self.count}"

    def ask(self, message: protocol.Control) -> None:
        self.sent.add(message.event_id)
        self.do(self.say(message))

    async def say(self, message: protocol.ClientMessage) -> None:
        if self.ws is not None:
            with contextlib.suppress(ConnectionClosed):
                await self.ws.send(protocol.encode(message))

    async def nonsense(self, text: str) -> None:
        assert self.ws is not None
        with contextlib.suppress(ConnectionClosed):
            await self.ws.send(text)
            await self.ws.wait_closed()
        assert self.ws.close_code == protocol.Close.MALFORMED
        await self.hang_up()

    async def dial(self, message: protocol.Create) -> bool:
        ws = await connect(self.live.url.replace("http", "ws") + protocol.PATH)
        await ws.send(protocol.encode(message))
        answer = protocol.decode_server(await ws.recv())
        if isinstance(answer, protocol.Error):
            await ws.close()
            return False
        assert isinstance(answer, protocol.Created)
        assert answer.lost == 0
        self.ws, self.token = ws, answer.resume_token
        self.reader = asyncio.create_task(self.read(ws))
        return True

    async def read(self, ws: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for data in ws:
                if isinstance(data, bytes):
                    header, _ = protocol.unpack(data)
                    if not header.flags & protocol.Flag.CATCH_UP:
                        self.frames.append(header.frame)
                    if ws.state is State.OPEN:  # there may be more to read
                        with contextlib.suppress(ConnectionClosed):
                            await ws.send(protocol.encode(protocol.Ack(frame=header.frame)))
                    continue
                message = protocol.decode_server(data)
                if isinstance(message, protocol.Rejected) and message.code == "lost":
                    self.sent.discard(message.event_id)
                elif isinstance(message, (protocol.Applied, protocol.Rejected)):
                    self.answers[message.event_id] += 1
                elif isinstance(message, protocol.Ended):
                    self.ended = True

    async def hang_up(self) -> None:
        if self.ws is not None:
            self.ws.transport.abort()
            assert self.reader is not None
            await self.reader
            self.ws = None

    async def heard(self, enough: Any) -> None:
        end = asyncio.get_running_loop().time() + WAIT_S
        while not enough():
            assert asyncio.get_running_loop().time() < end, "nothing came"
            await asyncio.sleep(0.005)


def run(examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        SocketMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],  # what fails is found again by its seed; shrinking takes long
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_protocol_holds() -> None:
    run(examples=6, steps=15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_protocol_holds_for_long() -> None:
    """Some ten minutes of a quiet core."""
    run(examples=300, steps=60)
