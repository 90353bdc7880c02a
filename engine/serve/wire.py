"""The channel between the server's process and the engine's: a socket pair, msgpack in frames.

A message is its length (4 bytes, big-endian), a byte that says whether a file descriptor comes with
it, and its body. Descriptors carry the frame rings, which have no names. Both ends are ours and on
one machine; lengths are bounded all the same, and nothing here can run code.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from .messages import (
    Control,
    EngineEvent,
    EngineState,
    ModelInfo,
    Opened,
    SessionId,
    Spec,
)

MAX_BYTES = 1 << 30
_HEAD = struct.Struct(">IB")
_READ = 1 << 18


# To the engine


class Open(Struct, frozen=True, tag=True):
    """Open a session, which is to number its next chunk and frame so (None: as it comes), and to
    be stepped `alone` if it may be what an engine died of."""

    request: int
    session: SessionId
    spec: Spec
    chunk: int | None = None
    pts: int | None = None
    alone: bool = False


class Steer(Struct, frozen=True, tag=True):
    """Hand a control to a session."""

    request: int
    session: SessionId
    control: Control


class Save(Struct, frozen=True, tag=True):
    """Take a snapshot."""

    request: int
    session: SessionId
    light: bool


class Push(Struct, frozen=True, tag=True):
    """Frames, as in `Spec.image` one after another, for a session that is made from such."""

    request: int
    session: SessionId
    frames: bytes


class Renew(Struct, frozen=True, tag=True):
    """Somebody watches."""

    session: SessionId


class Shown(Struct, frozen=True, tag=True):
    """Frame number `frame` is shown at the time `at`, on the machine's monotonic clock."""

    session: SessionId
    frame: int
    at: float


class Close(Struct, frozen=True, tag=True):
    """End a session."""

    session: SessionId


class Ask(Struct, frozen=True, tag=True):
    """Say how it goes."""

    request: int


class Drain(Struct, frozen=True, tag=True):
    """End all sessions within so many seconds; open no more."""

    grace_s: float


Command: TypeAlias = Open | Steer | Save | Push | Renew | Shown | Close | Ask | Drain
COMMANDS: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


# From the engine


class Ready(Struct, frozen=True, tag=True):
    """The model is loaded and has made a frame."""

    model: ModelInfo


RefusalCode: TypeAlias = Literal["busy", "input", "gone", "memory", "internal"]


class Refused(Struct, frozen=True, tag=True):
    """The answer to a request that was not granted."""

    request: int
    code: RefusalCode
    message: str
    retry_after_s: float = 0.0


class Granted(Struct, frozen=True, tag=True):
    """The answer to others; with `Opened` comes the ring's file descriptor."""

    request: int
    opened: Opened | None = None
    snapshot: bytes | None = None
    state: EngineState | None = None


class Begun(Struct, frozen=True, tag=True):
    """A pass over these sessions begins; what becomes of each is told."""

    sessions: tuple[SessionId, ...]


class Told(Struct, frozen=True, tag=True):
    """An event of a session's stream."""

    session: SessionId
    event: EngineEvent


class Saved(Struct, frozen=True, tag=True):
    """A light snapshot, taken in passing, from which the session can be gone on after a crash."""

    session: SessionId
    snapshot: bytes


class Beat(Struct, frozen=True, tag=True):
    """The process lives. The pass that it is in, if any, has run for `pass_s`, and was reckoned to
    take `expected_s`; `full` says that a session of the model's own size and rate would be
    refused."""

    pass_s: float
    expected_s: float
    full: bool


class CannotStart(Struct, frozen=True, tag=True):
    """Why there is no engine."""

    message: str


Report: TypeAlias = Ready | Refused | Granted | Begun | Told | Saved | Beat | CannotStart
REPORTS: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)

In = TypeVar("In")


class Incoming(Generic[In]):
    """Takes bytes and descriptors as they come and gives whole messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[In]) -> None:
        self._decoder = decoder
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, sock: socket.socket) -> list[tuple[In, int | None]] | None:
        """What a readable socket has: messages, each with its descriptor; None at its end.

        Raises `ValueError` for what is no message, `OSError` as a socket does.
        """
        data, fds, _, _ = socket.recv_fds(sock, _READ, 16)
        self._fds.extend(fds)
        if not data:
            return None
        self._bytes += data
        messages: list[tuple[In, int | None]] = []
        at = 0
        while len(self._bytes) - at >= _HEAD.size:
            length, carries = _HEAD.unpack_from(self._bytes, at)
            if length > MAX_BYTES:
                raise ValueError("a message is too long")
            end = at + _HEAD.size + length
            if len(self._bytes) < end:
                break
            body = bytes(self._bytes[at + _HEAD.size : end])
            try:
                message = self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise ValueError(f"no message: {error}") from error
            messages.append((message, self._fds.popleft() if carries else None))
            at = end
        del self._bytes[:at]
        return messages

    def close(self) -> None:
        """Let go of descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())


class Outgoing:
    """Sends messages over a blocking socket, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()

    def send(self, message: Report, fd: int | None = None) -> None:
        """Send one message. Raises `OSError` when nobody listens any more."""
        data = framed(self._encoder.encode(message), carries=fd is not None)
        with self._lock:
            if fd is not None:
                sent = socket.send_fds(self._sock, [data], [fd])
                data = data[sent:]
            self._sock.sendall(data)


def framed(body: bytes, *, carries: bool = False) -> bytes:
    """A message's bytes with what goes before them."""
    return _HEAD.pack(len(body), carries) + body
