"""The engine as the server's process sees it.

`EngineClient` is what the server is written against.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ..errors import InputError, LiveReelError
from .messages import Control, EngineState, Event, Health, ModelInfo, Opened, Spec


class Busy(LiveReelError):
    """The engine has no room for the session now; `retry_after_s` is when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(InputError):
    """A control that was not taken; it will not take hold."""


class Gone(LiveReelError):
    """There is no such session, or not any more."""


class EngineClient(Protocol):
    """An engine in a process of its own, which is started anew when it dies or hangs.

    All methods are for one event loop.
    """

    async def start(self) -> ModelInfo:
        """Start the engine; returns when it could make a frame.

        Raises `LiveReelError` when it cannot be started, as for a model that is not there.
        """

    async def open(self, spec: Spec) -> Opened:
        """Open a session. Nothing is computed and no memory taken for one that is refused.

        Raises `Busy` where it does not fit, `InputError` for values that the model cannot do.
        """

    def events(self, session: str) -> AsyncIterator[Event]:
        """The session's events in order, `Ended` being the last. One reader at a time.

        Chunks are made only while there is room in the ring, so a reader that stops reading holds
        its session up, and nobody else's. Raises `Gone` for a session that is not open.
        """

    async def control(self, session: str, event: Control) -> None:
        """Hand over a control; accepted where it returns, and then `Applied` comes once.

        Raises `Rejected`, with the reason, for one that is not; `Gone` without such a session.
        """

    async def push(self, session: str, frames: bytes) -> None:
        """Give frames of its size, as in `Spec.image`, to a session with a strength; the newest
        win, and two chunks of them can wait. Raises `InputError` for others, `Gone`."""

    async def snapshot(self, session: str, *, light: bool = True) -> bytes:
        """The session's state between two chunks, for `Spec.snapshot`. Raises `Gone`."""

    def renew(self, session: str) -> None:
        """Somebody watches: the idle limit counts from here. `control` and `snapshot` renew too."""

    def shown(self, session: str, frame: int, at: float) -> None:
        """Frame number `frame` is shown at the time `at` (`time.monotonic`), those behind it at the
        stream's rate: the next chunk is due behind them, however long they were held up."""

    async def close(self, session: str) -> None:
        """End a session: no chunk of it is begun any more. Its stream ends with `Ended`. No error
        where there is none such."""

    async def state(self) -> EngineState:
        """The engine in numbers."""

    @property
    def model(self) -> ModelInfo:
        """What is running; known once `start` has returned."""

    @property
    def health(self) -> Health:
        """How it is now."""

    async def drain(self, grace_s: float) -> None:
        """Take no more sessions; end those that are open, each with `Ended("draining")` and a
        snapshot, within `grace_s`."""

    async def stop(self) -> None:
        """End the engine's process; nothing of it stays behind."""
