"""`livereel serve`: open a page, type a prompt, watch it happen."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError, ResourceError
from . import arguments

SUMMARY = "serve live streams to browsers and programs"
EXAMPLES = """\
examples:
  livereel serve
  livereel serve --model models/self-forcing --port 9000
  LIVEREEL_API_KEY=... livereel serve --host 0.0.0.0 --allow-host studio.example.org

Then open http://127.0.0.1:8000. Anyone who can reach the port could use it, so a host other than
this machine needs a key, which people are asked for and programs send as a bearer token. SIGTERM
tells all who watch, and the streams can be gone on with after a restart with the same --state.
"""
_KEY = "LIVEREEL_API_KEY"
_LEAST_KEY = 8


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    arguments.add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=arguments.whole(0, 65_535), default=8000, help="0 takes a free one"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"who has it may use the server (or set {_KEY})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        type=_name,
        metavar="NAME",
        help="another name that the server is called by; may be given again",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="URL",
        help="pages elsewhere that may use it, such as https://example.org",
    )
    parser.add_argument(
        "--sessions",
        type=arguments.whole(1, 1024),
        default=64,
        help="streams at most (default: 64), where the machine keeps up with so many",
    )
    parser.add_argument(
        "--state",
        metavar="FOLDER",
        help="keeps clips, and what streams go on from, over a restart (default: nothing is kept)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit code."""
    arguments.find_model(options.model)
    key = _key(options)
    try:
        from ..serve import logs
        from ..serve import run as running
        from ..serve.app import Server
        from ..serve.engine_process import EngineProcess
        from ..serve.limits import Limits
        from ..serve.security import Guard, is_loopback
        from ..serve.worker import Setup
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"the server needs the package {error.name}: pip install 'livereel[serve]'"
        ) from error
    if key is None and not is_loopback(options.host):
        raise InputError(
            f"--host {options.host} lets others in: give --api-key, or set {_KEY} "
            f"(--host 127.0.0.1 needs none)"
        )
    logs.to_stderr()
    listening = running.bind(options.host, options.port)
    with TemporaryDirectory(prefix="livereel-") as passing:
        setup = Setup(
            model=options.model,
            device=options.device,
            dtype=options.dtype,
            sessions=options.sessions,
        )
        server = Server(
            engine=EngineProcess(setup),
            guard=Guard(
                host=options.host,
                key=key,
                hosts=frozenset(options.allow_host),
                origins=frozenset(options.allow_origin),
            ),
            folder=Path(passing) if options.state is None else _folder(options.state),
            limits=Limits(streams=options.sessions),
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{listening.getsockname()[1]}"
        running.serve(server, listening, lambda: print(f"LiveReel is live at {url}", flush=True))
    return 0


def _key(options: argparse.Namespace) -> str | None:
    key: str | None = options.api_key or os.environ.get(_KEY) or None
    if key is not None and not _LEAST_KEY <= len(key) <= 1024:
        raise InputError(f"the API key has {len(key)} characters; wanted {_LEAST_KEY} to 1024")
    return key


def _folder(name: str) -> Path:
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"cannot make the folder {name}: {error.strerror}") from error
    return path


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", text):
        raise argparse.ArgumentTypeError(f"must be a host's name without a port, got {text!r}")
    return text.lower()


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]{1,253}(:\d{1,5})?", text):
        raise argparse.ArgumentTypeError(f"must be such as https://example.org, got {text!r}")
    return text
