"""The server's contract as files: `asyncapi.json` for the socket, `openapi.json` for HTTP.

    python -m livereel.engine.serve.schema

writes both from the types; a test fails when they differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import gettempdir
from typing import Any, get_args

import msgspec

from .. import __version__
from . import protocol
from .app import Server, make_app
from .fake import FakeEngine
from .security import Guard

HERE = Path(__file__).parent
_COMPONENT = "#/components/schemas/{name}"


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of `/v1/stream`."""
    sides = {
        "client": get_args(protocol.ClientMessage),
        "server": get_args(protocol.ServerMessage),
    }
    types = [kind for kinds in sides.values() for kind in kinds]
    _, schemas = msgspec.json.schema_components(types, ref_template=_COMPONENT)
    names = {kind: kind.__struct_config__.tag for kind in types}
    messages: dict[str, Any] = {
        names[kind]: {
            "name": names[kind],
            "contentType": "application/json",
            "payload": {"$ref": _COMPONENT.format(name=kind.__name__)},
        }
        for kind in types
    }
    messages["frame"] = {
        "name": "frame",
        "contentType": "application/octet-stream",
        "description": _binary(),
    }
    messages["picture"] = {
        "name": "picture",
        "contentType": "image/*",
        "description": "A whole PNG, JPEG or WebP file, of at most "
        f"{protocol.MAX_PICTURE_BYTES} bytes, for a stream with a strength.",
    }
    asked = [*(names[kind] for kind in sides["client"]), "picture"]
    replies = [*(names[kind] for kind in sides["server"]), "frame"]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "LiveReel streams",
            "version": __version__,
            "description": _text(protocol.__doc__),
        },
        "channels": {
            "stream": {
                "address": protocol.PATH,
                "bindings": {"ws": {"method": "GET"}},
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        "operations": {
            "control": _operation("receive", asked),
            "watch": _operation("send", replies),
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def openapi() -> dict[str, Any]:
    """OpenAPI of the HTTP routes."""
    guard = Guard(host="127.0.0.1", key=None)
    server = Server(engine=FakeEngine(), guard=guard, folder=Path(gettempdir()))
    return make_app(server).openapi()


def files() -> dict[Path, str]:
    """What the files hold."""
    made = {"asyncapi.json": asyncapi(), "openapi.json": openapi()}
    return {HERE / name: json.dumps(made[name], indent=2) + "\n" for name in made}


def _operation(action: str, names: list[str]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/stream"},
        "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in names],
    }


def _binary() -> str:
    flags = "; ".join(f"{flag.value} {flag.name}" for flag in protocol.Flag)
    return (
        f"{protocol.HEADER_BYTES} bytes of header, struct {protocol.HEADER.format!r}, and one "
        f"access unit of H.264. {_text(protocol.Header.__doc__)} Flags: {flags}."
    )


def _text(doc: str | None) -> str:
    return " ".join((doc or "").split())


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, "utf-8")
