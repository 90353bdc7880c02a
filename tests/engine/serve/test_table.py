"""An engine's sessions under a clock that only the test moves, on a backend without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.errors import InputError
from livereel.engine.native import FrameRing, RingFrame
from livereel.engine.serve.fake import MODEL, number_of
from livereel.engine.serve.fake_backend import FakeBackend, FakeStream
from livereel.engine.serve.messages import (
    Applied,
    ChunkMade,
    DeadlineMissed,
    Ended,
    EngineEvent,
    Failed,
    Pause,
    Reset,
    Resume,
    Spec,
    Update,
)
from livereel.engine.serve.table import MAX_WAITING, Limits, Table
from livereel.engine.serve.worker_client import Busy, Gone, Rejected
from livereel.engine.types import Chunk

E = TypeVar("E", bound=EngineEvent)


class Backend(FakeBackend):
    """Its passes take the test's time."""

    def __init__(self, world: World, chunk_s: float, more_s: float, most: int) -> None:
        super().__init__(chunk_s=0.0, more_s=0.0, most=most)
        self.world, self.first_s, self.further_s = world, chunk_s, more_s

    def step(self, streams: Sequence[FakeStream]) -> list[Chunk | Exception]:
        self.world.now += self.first_s + self.further_s * (len(streams) - 1)
        return super().step(streams)


class World:
    """A table, a clock, and readers that take what comes."""

    def __init__(
        self,
        *,
        chunk_s: float = 0.1,
        more_s: float = 0.1,
        most: int = 1,
        limits: Limits | None = None,
    ) -> None:
        self.now = 0.0
        self.events: dict[str, list[EngineEvent]] = {}
        self.saved: dict[str, bytes] = {}
        self.readers: dict[str, FrameRing] = {}
        self.shown: dict[str, list[int]] = {}
        self.backend = Backend(self, chunk_s, more_s, most)
        self.table = Table(
            self.backend, limits=limits or Limits(), begin=lambda _: None, tell=self._tell,
            keep=self.saved.__setitem__, clock=lambda: self.now,
        )  # fmt: skip
        self.table.warm_up()

    def open(self, name: str = "a", **spec: object) -> str:
        self.events[name], self.shown[name] = [], []
        opened, fd = self.table.open(name, Spec(**{"prompt": "a circle", **spec}))  # type: ignore[arg-type]
        self.readers[name] = FrameRing.attach(fd)
        assert opened.session == name
        return name

    def _tell(self, name: str, event: EngineEvent) -> None:
        self.events[name].append(event)

    def run(self, seconds: float, *, reads: bool = True) -> None:
        end = self.now + seconds
        while self.now < end:
            self.table.step()
            self.now += min(self.table.patience(), end - self.now) + 1e-6
            for name, ring in self.readers.items() if reads else ():
                while (frame := ring.read()) is not None:
                    self._show(name, frame)

    def _show(self, name: str, frame: RingFrame) -> None:
        self.shown[name] += [number_of(picture) for picture in np.asarray(frame)]

    def of(self, name: str, kind: type[E]) -> list[E]:
        return [event for event in self.events[name] if isinstance(event, kind)]


def test_frames_come_in_order_at_their_rate() -> None:
    world = World()
    world.open("a", fps=12.0)
    world.run(20.0)
    assert world.shown["a"] == list(range(len(world.shown["a"])))
    assert len(world.shown["a"]) == pytest.approx(12 * 20, abs=25)
    assert world.of("a", DeadlineMissed) == []
    made = world.of("a", ChunkMade)
    assert [event.chunk for event in made] == list(range(len(made)))


def test_a_stream_ends_at_the_frame_it_was_asked_to() -> None:
    world = World()
    world.open("a", frames=20)
    world.run(5.0)
    assert world.shown["a"] == list(range(20))
    assert world.events["a"][-1] == Ended(reason="finished")
    with pytest.raises(Gone):
        world.table.save("a", light=True)


