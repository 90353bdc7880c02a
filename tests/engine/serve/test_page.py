"""The page in a real browser: it decodes what the real socket sends, frame for frame.

The stream is the fake engine's, whose frames show their number as a row of squares and their
prompt as a color; what is compared was read from the page's own pixels.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from msgspec.structs import replace

from livereel.engine.serve import messages
from livereel.engine.serve.fake import FakeEngine, color_of, number_of
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.stream import Stream

from .chromium import BINARY, Browser
from .conftest import Live, MakeLive

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BINARY is None, reason="needs Chromium (Debian: apt install chromium)"),
]

RED, BLUE = "a red circle", "a blue star"
# Whether the square that is led is where the probe looks, or only the prompt's color.
LED = "seen.at(-1).rgb.every((value) => value > 239)"
FREE = f"{list(color_of(RED))}.every((c, i) => Math.abs(seen.at(-1).rgb[i] - c) < 16)"

# Reads the number and the color off each frame as it is shown, and when.
PROBE = """
globalThis.seen = [];
globalThis.probe = () => {
  const side = 128, pad = document.createElement("canvas");
  pad.width = pad.height = side;
  const pen = pad.getContext("2d", { willReadFrequently: true });
  livereel.player.addEventListener("shown", ({ detail }) => {
    pen.drawImage(livereel.player.element, 0, 0, side, side);
    const row = pen.getImageData(0, 4, side, 1).data;
    let number = 0;
    for (let bit = 0; bit < 16; bit++) number |= (row[4 * (8 * bit + 4)] > 127) << bit;
    const at = performance.timeOrigin + performance.now();
    const [r, g, b] = pen.getImageData(64, 80, 1, 1).data;
    seen.push({ number, told: detail.frame, rgb: [r, g, b], at });
  });
};
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    opened.call("Page.addScriptToEvaluateOnNewDocument", source=PROBE)
    yield opened
    opened.close()


def start(browser: Browser, live: Live) -> None:
    """Open the page, start a stream, and read every frame that is shown."""
    browser.open(live.url)
    write(browser, RED)
    browser.until("livereel.player")
    browser.eval("probe()")
    browser.until("seen.length > 3")


def write(browser: Browser, prompt: str) -> None:
    browser.eval(
        f"document.getElementById('text').value = '{prompt}';"
        "document.getElementById('prompt').requestSubmit()"
    )


def seen(browser: Browser) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = browser.eval("seen")
    return frames


def has(frame: dict[str, Any], prompt: str) -> bool:
    return bool(np.abs(np.array(frame["rgb"]) - color_of(prompt)).max() < 16)


def in_order(frames: list[dict[str, Any]]) -> bool:
    numbers = [frame["number"] for frame in frames]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_new_prompt_shows_at_the_frame_that_was_announced(live: Live, browser: Browser) -> None:
    start(browser, live)
    write(browser, BLUE)
    first = browser.until("livereel.applied?.first_frame")
    browser.until(f"seen.at(-1).number >= {first} + 5")
    frames = seen(browser)
    assert in_order(frames)
    assert all(frame["number"] == frame["told"] for frame in frames)
    for frame in frames:
        assert has(frame, BLUE if frame["number"] >= first else RED), frame
    assert browser.eval("livereel.player.name") == "WebCodecs"
    assert browser.eval("document.getElementById('n-control').textContent") != "–"
    assert browser.errors == []


def test_a_cut_loses_and_doubles_nothing(live: Live, browser: Browser) -> None:
    start(browser, live)
    for _ in range(3):
        before = browser.eval("seen.length")
        browser.eval("livereel.connection.socket.close()")
        browser.until(f"seen.length > {before} + 8")
    frames = seen(browser)
    assert in_order(frames)
    assert all(frame["number"] == frame["told"] for frame in frames)
    assert live.server.streams.count == 1


def test_a_reload_goes_on_with_the_same_stream_which_can_be_let_go(
    live: Live, browser: Browser
) -> None:
    start(browser, live)
    drag(browser, (0.5, 0.625), (0.5, 0.625))
    browser.until(LED)
    session = browser.eval("livereel.created.session_id")
    browser.open(live.url)
    browser.until("livereel.frame > 8")
    assert browser.eval("livereel.created.session_id") == session
    assert browser.eval("document.getElementById('text').value") == RED
    browser.eval("probe()")
    browser.until(f"seen.length && {LED}")
    assert browser.eval("document.getElementById('free').hidden") is False
    browser.eval("document.getElementById('free').click()")
    browser.until(FREE)
    assert browser.eval("document.getElementById('free').hidden") is True
    assert browser.errors == []


def test_without_webcodecs_the_same_frames_play(live: Live, browser: Browser) -> None:
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.VideoDecoder;")
    start(browser, live)
    write(browser, BLUE)
    browser.until("seen.length > 20 && livereel.applied")
    assert browser.eval("livereel.player.name") == "Media Source"
    assert "no WebCodecs" in browser.eval("document.getElementById('notice').textContent")
    first = browser.eval("livereel.applied.first_frame")
    browser.until(f"seen.at(-1).number > {first} + 3")
    frames = seen(browser)
    numbers = [frame["number"] for frame in frames]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 0.5 * (numbers[-1] - numbers[0])
    assert has(frames[-1], BLUE)


def test_what_was_streamed_is_saved_without_encoding(live: Live, browser: Browser) -> None:
    start(browser, live)
    browser.eval("document.getElementById('record').click()")
    first = browser.eval("livereel.recording.samples[0].frame")
    browser.until("livereel.recording.samples.length > 40")
    browser.eval("document.getElementById('record').click()")
    data = browser.eval(
        "livereel.file.arrayBuffer().then((whole) =>"
        " btoa(Array.from(new Uint8Array(whole), (b) => String.fromCharCode(b)).join('')))"
    )
    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate or 0) == pytest.approx(16, rel=0.01)
    assert len(frames) > 40
    assert [number_of(frame) for frame in frames] == list(range(first, first + len(frames)))


