"""What crosses the socket `/v1/stream`: text frames as structs, and the header of binary frames.

A text frame is one JSON object whose `type` names the struct. A binary frame from the server is a
header of `HEADER_BYTES` bytes, little-endian, and one access unit of H.264 (Annex B, parameter sets
in front of every keyframe); one from a client is a picture (a whole PNG, JPEG or WebP file) for a
stream that was opened with a `strength`. `schema.py` writes this file's types down as
`asyncapi.json`.

A client opens the socket, sends `session.create` first and alone, and is answered by
`session.created` or by an `error` and a close. From then on it sends controls; each is answered by
exactly one `event.applied` or `event.rejected` with its `event_id`.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..config import MAX_SIDE
from ..text.cleaning import MAX_CHARACTERS

PATH = "/v1/stream"
MAX_TEXT_BYTES = 65_536
"""Of one text frame from a client; one that sends more is cut off."""
MAX_PICTURE_BYTES = 1 << 20
"""Of one binary frame from a client; likewise."""

Id: TypeAlias = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9._:-]+$")]
Token: TypeAlias = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Prompt: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
# JSON's numbers are floats for many clients: whole numbers stay where those are exact.
MAX_COUNT = 2**53 - 1
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Steps: TypeAlias = Annotated[int, Meta(ge=1, le=1000)]
Side: TypeAlias = Annotated[int, Meta(ge=8, le=MAX_SIDE)]
Strength: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Track: TypeAlias = Annotated[tuple[tuple[Share, Share] | None, ...], Meta(max_length=1024)]
LoraName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Loras: TypeAlias = Annotated[
    dict[LoraName, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=64)
]


# From the client


class _FromClient(Struct, tag_field="type", kw_only=True, forbid_unknown_fields=True, frozen=True):
    """All that a client may send."""


class Create(_FromClient, frozen=True, tag="session.create"):
    """Open a stream; or go on with one (`resume`), or watch one that another drives (`watch`).

    `image` is the id of an uploaded picture that becomes the first frame. With a `strength` the
    stream is made from pictures that come as binary frames, changed by that share of the steps; the
    newest two chunks of them can wait.
    `loras` are strengths of those that the server has, by name. `resume` is the token of
    `session.created`, `last_frame` the newest frame that arrived before the cut, so that the next
    one to come is its successor (-1 asks for the newest), and `pending` the controls whose answers
    did not arrive, which are given again. With `resume` or `watch` the other fields are not looked
    at.
    """

    event_id: Id
    prompt: Prompt | None = None
    seed: Count = 0
    steps: Steps | None = None
    width: Side | None = None
    height: Side | None = None
    fps: Annotated[float, Meta(ge=0.1, le=240)] | None = None
    image: Token | None = None
    strength: Strength | None = None
    loras: Loras | None = None
    resume: Token | None = None
    last_frame: Annotated[int, Meta(ge=-1, le=MAX_COUNT)] = -1
    pending: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    watch: Token | None = None


class Update(_FromClient, frozen=True, tag="session.update"):
    """Another prompt, number of steps, strength or set of LoRAs (those left out are not used) from
    the next chunk on; `recache` also takes the old prompt's traces out of what the model remembers.

    `control` leads the object of a model that follows (`session.created` says whether it does): one
    position (x, y), in shares of width and height from the upper left, to which it goes within a
    chunk, or one for each frame (null leaves it open), of which the last holds on. An empty one
    lets it go.
    """

    event_id: Id
    prompt: Prompt | None = None
    steps: Steps | None = None
    recache: bool = False
    strength: Strength | None = None
    loras: Loras | None = None
    control: Track | None = None


class Cut(_FromClient, frozen=True, tag="session.cut"):
    """A new shot from the next chunk on, in which nothing of what was shown is seen any more;
    `image` is as in `session.create`."""

    event_id: Id
    prompt: Prompt | None = None
    image: Token | None = None


class NewSeed(_FromClient, frozen=True, tag="session.seed"):
    """Other noise from the next chunk on."""

    event_id: Id
    seed: Count


class Pause(_FromClient, frozen=True, tag="session.pause"):
    """Make no further chunk."""

    event_id: Id


class Resume(_FromClient, frozen=True, tag="session.resume"):
    """Go on after a pause."""

    event_id: Id


class Reset(_FromClient, frozen=True, tag="session.reset"):
    """Forget what was shown and start anew; frames are counted on."""

    event_id: Id


class Stop(_FromClient, frozen=True, tag="session.stop"):
    """End the stream; what is being sent still arrives, then `session.ended`."""

    event_id: Id


class Ack(_FromClient, frozen=True, tag="session.ack"):
    """`frame` arrived, and `decode_queue` frames wait to be decoded or shown. Not answered; without
    acks the server sends a window's worth and then nothing."""

    frame: Count
    decode_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


Control: TypeAlias = Update | NewSeed | Cut | Pause | Resume | Reset | Stop
ClientMessage: TypeAlias = Create | Control | Ack


# From the server


class _FromServer(Struct, tag_field="type", kw_only=True, frozen=True):
    """All that the server may send."""


