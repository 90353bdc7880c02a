"""Errors a caller can act on. Each message is one sentence: what was given and what is wanted."""

from __future__ import annotations

import textwrap

_LONGEST = 1000
"""Characters of a message; beyond that nobody reads on."""


class LiveReelError(Exception):
    """Base of all errors raised on purpose; the command line prints the message and exits 2.

    What another library said may be part of a message: it is folded into one line, and cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(textwrap.shorten(message, _LONGEST, placeholder=" ..."))


class InputError(LiveReelError, ValueError):
    """An argument is out of range, malformed or contradicts another."""


class CheckpointError(LiveReelError):
    """A model folder or weight file is missing, truncated, unsafe or of another layout."""


class ResourceError(LiveReelError):
    """The machine cannot do it: too little memory, a device or an optional package is missing."""
