"""What makes chunks in the engine's process: a loaded model, or what plays one in tests."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from .admission import Kind
from .messages import Change, ModelInfo, Spec

if TYPE_CHECKING:
    from ..types import Chunk


class Stream(Protocol):
    """A session, its next chunk being number `chunk` with the first frame `pts`."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def chunk(self) -> int: ...
    @property
    def pts(self) -> int: ...
    @property
    def kind(self) -> Kind:
        """What its passes cost hangs on."""

    @property
    def key(self) -> Hashable:
        """Equal for streams whose next chunks can be made together."""

    @property
    def state_bytes(self) -> int:
        """Memory that it holds."""

    @property
    def ready(self) -> bool:
        """Whether it has all that its next chunk is made from."""

    def update(self, control: Change) -> None:
        """Queue a control for the next chunk. Raises `InputError` or `ResourceError`."""

    def push(self, frames: bytes) -> None:
        """Take frames to make chunks from. Raises `InputError`."""

    def snapshot(self, *, light: bool) -> bytes:
        """Its state."""

    def close(self) -> None:
        """Let go of its memory."""


S = TypeVar("S", bound=Stream)


class Backend(Protocol[S]):
    """Opens streams and steps them."""

    @property
    def model(self) -> ModelInfo: ...
    @property
    def most(self) -> int:
        """How many streams can be stepped together."""

    def check(self, spec: Spec) -> None:
        """Raise `InputError` for a size that cannot be, `ResourceError` for one that memory does
        not suffice for; takes none."""

    def open(self, spec: Spec, *, chunk: int | None, pts: int | None) -> S:
        """A stream that numbers its next chunk and frame so. Raises `InputError`."""

    def step(self, streams: Sequence[S]) -> list[Chunk | Exception]:
        """The next chunk of each, made together; they have one `key`. One that gives an exception
        stands where it stood."""
