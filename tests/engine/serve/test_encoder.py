"""Frames to H.264: one packet a frame, keyframes on demand, history for those who come late."""

from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from livereel.engine.errors import InputError
from livereel.engine.serve.encoder import LEVELS, Encoder, Packet, Rendition
from livereel.engine.serve.fake import draw, number_of

FPS = 16.0


def decode(packets: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    return [
        frame.to_ndarray(format="rgb24")
        for data in packets
        for frame in decoder.decode(av.Packet(data))
    ]


def feed(rendition: Rendition, count: int, first: int = 0) -> list[Packet | None]:
    frames = draw("a red circle", first, count, 128, 96)
    return [
        rendition.encode(pixels, frame=first + i, chunk=0, pts=int((first + i) / FPS * 1e6))
        for i, pixels in enumerate(frames)
    ]


def test_each_frame_gives_its_packet_at_once() -> None:
    encoder = Encoder(128, 96, FPS, LEVELS[0])
    packets = [encoder.encode(pixels) for pixels in draw("a red circle", 0, 20, 128, 96)]
    assert all(packets)
    assert [number_of(frame) for frame in decode(packets)] == list(range(20))


def test_colors_survive() -> None:
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:] = (200, 60, 30)
    (seen,) = decode([Encoder(128, 96, FPS, LEVELS[0]).encode(pixels)])
    assert np.abs(seen.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("size", [(127, 95), (130, 98)])
def test_odd_sides_lose_a_row(size: tuple[int, int]) -> None:
    encoder = Encoder(*size, FPS, LEVELS[0])
    (seen,) = decode([encoder.encode(np.zeros((size[1], size[0], 3), np.uint8))])
    assert seen.shape == (size[1] // 2 * 2, size[0] // 2 * 2, 3)


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(InputError, match="codec is 'x'"):
        Encoder(64, 64, FPS, LEVELS[0], codec="x")


def test_keyframes_come_on_demand_and_every_two_seconds() -> None:
    rendition = Rendition(128, 96, FPS, LEVELS[0])
    packets = feed(rendition, 10)
    rendition.want_keyframe()
    packets += feed(rendition, 50, first=10)
    keys = [packet.frame for packet in packets if packet is not None and packet.keyframe]
    assert keys == [0, 10, 42]
    # Each can be decoded by itself, and what follows it too.
    tail = [packet.data for packet in packets[10:] if packet is not None]
    assert [number_of(frame) for frame in decode(tail)] == list(range(10, 60))


def test_lower_levels_send_fewer_and_smaller_frames() -> None:
    for level in LEVELS:
        packets = feed(Rendition(128, 128, FPS, level), 16)
        sent = [packet for packet in packets if packet is not None]
        assert len(sent) == 16 // level.every
        assert sum(packet.span for packet in sent) == 16
        shape = decode([sent[0].data])[0].shape
        assert shape == (128 // level.shrink, 128 // level.shrink, 3)


def test_a_late_viewer_gets_the_newest_picture_at_once() -> None:
    rendition = Rendition(128, 96, FPS, LEVELS[0])
    feed(rendition, 40)
    packets = rendition.latest()
    assert packets[0].keyframe
    assert packets[-1].frame == 39
    assert number_of(decode([packet.data for packet in packets])[-1]) == 39


def test_a_viewer_that_comes_back_gets_what_follows() -> None:
    rendition = Rendition(128, 96, FPS, LEVELS[0])
    feed(rendition, 70)
    packets = rendition.since(50)
    assert packets[0].keyframe and packets[0].frame <= 50
    assert [packet.frame for packet in packets] == list(range(packets[0].frame, 70))


def test_history_is_bounded_and_begins_with_a_keyframe() -> None:
    rendition = Rendition(128, 96, FPS, LEVELS[0])
    feed(rendition, 500)
    kept = rendition.since(0)
    assert kept[0].keyframe
    assert 12 * FPS <= len(kept) <= 15 * FPS
