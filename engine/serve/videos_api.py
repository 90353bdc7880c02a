"""`/v1/videos` in the shape that clients of the OpenAI Videos API, SGLang and vLLM-Omni speak."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..config import MAX_FPS, MAX_SIDE, MIN_FPS
from ..errors import InputError
from ..text.cleaning import MAX_CHARACTERS
from . import images, videos
from .protocol import MAX_COUNT

if TYPE_CHECKING:
    from .app import Server
    from .videos import Job

_SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
VideoId = Annotated[str, Path(pattern=r"^video_[0-9a-f]{24}$")]


class CreateVideo(BaseModel):
    """What a clip is made from. Its length is `num_frames`, or `seconds` (5 by default). Fields
    that other servers know and this one does not are not looked at."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    model: Annotated[str, Field(max_length=256)] | None = None
    seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    size: Annotated[str, Field(pattern=_SIZE)] | None = None
    fps: Annotated[float, Field(ge=MIN_FPS, le=MAX_FPS)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0


class VideoError(BaseModel):
    """Why a clip was not made."""

    code: str
    message: str


class VideoJob(BaseModel):
    """A clip: `progress` in percent, times in seconds since 1970."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None
    error: VideoError | None


class VideoList(BaseModel):
    """Clips, the newest first by default."""

    object: Literal["list"] = "list"
    data: list[VideoJob]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A clip that is there no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


def add_videos(app: FastAPI, server: Server) -> None:
    """Add the routes."""
    from .app import FAILURES

    def failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: FAILURES[status] for status in statuses}

    body = CreateVideo.model_json_schema()
    form = {**body, "properties": {**body["properties"], "input_reference": _FILE}}
    kinds = {"application/json": {"schema": body}, "multipart/form-data": {"schema": form}}

    @app.post(
        "/v1/videos",
        tags=["videos"],
        responses=failing(400, 413, 422, 429),
        openapi_extra={"requestBody": {"required": True, "content": kinds}},
    )
    async def create(request: Request) -> VideoJob:
        """Order a clip, from a form, with a first picture as `input_reference`, or from JSON."""
        asked, picture = await _read(request)
        order = _order(asked, server, image=picture is not None)
        image = None
        if picture is not None:
            loaded = await run_in_threadpool(images.read, picture, server.limits)
            fitted = images.Picture(loaded, 0.0)
            image = await run_in_threadpool(fitted.fit, order.width, order.height)
        return _shown(server.videos.create(order, image))

    @app.get("/v1/videos", tags=["videos"], responses=failing(404, 422))
    async def listing(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(pattern=r"^video_[0-9a-f]{24}$")] = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """The clips behind `after`, at most `limit`."""
        jobs = server.videos.list()
        if order == "asc":
            jobs.reverse()
        if after is not None:
            places = [i for i, job in enumerate(jobs) if job.id == after]
            if not places:
                raise HTTPException(404, "there is no such video")
            jobs = jobs[places[0] + 1 :]
        shown = [_shown(job) for job in jobs[:limit]]
        return VideoList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(jobs) > limit,
        )

    @app.get("/v1/videos/{video_id}", tags=["videos"], responses=failing(404, 422))
    async def get(video_id: VideoId) -> VideoJob:
        """How far a clip is."""
        return _shown(_find(server, video_id))

    @app.get(
        "/v1/videos/{video_id}/content",
        tags=["videos"],
        response_class=FileResponse,
        responses={**failing(404, 409, 422), 200: {"content": {"video/mp4": {}}}},
    )
    async def content(video_id: VideoId) -> FileResponse:
        """A finished clip as MP4."""
        job = _find(server, video_id)
        if job.status != "completed":
            raise HTTPException(409, f"the video is {job.status}")
        return FileResponse(
            server.videos.content(video_id), media_type="video/mp4", filename=f"{video_id}.mp4"
        )

    @app.delete("/v1/videos/{video_id}", tags=["videos"], responses=failing(404, 422))
    async def delete(video_id: VideoId) -> VideoDeleted:
        """Forget a clip, or stop making it."""
        _find(server, video_id)
        await server.videos.delete(video_id)
        return VideoDeleted(id=video_id)


_FILE = {"type": "string", "format": "binary", "description": "a PNG, JPEG or WebP picture"}


async def _read(request: Request) -> tuple[CreateVideo, bytes | None]:
    """The order and, if there is one, the picture. The body's size was checked before (`gate`)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    picture = None
    fields: Any
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=32) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            file = form.get("input_reference")
            if isinstance(file, UploadFile):
                picture = await file.read()
    else:
        try:
            fields = msgspec.json.decode(await request.body())
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise InputError("the body is neither a form nor JSON") from error
    try:
        return CreateVideo.model_validate(fields), picture
    except ValidationError as error:
        raise RequestValidationError(
            [{**found, "loc": ("body", *found["loc"])} for found in error.errors()]
        ) from error


def _order(asked: CreateVideo, server: Server, *, image: bool) -> videos.Order:
    """What is to be made. Raises `InputError` for what the model cannot do."""
    info = server.engine.model
    size = asked.size or f"{info.width}x{info.height}"
    width, height = (int(side) for side in re.split("x", size))
    step = info.size_step
    if width % step or height % step or max(width, height) > MAX_SIDE:
        raise InputError(f"size is {size}; wanted multiples of {step}, at most {MAX_SIDE}")
    if not asked.prompt.strip():
        raise InputError("the prompt is empty; say in a sentence what to show")
    if asked.num_inference_steps is not None and asked.num_inference_steps > info.steps:
        raise InputError(
            f"num_inference_steps is {asked.num_inference_steps}; wanted 1 to {info.steps}"
        )
    fps = asked.fps or info.fps
    seconds = 5.0 if asked.seconds is None else asked.seconds
    frames = round(seconds * fps) if asked.num_frames is None else asked.num_frames
    longest = server.limits.clip_s
    if not 1 <= frames <= longest * fps:
        raise InputError(
            f"the clip would have {frames} frames; wanted 1 to {int(longest * fps)} at {fps:g} fps"
        )
    job = videos.Job(
        id=videos.new_id(),
        model=info.name,
        prompt=asked.prompt,
        size=size,
        seconds=f"{frames / fps:g}",
        created_at=int(time.time()),
    )
    return videos.Order(
        job=job,
        prompt=asked.prompt,
        seed=asked.seed,
        steps=asked.num_inference_steps,
        width=width,
        height=height,
        fps=fps,
        frames=frames,
        image=image,
    )


def _find(server: Server, name: str) -> Job:
    job = server.videos.get(name)
    if job is None:
        raise HTTPException(404, "there is no such video")
    return job


def _shown(job: Job) -> VideoJob:
    return VideoJob.model_validate(msgspec.to_builtins(job))
