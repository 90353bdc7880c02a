"""Logs of the server: one JSON object a line, with the session that it is about."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_logger = logging.getLogger("livereel.serve")


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, what happened, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _Stderr:
    """What stderr is when something is written."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def log(event: str, *, level: int = logging.INFO, trace: bool = False, **fields: object) -> None:
    """Write down that `event` happened. Prompts and tokens do not belong in `fields`."""
    _logger.log(level, event, extra={"fields": fields}, exc_info=trace)


def to_stderr(level: int = logging.INFO) -> None:
    """Send the server's logs, and warnings of what it is built on, to stderr."""
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(JsonLines())
    _logger.handlers, _logger.propagate = [handler], False
    _logger.setLevel(level)
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.handlers, uvicorn.propagate = [handler], False
    uvicorn.setLevel(logging.WARNING)
