"""The Python client beyond what `test_socket` uses of it, and the example."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from livereel.engine.errors import InputError, LiveReelError
from livereel.engine.serve import example
from livereel.engine.serve.client import AsyncStream, Refused, Stream

from .conftest import Live, MakeLive


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(InputError, match="wanted one such as http"):
        AsyncStream(url, "a red circle")


def test_a_key_is_sent(make_live: MakeLive) -> None:
    live = make_live(key="sesame sesame")
    with pytest.raises(LiveReelError, match="status 401"), Stream(live.url, "a red circle"):
        pass
    with Stream(live.url, "a red circle", api_key="sesame sesame") as stream:
        assert next(iter(stream)).number == 0


def test_what_the_server_refuses_is_raised(live: Live) -> None:
    narrow = Stream(live.url, "a red circle", width=24)
    with pytest.raises(Refused, match="multiples of 16") as refused, narrow:
        pass
    assert not refused.value.retryable
    with Stream(live.url, "a red circle") as stream:
        answer = stream.update(steps=900)
        for _ in stream:
            if answer.done():
                break
        with pytest.raises(Refused, match="steps is 900"):
            answer.result()


def test_the_example(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "EVERY", 8)
    example.main(live.url, str(tmp_path / "out.mp4"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24
