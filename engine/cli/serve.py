"""`livereel serve`: open a page, type a prompt, watch it happen."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError, ResourceError
from . import arguments, replicas

SUMMARY = "serve live streams to browsers and programs"
EXAMPLES = """\
examples:
  livereel serve
  livereel serve --model models/self-forcing --port 9000
  LIVEREEL_API_KEY=... livereel serve --host 0.0.0.0 --allow-host studio.example.org
  RAY_ADDRESS=head:6379 livereel serve --ray --replicas 1-8

Then open http://127.0.0.1:8000. Anyone who can reach the port could use it, so a host other than
this machine needs a key, which people are asked for and programs send as a bearer token. SIGTERM
tells all who watch, and the streams can be gone on with after a restart with the same --state.
"""
_KEY = "LIVEREEL_API_KEY"
_LEAST_KEY = 8
_GRACE_S = 60.0
"""The engine gives up a stream so much later than the server should have."""


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
        "--lora",
        action="append",
        default=[],
        metavar="PATH",
        help="a LoRA that streams can ask for by its file's name; may be given again",
    )
    parser.add_argument(
        "--idle",
        type=arguments.whole(1, 86_400),
        default=30,
        metavar="SECONDS",
        help="a stream that nobody watches is kept for so long (default: 30)",
    )
    parser.add_argument(
        "--lifetime",
        type=arguments.whole(1, 30 * 86_400),
        default=6 * 3600,
        metavar="SECONDS",
        help="a stream ends after so long, watched or not (default: 21600, six hours)",
    )
    replicas.add(parser)
    parser.add_argument(
        "--state",
        metavar="FOLDER",
        help="keeps clips, and what streams go on from, over a restart (default: nothing is kept)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit code."""
    arguments.find_model(options.model)
    replicas.check(options)
    key = _key(options)
    try:
        from ..serve import heap, logs
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
    if options.ray:
        return _run_on_ray(options, key)
    logs.to_stderr()
    heap.keep_compact()
    listening = running.bind(options.host, options.port)
    with TemporaryDirectory(prefix="livereel-") as passing:
        setup = Setup(
            model=options.model,
            device=options.device,
            dtype=options.dtype,
            sessions=options.sessions,
            idle_s=options.idle + _GRACE_S,
            lifetime_s=options.lifetime,
            loras=tuple(options.lora),
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
            limits=Limits(streams=options.sessions, lease_s=options.idle),
        )
        port = listening.getsockname()[1]
        running.serve(server, listening, lambda: _announce(options.host, port))
    return 0


def _run_on_ray(options: argparse.Namespace, key: str | None) -> int:
    if options.port == 0:
        raise InputError("--port 0 does not go with --ray: name the port")
    ray_app = replicas.app()
    settings = ray_app.Settings(
        **replicas.wanted(options), sessions=options.sessions, idle_s=options.idle,
        lifetime_s=options.lifetime, loras=options.lora, host=options.host,
        allow_host=options.allow_host, allow_origin=options.allow_origin, state=options.state,
    )  # fmt: skip
    ray_app.run(settings, key, options.port, lambda: _announce(options.host, options.port))
    return 0


def _announce(host: str, port: int) -> None:
    print(f"LiveReel is live at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


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
