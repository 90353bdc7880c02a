"""Errors a caller can act on. Each message is one sentence: what was given and what is wanted."""

from __future__ import annotations


class LiveReelError(Exception):
    """Base of all errors raised on purpose; the command line prints the message and exits 2."""


class InputError(LiveReelError, ValueError):
    """An argument is out of range, malformed or contradicts another."""


class CheckpointError(LiveReelError):
    """A model folder or weight file is missing, truncated, unsafe or of another layout."""


class ResourceError(LiveReelError):
    """The machine cannot do it: too little memory, a device or an optional package is missing."""