def test_each_control_is_applied_once_before_its_chunk() -> None:
    world = World()
    world.open("a")
    world.run(2.0)
    world.table.steer("a", Update(event_id="1", prompt="a square"))
    world.table.steer("a", Reset(event_id="2"))
    world.run(2.0)
    first, second = world.of("a", Applied)
    assert (first.event_id, second.event_id) == ("1", "2")
    chunk = next(e for e in world.of("a", ChunkMade) if e.chunk == first.chunk)
    assert first.first_frame == second.first_frame == chunk.pts
    assert world.events["a"].index(second) < world.events["a"].index(chunk)


def test_controls_that_cannot_be_are_refused_and_their_number_is_bounded() -> None:
    world = World()
    world.open("a")
    with pytest.raises(InputError, match="the prompt is empty"):
        world.table.steer("a", Update(event_id="1", prompt=" "))
    for i in range(MAX_WAITING):
        world.table.steer("a", Update(event_id=str(i), seed=i))
    with pytest.raises(Rejected, match="wait already"):
        world.table.steer("a", Update(event_id="x", seed=1))
    with pytest.raises(Gone):
        world.table.steer("b", Reset(event_id="1"))
    world.run(1.0)
    assert len(world.of("a", Applied)) == MAX_WAITING


def test_a_paused_stream_makes_nothing_and_is_not_late_afterwards() -> None:
    world = World()
    world.open("a")
    world.run(2.0)
    world.table.steer("a", Pause(event_id="p"))
    made = len(world.of("a", ChunkMade))
    world.run(10.0)
    assert len(world.of("a", ChunkMade)) == made
    world.table.steer("a", Resume(event_id="r"))
    world.run(2.0)
    assert len(world.of("a", ChunkMade)) > made and world.of("a", DeadlineMissed) == []
    assert [(a.kind, a.chunk) for a in world.of("a", Applied)] == [
        ("pause", made),
        ("resume", made),
    ]


def test_frames_that_wait_to_be_shown_put_off_the_next_chunk() -> None:
    world = World()
    world.open("a", fps=12.0)
    world.run(3.0)
    chunk = world.of("a", ChunkMade)[-1]
    world.table.shown("a", chunk.pts, world.now + 2.0)  # a viewer came back late, say
    world.run(2.0)
    assert world.of("a", ChunkMade)[-1] == chunk
    world.run(1.0)
    assert world.of("a", ChunkMade)[-1].chunk == chunk.chunk + 1
    assert world.of("a", DeadlineMissed) == []
    world.table.shown("gone", 0, 0.0)


def test_a_session_that_is_fed_waits_for_frames_and_is_not_late_for_them() -> None:
    world = World()
    world.open("a", fps=12.0, strength=0.5)
    frame = bytes([9]) * (128 * 128 * 3)
    world.run(1.0)
    assert not world.events["a"]
    world.table.push("a", frame)
    world.run(1.0)
    assert len(world.of("a", ChunkMade)) == 1
    world.table.push("a", frame * 11)
    world.run(3.0)
    assert len(world.of("a", ChunkMade)) == 1
    world.table.push("a", frame)
    world.run(1.0)
    assert len(world.of("a", ChunkMade)) == 2
    assert world.of("a", DeadlineMissed) == []
    world.open("b")
    with pytest.raises(InputError, match="takes no frames"):
        world.table.push("b", frame)
    with pytest.raises(Gone):
        world.table.push("c", frame)


def test_who_would_make_the_others_late_is_refused_and_told_when_to_ask_again() -> None:
    world = World(chunk_s=0.2, more_s=0.2)  # 12 frames at 16 a second: 0.27 of the time each
    for name in "abc":
        world.open(name)
    assert world.table.full
    before = FrameRing.create
    with pytest.raises(Busy, match="no time left") as refused:
        world.open("d")
    assert before is FrameRing.create and refused.value.retry_after_s >= 1
    world.run(20.0)
    for name in "abc":
        assert world.of(name, DeadlineMissed) == []
    world.table.close("b")
    world.open("d", fps=8.0)
    assert len(world.table.state().sessions) == 3


