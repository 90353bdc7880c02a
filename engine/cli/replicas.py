"""`--ray` and `--replicas`, of commands that work on replicas of Ray Serve."""

from __future__ import annotations

import argparse
import os
import re
from types import ModuleType
from typing import Any

from ..errors import InputError, ResourceError

MOST = 1024


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--ray",
        action="store_true",
        help="work on engines in replicas of Ray Serve, in the cluster of RAY_ADDRESS or one that "
        "is started here",
    )
    parser.add_argument(
        "--replicas",
        type=_replicas,
        metavar="N or LOW-HIGH",
        help="with --ray: how many; between two numbers as many as the sessions want (default: 1)",
    )


def check(options: argparse.Namespace) -> None:
    """Raise `InputError` for options that do not go with one another."""
    if options.replicas is not None and not options.ray:
        raise InputError("--replicas goes with --ray")


def app() -> ModuleType:
    """`serve.ray_app`, which takes seconds to import. Raises `ResourceError` without Ray."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default all else goes first
    try:
        from ..serve import ray_app
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"--ray needs the package {error.name}: pip install 'livereel[ray]'"
        ) from error
    return ray_app


def wanted(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that `ray_app.Settings` shares between commands."""
    low, high = options.replicas or (1, 1)
    return {
        "model": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "min_replicas": low,
        "max_replicas": high,
    }


def _replicas(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= MOST:
        raise argparse.ArgumentTypeError(
            f"must be a number from 1 to {MOST} or two such as 1-4, got {text!r:.40}"
        )
    return low, high