class Created(_FromServer, frozen=True, tag="session.created"):
    """The stream is open. `resume_token` lets its owner, and nobody else is told it, come back
    within `lease_s` of a cut; `watch_token` lets others look on. The next frame to be shown is
    number `next_frame`, and `lost` frames behind `last_frame` can no longer be had. `stream` is its
    number in binary headers. `control` says whether the model follows one, and `control_wraps`
    whether what leaves the picture at one edge comes in at the opposite one."""

    event_id: str
    session_id: str
    resume_token: str | None
    watch_token: str
    stream: int
    codec: str
    width: int
    height: int
    fps: float
    chunk_frames: int
    max_steps: int
    control: bool
    control_wraps: bool
    prompt: str
    paused: bool
    next_frame: int
    lost: int
    lease_s: float


class Applied(_FromServer, frozen=True, tag="event.applied"):
    """The control took hold at `chunk`, whose first frame is number `first_frame`."""

    event_id: str
    chunk: int
    first_frame: int


class Rejected(_FromServer, frozen=True, tag="event.rejected"):
    """The control was not taken; nothing has changed."""

    event_id: str
    code: str
    message: str


class Stats(_FromServer, frozen=True, tag="stats"):
    """Where a chunk's time went, in seconds, and what this viewer gets: `level` 0 is everything,
    each further one less; `dropped` counts frames that this viewer was not sent."""

    chunk: int
    first_frame: int
    frames: int
    text_s: float
    dit_s: float
    cache_s: float
    vae_s: float
    convert_s: float
    chunk_s: float
    lead_s: float
    steps: int
    rate: float
    skipped: tuple[str, ...]
    level: int
    dropped: int
    viewers: int


class DeadlineMissed(_FromServer, frozen=True, tag="deadline_missed"):
    """A chunk was ready `late_s` after it was due."""

    chunk: int
    late_s: float


class Recovered(_FromServer, frozen=True, tag="session.recovered"):
    """The engine was started anew and the stream goes on from its last snapshot, at `next_frame`;
    frame numbers before it that did not come will not."""

    chunk: int
    next_frame: int


class Draining(_FromServer, frozen=True, tag="draining"):
    """The server is going down within `grace_s`; where it can, `resume_token` opens the stream
    again elsewhere."""

    resume_token: str | None
    grace_s: float


class Ended(_FromServer, frozen=True, tag="session.ended"):
    """No frame follows: "stopped", "idle", "lifetime", "draining" or "failed"."""

    reason: str
    frames: int


class Error(_FromServer, frozen=True, tag="error"):
    """The request, or the whole stream, failed; try again after `retry_after_s` if `retryable`."""

    code: str
    message: str
    retryable: bool
    event_id: str | None = None
    retry_after_s: float | None = None


ServerMessage: TypeAlias = (
    Created | Applied | Rejected | Stats | DeadlineMissed | Recovered | Draining | Ended | Error
)


class Close(enum.IntEnum):
    """Codes the socket is closed with."""

    DONE = 1000
    DRAINING = 1001
    MALFORMED = 1007
    POLICY = 1008
    TOO_BIG = 1009
    FAILED = 1011
    BUSY = 1013


# Binary frames

HEADER = struct.Struct("<BBHIIIQQ")
HEADER_BYTES = HEADER.size
VIDEO = 1


class Flag(enum.IntFlag):
    """Of a binary frame."""

    KEYFRAME = 1
    """Can be decoded without those before it."""
    CATCH_UP = 2
    """Decode it, but do not show it: it leads up to the frame that comes next."""
    GAP = 4
    """Frames before this one were left out."""


class Header(Struct, frozen=True, kw_only=True):
    """In front of a binary frame's payload: `type` u8 (`VIDEO`), `flags` u8, `span` u16 (frames of
    the stream that this picture stands for), `stream` u32, `chunk` u32, `size` u32 (bytes of
    payload), `frame` u64, `pts` u64 (microseconds since the stream's start)."""

    flags: int
    stream: int
    chunk: int
    frame: int
    pts: int
    span: int = 1
    type: int = VIDEO

    def pack(self, payload: bytes) -> bytes:
        """The whole binary frame."""
        head = HEADER.pack(
            self.type, self.flags, self.span, self.stream, self.chunk, len(payload), self.frame,
            self.pts,
        )  # fmt: skip
        return head + payload


def unpack(data: bytes) -> tuple[Header, memoryview]:
    """A binary frame's header and payload. Raises `ValueError` for one cut short or too long."""
    if len(data) < HEADER_BYTES:
        raise ValueError(f"a binary frame has at least {HEADER_BYTES} bytes, got {len(data)}")
    kind, flags, span, stream, chunk, size, frame, pts = HEADER.unpack_from(data)
    payload = memoryview(data)[HEADER_BYTES:]
    if size != len(payload):
        raise ValueError(f"the header tells of {size} bytes of payload, there are {len(payload)}")
    header = Header(
        type=kind, flags=flags, span=span, stream=stream, chunk=chunk, frame=frame, pts=pts
    )
    return header, payload


_encoder = msgspec.json.Encoder()
_client: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_server: msgspec.json.Decoder[ServerMessage] = msgspec.json.Decoder(ServerMessage)


def encode(message: ClientMessage | ServerMessage) -> str:
    """A text frame."""
    return _encoder.encode(message).decode()


def decode_client(text: str | bytes) -> ClientMessage:
    """What a client sent. Raises `msgspec.ValidationError` or `DecodeError` for anything else."""
    return _client.decode(text)


def decode_server(text: str | bytes) -> ServerMessage:
    """What the server sent. Raises as `decode_client`."""
    return _server.decode(text)
