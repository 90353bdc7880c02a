"""`/v1/videos`: clips as jobs, in the shape that other clients speak; they survive a restart."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from livereel.engine.serve.fake import FakeEngine
from livereel.engine.serve.limits import Limits

from .conftest import Live, MakeLive

PROMPT = "a red circle moving right"


def finished(live: Live, name: str, status: str = "completed") -> dict[str, Any]:
    for _ in range(200):
        job: dict[str, Any] = live.http.get(f"/v1/videos/{name}").json()
        if job["status"] == status:
            return job
        time.sleep(0.05)
    pytest.fail(f"the clip is {job}")


def fast(**options: Any) -> FakeEngine:
    return FakeEngine(hurry=True, **options)


def test_a_clip_from_order_to_end(make_live: MakeLive) -> None:
    live = make_live(engine=fast())
    ordered = live.http.post("/v1/videos", json={"prompt": PROMPT, "seconds": "2", "model": "x"})
    assert ordered.status_code == 200
    job = ordered.json()
    assert job["object"] == "video"
    assert job["status"] in ("queued", "in_progress")
    assert (job["size"], job["seconds"], job["prompt"]) == ("128x128", "2", PROMPT)
    done = finished(live, job["id"])
    assert done["progress"] == 100
    assert done["completed_at"] >= done["created_at"]
    content = live.http.get(f"/v1/videos/{job['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(content.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 32
    part = live.http.get(f"/v1/videos/{job['id']}/content", headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10
    deleted = live.http.delete(f"/v1/videos/{job['id']}").json()
    assert deleted == {"id": job["id"], "object": "video.deleted", "deleted": True}
    assert live.http.get(f"/v1/videos/{job['id']}").status_code == 404


def test_the_openai_client_orders_waits_and_downloads(make_live: MakeLive) -> None:
    openai = pytest.importorskip("openai")
    live = make_live(engine=fast(), key="sesame sesame")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="sesame sesame") as client:
        ordered = client.videos.create(prompt=PROMPT, seconds="4", size="128x128", model="demo")
        assert ordered.status in ("queued", "in_progress")
        done = client.videos.poll(ordered.id, poll_interval_ms=20)
        assert (done.status, done.progress, done.prompt) == ("completed", 100, PROMPT)
        content = client.videos.download_content(done.id).read()
        with av.open(io.BytesIO(content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 64
        assert [video.id for video in client.videos.list()] == [done.id]
        assert client.videos.delete(done.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(done.id)


def test_a_form_with_a_picture(make_live: MakeLive) -> None:
    live = make_live(engine=fast())
    out = io.BytesIO()
    Image.new("RGB", (200, 100), "green").save(out, "PNG")
    answer = live.http.post(
        "/v1/videos",
        data={"prompt": PROMPT, "seconds": "1", "size": "64x64", "seed": "5"},
        files={"input_reference": ("a.png", out.getvalue(), "image/png")},
    )
    assert answer.status_code == 200, answer.text
    assert finished(live, answer.json()["id"])["size"] == "64x64"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"prompt": ""}, 422),
        ({"prompt": " "}, 400),
        ({"prompt": "x", "seconds": 1e9}, 422),
        ({"prompt": "x", "seconds": 3600}, 400),
        ({"prompt": "x", "seconds": "soon"}, 422),
        ({"prompt": "x", "size": "big"}, 422),
        ({"prompt": "x", "size": "127x127"}, 400),
        ({"prompt": "x", "size": "99984x99984"}, 400),
        ({"prompt": "x", "num_frames": 0}, 422),
        ({"prompt": "x", "seed": -1}, 422),
        ({"prompt": "x", "num_inference_steps": 900}, 400),
        ([], 422),
    ],
)
def test_what_cannot_be_made_is_refused(live: Live, body: Any, status: int) -> None:
    answer = live.http.post("/v1/videos", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_the_list_has_pages(make_live: MakeLive) -> None:
    live = make_live(engine=fast())
    names = [
        live.http.post("/v1/videos", json={"prompt": PROMPT, "num_frames": 1}).json()["id"]
        for _ in range(3)
    ]
    page = live.http.get("/v1/videos", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == names[:0:-1]
    assert page["has_more"] and page["last_id"] == names[1]
    rest = live.http.get("/v1/videos", params={"after": names[1]}).json()
    assert [job["id"] for job in rest["data"]] == names[:1]
    oldest = live.http.get("/v1/videos", params={"order": "asc"}).json()
    assert [job["id"] for job in oldest["data"]] == names


def test_too_many_are_refused(make_live: MakeLive) -> None:
    live = make_live(engine=FakeEngine(chunk_s=5.0), limits=Limits(clips_waiting=1))
    codes = [live.http.post("/v1/videos", json={"prompt": PROMPT}).status_code for _ in range(4)]
    assert codes[0] == 200
    assert 429 in codes
    answer = live.http.post("/v1/videos", json={"prompt": PROMPT})
    assert int(answer.headers["retry-after"]) > 0


def test_clips_survive_a_restart(make_live: MakeLive, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first = make_live(engine=FakeEngine(chunk_s=0.2), folder=folder)
    done = first.http.post("/v1/videos", json={"prompt": PROMPT, "num_frames": 1}).json()["id"]
    finished(first, done)
    cut = first.http.post("/v1/videos", json={"prompt": PROMPT, "seconds": 60}).json()["id"]
    waits = first.http.post("/v1/videos", json={"prompt": PROMPT, "num_frames": 2}).json()["id"]
    finished(first, cut, "in_progress")
    assert first.http.get(f"/v1/videos/{cut}/content").status_code == 409
    first.call(first.server.videos.stop())
    assert not list(folder.rglob("*.part*")), "what was begun is left"
    (folder / "videos" / "video_zzz").mkdir()
    (folder / "videos" / ("video_" + "0" * 24)).mkdir()
    (folder / "videos" / ("video_" + "0" * 24) / "order.json").write_text("{}")

    second = make_live(engine=fast(), folder=folder)
    assert finished(second, done)["status"] == "completed"
    assert second.http.get(f"/v1/videos/{done}/content").status_code == 200
    assert finished(second, cut)["progress"] == 100
    finished(second, waits)


def test_deleting_stops_the_work(make_live: MakeLive) -> None:
    live = make_live(engine=FakeEngine(chunk_s=0.1))
    job = live.http.post("/v1/videos", json={"prompt": PROMPT, "seconds": 500}).json()
    finished(live, job["id"], "in_progress")
    live.http.delete(f"/v1/videos/{job['id']}")
    for _ in range(100):
        if not live.call(live.engine.state()).sessions:
            break
        time.sleep(0.05)
    assert not live.call(live.engine.state()).sessions
    after = live.http.post("/v1/videos", json={"prompt": PROMPT, "num_frames": 1}).json()
    finished(live, after["id"])


def test_an_engine_that_fails_fails_the_clip(make_live: MakeLive) -> None:
    live = make_live(engine=FakeEngine(chunk_s=0.1))
    job = live.http.post("/v1/videos", json={"prompt": PROMPT, "seconds": 500}).json()
    finished(live, job["id"], "in_progress")
    (session,) = live.engine._streams
    live.call(live.engine.fail(session, ends=True))
    failed = finished(live, job["id"], "failed")
    assert failed["error"]["code"] == "failed"
    assert failed["error"]["message"].endswith("of 8000 frames: memory ran out")
