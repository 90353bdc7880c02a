"""What the server writes down, and where to."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from livereel.engine.serve import logs


@pytest.fixture
def loggers() -> Iterator[None]:
    """Puts back what `to_stderr` changes."""
    names = ("livereel.serve", "uvicorn")
    found = [logging.getLogger(name) for name in names]
    before = [(one.handlers, one.propagate, one.level) for one in found]
    yield
    for one, (handlers, propagate, level) in zip(found, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_events_are_json_and_go_where_stderr_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, here = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", gone)
    logs.to_stderr()
    gone.close()
    monkeypatch.setattr(sys, "stderr", here)
    logs.log("stream_opened", session="abc", width=128)
    said = json.loads(here.getvalue())
    assert said.items() >= {"event": "stream_opened", "session": "abc", "width": 128}.items()
