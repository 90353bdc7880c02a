"""Who takes part in a stream's measurement."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from livereel.engine.runners.watch import STAGES
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

from .report import Contents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .subject import Subject


class Contender(Protocol):
    """A way to make the subject's frames. A turn's frames are bytes on the host when it ends."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> str: ...
    @property
    def contents(self) -> Contents: ...
    @property
    def stages(self) -> Mapping[str, Sequence[float]]:
        """Seconds of each turn since `open`, by stage, where they are known."""

    @property
    def until_steady(self) -> int:
        """Turns from `open` on after which each takes the same work."""

    def open(self) -> None:
        """Begin a video, from its prompt on."""

    def turn(self) -> int:
        """Make the next chunk, or a whole clip; gives its frames."""


class Ours:
    """LiveReel's session."""

    name = "livereel"

    def __init__(self, subject: Subject) -> None:
        self.settings = subject.settings
        self._subject = subject
        cached = subject.runner.transformer.cached() is not None
        self.contents = Contents(
            passes=subject.steps * (2 if subject.guided else 1) + cached,
            cache_pass=cached, vae=subject.decoder,
        )  # fmt: skip
        self.stages: dict[str, list[float]] = {}

    @property
    def until_steady(self) -> int:
        """Until the window is full, and three more: shapes that come again are captured."""
        stream = self._subject.stream
        return 3 + -(-(stream.sinks + stream.window) // stream.chunk_latents)

    def open(self) -> None:
        """See `Contender.open`."""
        subject = self._subject
        width, height = subject.size
        start = StreamState(subject.prompt, seed=0, steps=subject.steps, width=width, height=height)
        self._session = Session(
            subject.runner, subject.stream, start, model=subject.name, fps=subject.stream.fps
        )
        self.stages = defaultdict(list)

    def turn(self) -> int:
        """See `Contender.turn`. What was begun of the next chunk is waited for, and counts."""
        chunk = next(self._session)
        self._subject.sync()
        for stage in STAGES:
            self.stages[stage].append(getattr(chunk.stats, f"{stage}_s"))
        return len(chunk.frames)