def test_four_sessions_at_four_frames_a_second_hold_their_rate_and_a_fifth_is_refused() -> None:
    world = World(chunk_s=0.55, more_s=0.55)  # 12 frames play for 3 s
    for name in "abcd":
        world.open(name, fps=4.0)
        world.run(0.3)
    with pytest.raises(Busy, match="no time left"):
        world.open("e", fps=4.0)
    world.run(120.0)
    intervals = []
    for name in "abcd":
        due = last = 0.0
        for made in world.of(name, ChunkMade):
            for _ in range(made.count):
                due = max(due, made.made)  # as a server shows them
                if made.chunk > 1:
                    intervals.append(due - last)
                last, due = due, due + 1 / made.stats.rate
        assert world.of(name, DeadlineMissed) == []
    assert len(intervals) > 4 * 110 * 4
    assert np.quantile(intervals, 0.95) <= 1.5 * 0.25 and max(intervals) < 0.3


def test_what_was_admitted_once_is_taken_over_from_another_engine() -> None:
    world = World(chunk_s=0.5)
    world.open("a")
    with pytest.raises(Busy, match="no time left"):
        world.open("b")
    world.events["b"] = []
    opened, _ = world.table.open("b", Spec(prompt="a circle"), chunk=3, pts=25)
    assert (opened.chunk, opened.pts) == (3, 25)


def test_a_slow_model_is_not_warmed_up_for_long() -> None:
    for chunk_s, most in [(0.5, 2), (10.0, 2), (40.0, 1)]:
        world = World(chunk_s=chunk_s, more_s=chunk_s, most=most)
        assert 0 < world.now <= max(15 + 2 * chunk_s, 8 * chunk_s)


def test_the_first_session_is_admitted_however_slow_the_machine() -> None:
    world = World(chunk_s=30.0)
    world.open("a")
    with pytest.raises(Busy, match="no time left"):
        world.open("b")


def test_a_finished_one_makes_room_when_it_said() -> None:
    world = World(chunk_s=0.5, more_s=0.5)
    world.open("a", frames=160)
    with pytest.raises(Busy) as refused:
        world.open("b")
    assert refused.value.retry_after_s == pytest.approx(10.0)
    world.run(11.0)
    world.open("b")


def test_sessions_share_passes_when_that_is_faster() -> None:
    world = World(chunk_s=0.4, more_s=0.05, most=4)
    for name in "abcd":
        world.open(name)
    world.run(40.0)
    state = world.table.state()
    assert len(state.sessions) == 4 and state.batched > 20 and state.load < 0.8
    sizes = [event.stats.batch for event in world.of("a", ChunkMade)]
    assert max(sizes) == 4


def test_memory_that_ran_out_is_told_and_the_chunk_tried_again() -> None:
    world = World()
    world.open("a")
    world.open("b")
    world.run(2.0)
    world.table.steer("a", Update(event_id="1", prompt="out of memory"))
    world.run(5.0)
    (failed,) = world.of("a", Failed)
    assert failed.code == "memory" and failed.retryable
    assert world.shown["a"] == list(range(len(world.shown["a"])))
    assert len(world.of("a", Applied)) == 1 and world.of("b", Failed) == []


def test_a_mistake_ends_the_session_that_it_is_in_and_no_other() -> None:
    world = World(most=2, more_s=0.0)
    world.open("a")
    world.open("b")
    world.run(3.0)
    world.table.steer("a", Update(event_id="1", prompt="broken"))
    world.run(3.0)
    assert [type(event) for event in world.events["a"][-2:]] == [Failed, Ended]
    assert world.shown["b"] == list(range(len(world.shown["b"]))) and world.of("b", Failed) == []
    assert [s.session for s in world.table.state().sessions] == ["b"]


def test_a_session_that_nobody_watches_ends_and_so_does_an_old_one() -> None:
    world = World(limits=Limits(idle_s=5.0, lifetime_s=30.0))
    world.open("a")
    world.open("b")
    for _ in range(40):
        world.run(1.0)
        world.table.renew("b")
    assert world.events["a"][-1] == Ended(reason="idle")
    assert world.events["b"][-1] == Ended(reason="lifetime")
    assert world.table.state().sessions == ()


