"""The socket's frames: what they hold, what is refused, and the files that describe them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livereel.engine.serve import protocol, schema
from livereel.engine.serve.protocol import Flag, Header

CONTROLS = [
    protocol.Create(event_id="a", prompt="a red circle", seed=3, steps=2, width=64, height=64),
    protocol.Create(event_id="a", resume="token", last_frame=7, pending=("x", "y")),
    protocol.Update(event_id="b", prompt="a blue star", recache=True),
    protocol.Update(event_id="b", strength=0.5, loras={"warm": -0.5}),
    protocol.Update(event_id="b", control=((0.25, 0.5), None, (1.0, 0.0))),
    protocol.Update(event_id="b", control=()),
    protocol.Cut(event_id="b", prompt="a blue star", image="token"),
    protocol.NewSeed(event_id="c", seed=9),
    protocol.Pause(event_id="d"),
    protocol.Resume(event_id="e"),
    protocol.Reset(event_id="f"),
    protocol.Stop(event_id="g"),
    protocol.Ack(frame=12, decode_queue=1),
]
ANSWERS = [
    protocol.Applied(event_id="a", chunk=1, first_frame=13),
    protocol.Rejected(event_id="a", code="invalid", message="no"),
    protocol.DeadlineMissed(chunk=1, late_s=0.5),
    protocol.Recovered(chunk=3, next_frame=30),
    protocol.Draining(resume_token=None, grace_s=10),
    protocol.Ended(reason="stopped", frames=30),
    protocol.Error(code="busy", message="no", retryable=True, retry_after_s=1),
]


@pytest.mark.parametrize("message", CONTROLS)
def test_client_messages_come_back(message: protocol.ClientMessage) -> None:
    assert protocol.decode_client(protocol.encode(message)) == message


@pytest.mark.parametrize("message", ANSWERS)
def test_server_messages_come_back(message: protocol.ServerMessage) -> None:
    assert protocol.decode_server(protocol.encode(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type":"session.pause"}',
        '{"type":"session.pause","event_id":"a b"}',
        '{"type":"session.pause","event_id":"' + "a" * 65 + '"}',
        '{"type":"session.pause","event_id":"a","more":1}',
        '{"type":"session.seed","event_id":"a","seed":-1}',
        '{"type":"session.seed","event_id":"a","seed":1e99}',
        '{"type":"session.update","event_id":"a","prompt":""}',
        '{"type":"session.create","event_id":"a","prompt":"x","width":99999}',
        '{"type":"session.create","event_id":"a","prompt":"x","fps":0}',
        '{"type":"session.create","event_id":"a","prompt":"x","strength":0}',
        '{"type":"session.update","event_id":"a","loras":{"":1}}',
        '{"type":"session.update","event_id":"a","loras":{"x":101}}',
        '{"type":"session.update","event_id":"a","control":[[0.5,1.5]]}',
        '{"type":"session.update","event_id":"a","control":[0.5,0.5]}',
        '{"type":"session.update","event_id":"a","control":[' + "null," * 1024 + "null]}",
        '{"type":"session.create","event_id":"a","image":"../../etc/passwd"}',
        '{"type":"session.ended","reason":"x","frames":1}',
    ],
)
def test_what_breaks_the_rules_is_refused(text: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        protocol.decode_client(text)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        protocol.decode_client(data)
    except (msgspec.MsgspecError, RecursionError):
        return


@given(
    st.integers(0, 7), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1),
    st.binary(max_size=50),
)  # fmt: skip
def test_headers_come_back(
    flags: int, stream: int, chunk: int, frame: int, pts: int, span: int, payload: bytes
) -> None:
    header = Header(flags=flags, stream=stream, chunk=chunk, frame=frame, pts=pts, span=span)
    data = header.pack(payload)
    assert len(data) == protocol.HEADER_BYTES + len(payload) == 32 + len(payload)
    assert protocol.unpack(data) == (header, payload)


def test_header_is_what_the_page_reads() -> None:
    header = Header(flags=int(Flag.KEYFRAME | Flag.GAP), stream=2, chunk=3, frame=4, pts=5, span=6)
    assert header.pack(b"xyz").hex(" ") == (
        "01 05 06 00 02 00 00 00 03 00 00 00 03 00 00 00 "
        "04 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 78 79 7a"
    )


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33)])
def test_frames_of_another_length_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        protocol.unpack(data)


def test_files_say_what_the_types_say() -> None:
    """If this fails, run python -m livereel.engine.serve.schema."""
    for path, text in schema.files().items():
        assert json.loads(path.read_text("utf-8")) == json.loads(text), path.name


def test_asyncapi_refers_to_what_is_there() -> None:
    document = schema.asyncapi()
    text = json.dumps(document)
    for part in text.split('"$ref": "#/')[1:]:
        place = document
        for name in part.partition('"')[0].split("/"):
            place = place[name]
    assert {"session.create", "event.applied", "frame"} <= set(document["components"]["messages"])
