"""`livereel serve`: what it refuses, and one run from start to SIGTERM."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from livereel.engine.cli import main
from livereel.engine.serve.client import AsyncStream


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: give --api-key"),
        (["--host", "::"], "lets others in"),
        (["--api-key", "short"], "the API key has 5 characters"),
        (["--port", "70000"], "--port: must be a whole number from 0 to 65535"),
        (["--model", "nothing/here"], "unknown model"),
        (["--allow-host", "a:1"], "must be a host's name without a port"),
        (["--allow-origin", "example.org"], "must be such as https://example.org"),
        (["--host", "256.0.0.1", "--api-key", "long enough"], "cannot listen on 256.0.0.1"),
        (["--idle", "0"], "--idle: must be a whole number from 1 to 86400"),
        (["--lifetime", "1.5"], "--lifetime: must be a whole number from 1 to 2592000"),
        (["--state", "/proc/no"], "cannot make the folder /proc/no"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_the_extra_is_named_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return whole(name, *rest)

    for name in [name for name in sys.modules if name.startswith("livereel.engine.serve.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["serve"]) == 2
    assert "pip install 'livereel[serve]'" in capsys.readouterr().err


def test_from_start_to_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "livereel.engine.cli", "serve", "--port", "0"]
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(
            [*command, "--state", str(tmp_path / "state")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            assert said.startswith("LiveReel is live at http://127.0.0.1:"), said + log.read()
            url = said.split()[-1]
            assert httpx.get(f"{url}/readyz").status_code in (200, 503)
            assert "LiveReel" in httpx.get(url).text
            asyncio.run(asyncio.wait_for(watch(url, server), 60))
            assert server.wait(20) == 0
        finally:
            server.kill()
            server.wait()
    log_text = (tmp_path / "log").read_text()
    assert '"event": "draining"' in log_text
    assert "Traceback" not in log_text


async def watch(url: str, server: subprocess.Popen[str]) -> None:
    """Watch for a while; the server is told to stop, and tells so."""
    stream = AsyncStream(url, "a red circle moving right on a black background", fps=2)
    async with stream:
        async for frame in stream:
            assert frame.pixels.shape == (128, 128, 3)
            if frame.number == 1:
                server.send_signal(signal.SIGTERM)
            if stream.ended is not None:
                break
    assert stream.ended is not None
    assert stream.ended.reason == "draining"