def test_a_reader_that_stops_holds_up_its_own_session_alone() -> None:
    world = World()
    world.open("a")
    world.run(10.0, reads=False)
    assert len(world.of("a", ChunkMade)) == 4
    world.run(10.0)
    assert world.shown["a"] == list(range(len(world.shown["a"])))


def test_a_drained_stream_can_be_gone_on_from_and_one_with_an_end_comes_to_it() -> None:
    world = World()
    world.open("a")
    world.open("b", frames=60)
    world.run(3.0)
    world.table.drain(10.0)
    with pytest.raises(Busy, match="going down"):
        world.open("c")
    world.run(5.0)
    last = world.events["a"][-1]
    assert isinstance(last, Ended) and last.reason == "draining" and last.snapshot is not None
    assert world.shown["b"] == list(range(60))
    again = World()
    again.open("a", snapshot=last.snapshot)
    again.run(2.0)
    assert again.shown["a"][0] == world.shown["a"][-1] + 1


def test_light_snapshots_are_taken_in_passing() -> None:
    world = World()
    world.open("a")
    world.run(10.0)
    opened, _ = Table.open(World().table, "a", Spec(snapshot=world.saved["a"]), chunk=7, pts=1234)
    assert (opened.chunk, opened.pts) == (7, 1234)


def test_what_the_model_cannot_do_takes_nothing() -> None:
    world = World()
    with pytest.raises(InputError, match="multiples of 16"):
        world.open("a", width=100)
    with pytest.raises(Busy, match="too little memory"):
        world.open("a", width=8192, height=8192)
    with pytest.raises(InputError, match="no LiveReel snapshot"):
        world.open("a", snapshot=b"junk")
    assert world.table.state().sessions == () and MODEL.width == 128


NAMES = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("open"), NAMES, st.sampled_from([None, 30])),
    st.tuples(st.just("close"), NAMES, st.none()),
    st.tuples(st.just("prompt"), NAMES, st.sampled_from(["a square", "out of memory", "broken"])),
    st.tuples(st.sampled_from(["pause", "resume", "reset"]), NAMES, st.none()),
    st.tuples(st.just("run"), st.none(), st.sampled_from([0.3, 2.0])),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), most=st.integers(1, 3))
def test_whatever_happens_each_frame_and_each_answer_comes_once(
    steps: list[tuple[str, str | None, object]], most: int
) -> None:
    world = World(chunk_s=0.05, more_s=0.02, most=most)
    names: dict[str, str] = {}
    given_: dict[str, list[str]] = {}
    for i, (what, which, value) in enumerate(steps):
        session = f"{which}{i}" if what == "open" else names.get(which or "", "")
        if what == "open" and which is not None:
            if which not in names:
                names[which] = world.open(session, fps=24.0, frames=value)
                given_[session] = []
        elif what == "run":
            assert isinstance(value, float)
            world.run(value)
        elif session:
            try:
                if what == "close":
                    world.table.close(session)
                    names.pop(which or "")
                    continue
                control = {
                    "prompt": Update(event_id=str(i), prompt=str(value)),
                    "pause": Pause(event_id=str(i)),
                    "resume": Resume(event_id=str(i)),
                    "reset": Reset(event_id=str(i)),
                }[what]
                world.table.steer(session, control)
                given_[session].append(str(i))
            except Gone:
                assert isinstance(world.events[session][-1], Ended)
    world.run(3.0)
    for session, wanted in given_.items():
        told = world.events[session]
        assert world.shown[session] == list(range(len(world.shown[session])))
        answers = [event.event_id for event in told if isinstance(event, Applied)]
        ended = [event for event in told if isinstance(event, Ended)]
        assert len(set(answers)) == len(answers) and set(answers) <= set(wanted)
        assert ended == ([told[-1]] if ended else [])
        paused = any(
            s.session == session and s.state == "paused" for s in world.table.state().sessions
        )
        if not ended and not paused:
            assert sorted(answers) == sorted(wanted)
