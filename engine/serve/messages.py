"""What the server's process and the engine's say to one another, as msgspec structs.

The structs are the server's vocabulary, too: what it opens a session with, the controls that it
passes on, and the events that a session's stream consists of. Nothing here is read from clients
directly; bounds that hang on the model are checked where the model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from ..types import Frames

SessionId: TypeAlias = Annotated[str, Meta(min_length=16, max_length=64, pattern="^[0-9a-f]+$")]
"""Made by the server's process alone."""
EventId: TypeAlias = Annotated[str, Meta(max_length=64)]
"""The client's name for a control; it comes back where the control took hold."""
Seed: TypeAlias = Annotated[int, Meta(ge=0)]
Prompt: TypeAlias = Annotated[str, Meta(min_length=1, max_length=10_000)]
Strength: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Loras: TypeAlias = dict[str, float]
Track: TypeAlias = tuple[tuple[float, float] | None, ...]


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a session is opened with: a prompt or a snapshot. None takes the model's own.

    `frames` ends the stream, `fps` is the rate at which frames are due, `pace` lets the session do
    with less when it falls behind. `image` holds uint8 RGB, `height * width * 3` bytes of the
    stream's size, to begin with. With a `strength` the stream is made from frames that are pushed.
    `loras` are strengths of LoRAs that the engine has read. `snapshot` goes on where one was taken;
    prompt, seed, steps and size then come from it. `live` sessions are made no faster than they are
    watched; others as fast as there is room.
    """

    prompt: Prompt | None = None
    seed: Seed = 0
    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    width: Annotated[int, Meta(ge=1, le=8192)] | None = None
    height: Annotated[int, Meta(ge=1, le=8192)] | None = None
    fps: Annotated[float, Meta(gt=0, le=240)] | None = None
    frames: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    pace: bool = False
    live: bool = True
    image: bytes | None = None
    strength: Strength | None = None
    loras: Loras | None = None
    snapshot: bytes | None = None

    def after(self, control: Change) -> Spec:
        """What a session that took this control in is opened with again."""
        if isinstance(control, Reset):
            return self
        new: dict[str, Any] = {"prompt": control.prompt}
        if isinstance(control, Update):
            new |= {name: getattr(control, name) for name in ("seed", "steps", "strength", "loras")}
        return replace(self, **{name: value for name, value in new.items() if value is not None})


# Controls


class Update(Struct, frozen=True, kw_only=True, tag="update"):
    """Change what is not None from the next chunk on, as `Session.update` does."""

    event_id: EventId
    prompt: Prompt | None = None
    seed: Seed | None = None
    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    recache: bool = False
    strength: Strength | None = None
    loras: Loras | None = None
    control: Track | None = None


class Cut(Struct, frozen=True, kw_only=True, tag="cut"):
    """Start a new shot with the next chunk; `image` as in `Spec`."""

    event_id: EventId
    prompt: Prompt | None = None
    image: bytes | None = None


class Reset(Struct, frozen=True, kw_only=True, tag="reset"):
    """Start over from the next chunk."""

    event_id: EventId


class Pause(Struct, frozen=True, kw_only=True, tag="pause"):
    """Make no further chunk."""

    event_id: EventId


class Resume(Struct, frozen=True, kw_only=True, tag="resume"):
    """Go on after a pause."""

    event_id: EventId


Change: TypeAlias = Update | Cut | Reset
"""Takes hold at a chunk's edge."""
Control: TypeAlias = Change | Pause | Resume
Kind: TypeAlias = Literal["update", "cut", "reset", "pause", "resume"]
KINDS: dict[type[Control], Kind] = {
    Update: "update", Cut: "cut", Reset: "reset", Pause: "pause", Resume: "resume"
}  # fmt: skip


# Events of a session's stream


class Applied(Struct, frozen=True, kw_only=True, tag="applied"):
    """A control took hold at the edge of `chunk`, whose first frame is number `first_frame`.

    It comes exactly once for each control that was accepted and not cut off by the session's end,
    before that chunk.
    """

    event_id: EventId
    kind: Kind
    chunk: int
    first_frame: int


class Stats(Struct, frozen=True, kw_only=True):
    """`ChunkStats`, and what the server adds: `wait_s` from when the chunk could have been begun
    to its beginning, `batch` sessions that were stepped in one pass with it."""

    text_s: float = 0.0
    dit_s: float = 0.0
    cache_s: float = 0.0
    vae_s: float = 0.0
    convert_s: float = 0.0
    passes: int = 0
    decoder_calls: int = 0
    fps: float = 0.0
    lead_s: float = 0.0
    deadline_met: bool = True
    jitter_s: float = 0.0
    steps: int = 0
    rate: float = 0.0
    skipped: tuple[str, ...] = ()
    wait_s: float = 0.0
    batch: int = 1