def test_controls_and_words(make_live: MakeLive, browser: Browser) -> None:
    live = make_live(engine=FakeEngine(limit=1), limits=Limits())
    start(browser, live)
    browser.eval("document.getElementById('pause').click()")
    browser.until("document.getElementById('state').innerText === 'paused'")
    time.sleep(0.3)
    count = browser.eval("seen.length")
    time.sleep(0.5)
    assert browser.eval("seen.length") == count
    browser.eval("document.getElementById('pause').click()")
    browser.until(f"seen.length > {count}")
    browser.eval("document.getElementById('dice').click()")
    browser.until("livereel.control")
    browser.eval("document.getElementById('stop').click()")
    browser.until("document.getElementById('state').innerText === 'ended'")
    assert browser.eval("document.getElementById('go').textContent") == "Start"

    browser.eval("globalThis.fetch = () => Promise.reject()")
    write(browser, RED)
    browser.until("document.getElementById('notice').innerText.includes('cannot be reached')")
    assert browser.errors == []


def drag(browser: Browser, *places: tuple[float, float]) -> None:
    """Press on the picture at the first of these places, in shares of it, and let go at the
    last."""
    box = browser.eval(
        "(({left, top, width, height}) => [left, top, width, height])(livereel.steering.frame())"
    )
    points = [(box[0] + x * box[2], box[1] + y * box[3]) for x, y in places]
    kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 2), "mouseReleased"]
    for kind, (x, y) in zip(kinds, points, strict=True):
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
        )


def key(browser: Browser, kind: str, name: str, *, again: bool = False) -> None:
    browser.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, autoRepeat=again)


def test_the_object_is_led_by_pointer_and_keys(live: Live, browser: Browser) -> None:
    start(browser, live)
    assert browser.eval("document.getElementById('lead').hidden") is False
    drag(browser, (0.2, 0.2), (0.3, 0.4), (0.5, 0.625), (0.5, 0.625))  # where the probe looks
    assert browser.eval("livereel.steering.place") == pytest.approx([0.5, 0.625], abs=0.01)
    assert browser.eval("document.getElementById('aim').hidden") is False
    browser.until(LED)
    browser.until("document.getElementById('aim').classList.contains('there')")
    key(browser, "keyDown", "ArrowRight")
    browser.until("livereel.steering.place[0] > 0.8")
    key(browser, "keyUp", "ArrowRight")
    browser.until(FREE)
    drag(browser, (0.5, 0.625), (0.5, 0.625))
    browser.until(LED)
    key(browser, "keyDown", "ArrowUp")
    key(browser, "keyDown", "Escape")
    key(browser, "keyDown", "ArrowUp", again=True)
    browser.until(FREE)
    assert browser.eval("livereel.steering.place") is None
    assert browser.eval("document.getElementById('aim').hidden") is True
    assert in_order(seen(browser))
    assert browser.errors == []


def test_a_new_shot_and_loras(make_live: MakeLive, browser: Browser) -> None:
    engine = FakeEngine(led=False)
    engine._model = replace(engine.model, loras=("ink",))
    asked: list[messages.Control] = []
    control = engine.control

    async def noted(session: str, event: messages.Control) -> None:
        asked.append(event)
        await control(session, event)

    engine.control = noted  # type: ignore[method-assign]
    start(browser, make_live(engine=engine))
    assert browser.eval("document.getElementById('lead').hidden") is True
    browser.eval(
        "{ const slider = document.querySelector('#loras input'); slider.value = 0.5;"
        " slider.dispatchEvent(new Event('change')); }"
    )
    browser.until("livereel.control")
    browser.eval(f"document.getElementById('text').value = '{BLUE}'")
    browser.eval("document.getElementById('shot').click()")
    browser.until(f"{list(color_of(BLUE))}.every((c, i) => Math.abs(seen.at(-1).rgb[i] - c) < 16)")
    update, cut = asked
    assert isinstance(update, messages.Update) and update.loras == {"ink": 0.5}
    assert isinstance(cut, messages.Cut) and cut.prompt == BLUE
    assert browser.errors == []


def test_it_says_that_the_server_is_busy(make_live: MakeLive, browser: Browser) -> None:
    live = make_live(engine=FakeEngine(limit=0))
    browser.open(live.url)
    write(browser, RED)
    browser.until("document.getElementById('notice').innerText.includes('busy')")


def test_it_fits_a_phone(live: Live, browser: Browser) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2,
        mobile=True,
    )  # fmt: skip
    start(browser, live)
    assert browser.eval("document.documentElement.scrollWidth") <= 360


def test_from_a_frames_turn_to_its_pixels(
    live: Live,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Measured and written down, from before it is encoded to when the page has read it back."""
    turns: dict[int, float] = {}
    encode = Stream._encode

    async def noted(stream: Stream, chunk: Any, i: int) -> None:
        turns[chunk.pts + i] = time.time()
        await encode(stream, chunk, i)

    monkeypatch.setattr(Stream, "_encode", noted)
    start(browser, live)
    browser.until("seen.length > 120", 30)
    frames = seen(browser)
    assert in_order(frames)
    waits = [frame["at"] - 1000 * turns[frame["number"]] for frame in frames]
    p50, p95 = np.percentile(waits, [50, 95])
    record_property("latency_p50_ms", round(p50, 1))
    record_property("latency_p95_ms", round(p95, 1))
    print(f"from a frame's turn to its pixels: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    assert 0 < p50 <= p95
