"""The first thing that a request meets: hosts, origins, the key, the size of the body."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from .logs import log
from .protocol import Close

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .limits import Limits
    from .metrics import Metrics
    from .security import Guard

_WITH_FILES = ("/v1/images", "/v1/videos")
_FORM_ROOM = 65_536
_LEFT_BYTES, _LEFT_S = 64 << 20, 2.0
"""What is read of a refused body, and for how long."""


class _TooLong(Exception):
    """The body has more bytes than are taken."""


class Gate:
    """Lets through what `Guard` allows, and bodies no longer than `Limits` says."""

    def __init__(self, app: ASGIApp, guard: Guard, limits: Limits, metrics: Metrics) -> None:
        self._app, self._guard, self._limits, self._metrics = app, guard, limits, metrics
        self._sockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._guard.refusal(dict(scope))
        socket = scope["type"] == "websocket"
        if refusal is None and socket and self._sockets >= self._limits.sockets:
            refusal = 503, f"{self._limits.sockets} sockets are open already"
        if refusal is not None:
            await self._refuse(scope, receive, send, *refusal)
            return
        if socket:
            self._sockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._sockets -= 1
            return
        await self._bounded(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limits.body_bytes
        if scope["path"] in _WITH_FILES:
            limit = self._limits.image_bytes + _FORM_ROOM
        length = dict(scope["headers"]).get(b"content-length", b"0")
        taken, begun = 0, False

        async def count() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _TooLong
            return message

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if not length.isdigit() or int(length) > limit:
                raise _TooLong
            await self._app(scope, count, note)
        except _TooLong:
            if begun:
                raise
            await self._refuse(
                scope, receive, send, 413, f"a body has at most {limit:,} bytes here"
            )

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: int, reason: str
    ) -> None:
        code = {401: "unauthorized", 403: "forbidden", 413: "too_large"}.get(status, "busy")
        self._metrics.refused.labels(code).inc()
        log("refused", path=scope["path"], status=status)
        if scope["type"] == "websocket":
            await _refuse_socket(scope, receive, send, status, code, reason)
            return
        body = _body(code, reason)
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        if status == 413:
            headers.append((b"connection", b"close"))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
            if _wants_page(scope):
                status, headers = 303, [(b"location", b"/login")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": status == 413})
        if status == 413:
            await _drop(receive)
            await send({"type": "http.response.body"})


async def _drop(receive: Receive) -> None:
    """Read on for a while: where a connection is closed on one who sends, the answer can be lost
    with it."""

    async def read() -> None:
        left, more = _LEFT_BYTES, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _LEFT_S)


async def _refuse_socket(
    scope: Scope, receive: Receive, send: Send, status: int, code: str, reason: str
) -> None:
    """Refuse the handshake with a status where the server can; else close at once."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"application/json")]
        start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": _body(code, reason)})
    else:
        await send({"type": "websocket.close", "code": int(Close.POLICY), "reason": code})


def _body(code: str, reason: str) -> bytes:
    body: dict[str, Any] = {"error": {"code": code, "message": reason}}
    return json.dumps(body).encode()


def _wants_page(scope: Scope) -> bool:
    """Whether a person, who has no key yet, opens the page."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return scope["path"] == "/" and scope["method"] == "GET" and b"text/html" in accept
