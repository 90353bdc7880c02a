"""A process of the engine and the channel to it, as the server holds them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from ..errors import ResourceError
from . import wire
from .worker import Setup

_STOP_S = 3.0
_DUMP_S = 0.2


class Link:
    """Made by `open`. `ready` is done when the process is, `gone` set when nothing more comes."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        sock: socket.socket,
        take: Callable[[wire.Report, int | None], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.process, self._sock, self._take, self._loop = process, sock, take, loop
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone = asyncio.Event()
        self._incoming = wire.Incoming(wire.REPORTS)
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [loop.create_task(self._send()), loop.create_task(self._watch())]
        loop.add_reader(sock.fileno(), self._receive)

    @classmethod
    async def open(cls, setup: Setup, take: Callable[[wire.Report, int | None], None]) -> Link:
        """Start a process. What it reports goes to `take`, with descriptors that are then its."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "livereel.engine.serve.worker", str(theirs.fileno()),
                msgspec.json.encode(setup).decode(),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which then ends it in order
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours, take)

    def send(self, command: wire.Command) -> None:
        """Send it as soon as there is room for it."""
        self._outbox.put_nowait(wire.framed(msgspec.msgpack.encode(command)))

    def hurt(self) -> None:
        """End the process; `gone` is set when it has ended."""
        # Not by `Process.kill`, which may take the exit status away from who waits for it.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def put_down(self) -> None:
        """End a process that hangs, after it has written to stderr where."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
        await asyncio.sleep(_DUMP_S)
        self.hurt()

    async def stop(self) -> None:
        """End the channel, and with it the process."""
        await self._close()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_S)
        except asyncio.TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the process, whatever it does."""
        self.hurt()
        await self.process.wait()
        await self._close()

    async def _close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sock.close()
        self._incoming.close()
        if self.ready.done():
            self.ready.exception()
        else:
            self.ready.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._loop.sock_sendall(self._sock, await self._outbox.get())

    async def _watch(self) -> None:
        await self.process.wait()
        if not self.ready.done():
            self.ready.set_exception(ResourceError("the engine's process ended at its start"))
        self.gone.set()

    def _receive(self) -> None:
        try:
            found = self._incoming.feed(self._sock)
            for report, fd in found or ():
                self._take(report, fd)
                if isinstance(report, wire.Ready):
                    self.ready.set_result(None)
                elif isinstance(report, wire.CannotStart):
                    self.ready.set_exception(ResourceError(report.message))
        except BlockingIOError:
            return
        except (OSError, ValueError):
            found = None
        if found is None:
            self._loop.remove_reader(self._sock.fileno())
            self.gone.set()
