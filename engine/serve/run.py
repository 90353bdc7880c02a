"""Running the server until it is told to stop, by SIGTERM or Ctrl-C, in good order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket as sockets
from collections.abc import Callable, Iterator

import uvicorn

from ..errors import InputError
from .app import Server, make_app
from .logs import log
from .protocol import MAX_PICTURE_BYTES

_BACKLOG = 256
_PING_S = 5.0
_UNANSWERED_S = 10.0


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: streams are told before sockets are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> sockets.socket:
    """Take the port now, before a model is loaded. Raises `InputError` when it cannot be had."""
    try:
        info = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
        bound = sockets.socket(info[0], sockets.SOCK_STREAM)
        bound.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        bound.bind(info[4])
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    bound.set_inheritable(False)
    return bound


def web_server(server: Server) -> uvicorn.Server:
    """What answers HTTP and sockets; neither the engine nor signals are its business."""
    config = uvicorn.Config(
        make_app(server),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=MAX_PICTURE_BYTES,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_UNANSWERED_S,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(server.limits.grace_s / 2)),
    )
    return _Uvicorn(config)


def serve(server: Server, listening: sockets.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called when the first frame could be made.

    Raises `LiveReelError` when the engine cannot be started.
    """
    asyncio.run(_serve(server, listening, ready))


async def _serve(server: Server, listening: sockets.socket, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    web = web_server(server)
    # Health is answered from the start: the model may take a while to load.
    serving = asyncio.create_task(web.serve(sockets=[listening]))
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(server.start())
    try:
        await asyncio.wait((starting, serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready()
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            log("draining")
            await asyncio.wait_for(server.drain(), server.limits.grace_s + 1)
    except asyncio.TimeoutError:
        log("grace_over")
    finally:
        starting.cancel()
        stopping.cancel()
        web.should_exit = True
        await asyncio.gather(serving, starting, return_exceptions=True)
        await server.stop()
        log("stopped")


__all__ = ["bind", "serve"]