MEASURED = tuple(name for name in Stats.__struct_fields__ if name not in ("wait_s", "batch"))
"""The session's own."""


class ChunkMade(Struct, frozen=True, kw_only=True, tag="chunk"):
    """A chunk's frames `[count, H, W, 3]` lie in the session's ring, `pts` the first one's number.

    `made` is when, on the machine's monotonic clock (`time.monotonic`).
    """

    chunk: int
    pts: int
    count: int
    made: float
    stats: Stats


class ChunkReady:
    """A chunk as the server's process gets it: what `ChunkMade` says, and the pixels.

    `pixels` is uint8 `[F, H, W, 3]`, read-only, in shared memory. Its place is used again when
    the array and all views of it are gone, and until then the engine has one place less for this
    session: let go of it soon, and copy what is to be kept.
    """

    __slots__ = ("chunk", "made", "pixels", "pts", "stats")

    def __init__(self, *, chunk: int, pts: int, made: float, stats: Stats, pixels: Frames) -> None:
        self.chunk, self.pts, self.made, self.stats, self.pixels = chunk, pts, made, stats, pixels

    @property
    def count(self) -> int:
        """Frames in it."""
        return len(self.pixels)


class DeadlineMissed(Struct, frozen=True, kw_only=True, tag="deadline_missed"):
    """The chunk came `late_s` after it was due; it follows."""

    chunk: int
    late_s: float


class Failed(Struct, frozen=True, kw_only=True, tag="error"):
    """A chunk could not be made, or the session cannot go on (then `Ended` follows).

    `code` is "memory", "input", "engine" or "internal"; `retryable` says whether opening the
    session once more may help.
    """

    code: Literal["memory", "input", "engine", "internal"]
    message: str
    retryable: bool


class Resumed(Struct, frozen=True, kw_only=True, tag="resumed"):
    """The engine was started anew and the session goes on from its last snapshot.

    The next chunk is number `chunk` and its first frame number `pts`; neither number was given out
    before.
    """

    chunk: int
    pts: int


Reason: TypeAlias = Literal["finished", "closed", "idle", "lifetime", "draining", "failed"]


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """The stream's last event. After "draining" `snapshot` is what it can be gone on from.

    "finished" is the end that was asked for, "closed" that somebody closed it; "idle" and
    "lifetime" are limits, "failed" follows an error.
    """

    reason: Reason
    snapshot: bytes | None = None


EngineEvent: TypeAlias = Applied | ChunkMade | DeadlineMissed | Failed | Ended
"""What the engine's process tells of a session."""
Event: TypeAlias = Applied | ChunkReady | DeadlineMissed | Failed | Resumed | Ended


# What there is to know


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What is running: the native picture size and rate, the frames of a chunk, the names of LoRAs
    that streams can use, and whether it follows a control, and one that wraps."""

    name: str
    width: int
    height: int
    fps: float
    steps: int
    size_step: int
    chunk_frames: int
    first_chunk_frames: int
    device: str
    dtype: str
    loras: tuple[str, ...] = ()
    control: bool = False
    control_wraps: bool = False


class Opened(Struct, frozen=True, kw_only=True):
    """A session that was admitted. `expected_s` is what a chunk is reckoned to take."""

    session: SessionId
    width: int
    height: int
    fps: float
    chunk: int
    pts: int
    expected_s: float


class SessionState(Struct, frozen=True, kw_only=True):
    """A session in numbers; `queued` counts controls that wait, `kv_bytes` its ring."""

    session: SessionId
    state: Literal["running", "paused"]
    chunks: int
    missed: int
    queued: int
    kv_bytes: int
    age_s: float


class EngineState(Struct, frozen=True, kw_only=True):
    """The engine in numbers. `load` is the share of its time that the open sessions' rates take;
    `memory_bytes` what its process holds; `restarts` and `heartbeat_age_s` are the server's to say.
    """

    sessions: tuple[SessionState, ...] = ()
    load: float = 0.0
    chunks: int = 0
    batched: int = 0
    memory_bytes: int = 0
    restarts: int = 0
    heartbeat_age_s: float = 0.0


Health: TypeAlias = Literal["starting", "ready", "busy", "draining", "silent", "down"]
"""Only "ready" and "busy" make frames: busy is an engine that would refuse a session of the model's
own size and rate now. "silent" has sent no heartbeat for too long, "down" is being started anew or
was given up."""
