"""A headless Chromium, driven over its DevTools protocol. Nothing is downloaded."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_START_S = 30


class Browser:
    """One browser with one page."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        assert BINARY is not None
        self._process = subprocess.Popen(
            [
                BINARY,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--autoplay-policy=no-user-gesture-required",
                "--no-first-run",
                f"--window-size={width},{height}",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._id = 0
        self._open = contextlib.ExitStack()
        self.errors: list[str] = []
        try:
            port = self._port(profile / "DevToolsActivePort")
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=_START_S).json()
            url = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
            self._socket = self._open.enter_context(
                connect(url, max_size=1 << 26, compression=None)
            )
            self.call("Page.enable")
            self.call("Runtime.enable")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; gives its result."""
        self._id += 1
        self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Go to a page and wait until its scripts have run."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def eval(self, code: str) -> Any:
        """The value of an expression, or what its promise gives. Raises for what it throws."""
        result = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def until(self, code: str, seconds: float = 20) -> Any:
        """Wait until an expression is true; gives its value."""
        end = time.monotonic() + seconds
        while not (value := self.eval(code)):
            assert time.monotonic() < end, f"still not: {code}; errors: {self.errors}"
            time.sleep(0.05)
        return value

    def screenshot(self, path: Path) -> None:
        """A PNG of what is to be seen."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _port(self, path: Path) -> int:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if path.exists() and (lines := path.read_text().split()):
                return int(lines[0])
            assert self._process.poll() is None, "Chromium did not start"
            time.sleep(0.05)
        raise AssertionError("Chromium did not start in time")
