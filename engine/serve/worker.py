"""The engine's process: takes commands, makes chunks in the scheduler's order, reports.

One thread does all of it, so that nothing changes while a pass runs; two small ones beside it
listen to the channel and send heartbeats. When the channel ends, so does the process, in the middle
of a pass if need be: whoever would have got the frames is gone, and nothing outlives it.

`python -m livereel.engine.serve.worker DESCRIPTOR SETUP` is run by `EngineProcess` alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import InputError, LiveReelError, ResourceError
from . import wire
from .messages import EngineEvent
from .table import Limits, Table
from .worker_client import Busy, Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Backend

BEAT_S = 0.25


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with; `fake` takes a backend without a model."""

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    sessions: int = 64
    idle_s: float = 120.0
    lifetime_s: float = 6 * 3600.0
    loras: tuple[str, ...] = ()
    """Paths; each LoRA has its file's name."""
    fake: tuple[float, float, int] | None = None
    """Seconds of a pass for one stream, for each further one, and how many can share one."""


class Worker:
    """Runs `backend` for whoever is at the other end of `sock`."""

    def __init__(self, backend: Backend[Any], sock: socket.socket, limits: Limits) -> None:
        self._backend, self._sock, self._out = backend, sock, wire.Outgoing(sock)
        self._inbox: queue.SimpleQueue[wire.Command] = queue.SimpleQueue()
        self._table = Table(
            backend, limits=limits, begin=self._begin, tell=self._tell, keep=self._keep,
            clock=time.monotonic,
        )  # fmt: skip
        self._full = False

    def run(self) -> None:
        """Work until the other end is gone, which ends the process."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        self._table.warm_up()
        self._out.send(wire.Ready(self._backend.model))
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        while True:
            self._take_commands()
            self._table.step()
            self._full = self._table.full

    def _listen(self) -> None:
        incoming = wire.Incoming(wire.COMMANDS)
        try:
            while (found := incoming.feed(self._sock)) is not None:
                for command, _ in found:
                    self._inbox.put(command)
        except (OSError, ValueError):
            traceback.print_exc()
        os._exit(0)

    def _beat(self) -> None:
        while True:
            began = self._table.pass_began
            spent = 0.0 if began is None else time.monotonic() - began
            self._out.send(wire.Beat(spent, self._table.pass_expected_s, self._full))
            time.sleep(BEAT_S)

    def _begin(self, sessions: tuple[str, ...]) -> None:
        self._out.send(wire.Begun(sessions))

    def _tell(self, session: str, event: EngineEvent) -> None:
        self._out.send(wire.Told(session, event))

    def _keep(self, session: str, snapshot: bytes) -> None:
        self._out.send(wire.Saved(session, snapshot))

    def _take_commands(self) -> None:
        """Those that are there; where there is nothing else to do, wait for one."""
        patience = self._table.patience()
        with contextlib.suppress(queue.Empty):
            self._obey(self._inbox.get(timeout=patience) if patience else self._inbox.get_nowait())
            while True:
                self._obey(self._inbox.get_nowait())

    def _obey(self, command: wire.Command) -> None:
        table = self._table
        if isinstance(command, wire.Open):
            self._answer(command.request, lambda request: self._open(request, command))
        elif isinstance(command, wire.Steer):
            self._answer(command.request, lambda request: self._steer(request, command))
        elif isinstance(command, wire.Save):
            self._answer(command.request, lambda request: self._save(request, command))
        elif isinstance(command, wire.Push):
            self._answer(command.request, lambda request: self._push(request, command))
        elif isinstance(command, wire.Ask):
            state = msgspec.structs.replace(table.state(), memory_bytes=_resident())
            self._out.send(wire.Granted(command.request, state=state))
        elif isinstance(command, wire.Drain):
            table.drain(command.grace_s)
        elif isinstance(command, wire.Close):
            table.close(command.session)
        elif isinstance(command, wire.Shown):
            table.shown(command.session, command.frame, command.at)
        else:
            table.renew(command.session)

    def _answer(self, request: int, act: Callable[[int], None]) -> None:
        try:
            act(request)
        except Busy as error:
            self._refuse(request, "busy", error, error.retry_after_s)
        except InputError as error:
            self._refuse(request, "input", error)
        except Gone as error:
            self._refuse(request, "gone", error)
        except ResourceError as error:
            self._refuse(request, "memory", error)
        except Exception as error:
            traceback.print_exc()
            self._refuse(request, "internal", error)

    def _refuse(
        self, request: int, code: wire.RefusalCode, error: Exception, retry_after_s: float = 0.0
    ) -> None:
        self._out.send(wire.Refused(request, code, str(error), retry_after_s))

    def _open(self, request: int, command: wire.Open) -> None:
        opened, fd = self._table.open(
            command.session, command.spec, chunk=command.chunk, pts=command.pts,
            alone=command.alone,
        )  # fmt: skip
        self._out.send(wire.Granted(request, opened=opened), fd)

    def _steer(self, request: int, command: wire.Steer) -> None:
        self._table.steer(command.session, command.control)
        self._out.send(wire.Granted(request))

    def _push(self, request: int, command: wire.Push) -> None:
        self._table.push(command.session, command.frames)
        self._out.send(wire.Granted(request))

    def _save(self, request: int, command: wire.Save) -> None:
        snapshot = self._table.save(command.session, light=command.light)
        self._out.send(wire.Granted(request, snapshot=snapshot))


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def load(setup: Setup) -> Backend[Any]:
    """The backend that was asked for. Raises `LiveReelError`."""
    if setup.fake is not None:
        from .fake_backend import FakeBackend

        chunk_s, more_s, most = setup.fake
        return FakeBackend(chunk_s=chunk_s, more_s=more_s, most=most)
    from .model_backend import ModelBackend

    return ModelBackend.load(setup.model, setup.device, setup.dtype, setup.loras)


def main(descriptor: str, setup: str) -> None:
    """Run until the channel ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # says where it hangs
    sock = socket.socket(fileno=int(descriptor))
    wanted = msgspec.json.decode(setup, type=Setup)
    limits = Limits(sessions=wanted.sessions, idle_s=wanted.idle_s, lifetime_s=wanted.lifetime_s)
    try:
        backend = load(wanted)
    except LiveReelError as error:
        wire.Outgoing(sock).send(wire.CannotStart(str(error)))
        return
    with contextlib.suppress(ConnectionError):  # nobody listens any more
        Worker(backend, sock, limits).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
