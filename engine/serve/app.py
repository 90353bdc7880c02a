"""The server's HTTP side: the page, health, metrics, uploads, and the routes of others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Form, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket

from .. import __version__
from ..errors import InputError, LiveReelError
from . import images, protocol, socket
from .gate import Gate
from .images import Images
from .limits import Limits
from .metrics import Metrics
from .security import COOKIE, Guard, cookie_of
from .streams import Streams
from .videos import Videos
from .videos_api import add_videos
from .worker_client import Busy

if TYPE_CHECKING:
    from .worker_client import EngineClient

PAGE = Path(__file__).parent / "page"
_ASSETS = {
    "app.js": "text/javascript",
    "player.js": "text/javascript",
    "mp4.js": "text/javascript",
    "protocol.js": "text/javascript",
    "steering.js": "text/javascript",
    "style.css": "text/css",
}
_WRONG_KEY_S = 0.5
_READY = ("ready", "busy")
_STRICT = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(kw_only=True)
class Server:
    """What the routes work on. `folder` keeps clips, and what streams go on from."""

    engine: EngineClient
    guard: Guard
    folder: Path
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.images = Images(self.limits)
        self.streams = Streams(
            self.engine, self.metrics, self.images, self.limits, self.folder / "streams"
        )
        self.videos = Videos(self.engine, self.limits, self.folder / "videos")

    async def start(self) -> None:
        """Start the engine and all that works in the background."""
        await self.engine.start()
        await self.streams.start()
        await self.videos.start()

    async def drain(self) -> None:
        """Come to an end in good order: from here on not ready, nothing new, streams told."""
        await self.videos.stop()
        await self.streams.drain()

    async def stop(self) -> None:
        """End what still runs."""
        await self.videos.stop()
        await self.streams.stop()
        await self.engine.stop()

    @property
    def ready(self) -> bool:
        """Whether a frame could be made now."""
        return self.engine.health in _READY and not self.streams.draining


class Problem(BaseModel):
    """Why a request failed, in a sentence."""

    code: str
    message: str


class Failure(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


class Health(BaseModel):
    """How the server is."""

    status: str


class ModelCard(BaseModel):
    """What is being served."""

    model: str
    version: str
    width: int
    height: int
    fps: float
    steps: int
    size_step: int
    chunk_frames: int
    loras: list[str]
    control: bool


class Uploaded(BaseModel):
    """A picture that can be named in `session.create` for `expires_s`."""

    id: str
    width: int
    height: int
    expires_s: float


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}


def failure(status: int, code: str, message: str, **headers: str) -> JSONResponse:
    """An answer that is no success."""
    problem = Failure(error=Problem(code=code, message=message))
    return JSONResponse(problem.model_dump(), status, headers=headers)


def make_app(server: Server) -> FastAPI:
    """The ASGI application. Starting and stopping `server` is its owner's business."""
    app = FastAPI(
        title="LiveReel",
        version=__version__,
        description="Live video from trained video-diffusion weights.",
        docs_url=None,
        redoc_url=None,
        responses={401: {"model": Failure}, 403: {"model": Failure}},
    )
    _add_page(app, server)
    _add_health(app, server)
    _add_images(app, server)
    add_videos(app, server)
    _add_errors(app)

    @app.websocket(protocol.PATH)
    async def stream(ws: WebSocket) -> None:
        await socket.serve(ws, server.streams, server.metrics, server.limits)

    app.add_middleware(Gate, guard=server.guard, limits=server.limits, metrics=server.metrics)
    return app


def _add_page(app: FastAPI, server: Server) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_STRICT)

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            return failure(404, "not_found", "there is no such file")
        return FileResponse(PAGE / name, media_type=_ASSETS[name], headers=_STRICT)

    @app.get("/login", include_in_schema=False)
    async def ask() -> HTMLResponse:
        return HTMLResponse((PAGE / "login.html").read_text("utf-8"), headers=_STRICT)

    @app.post("/login", include_in_schema=False)
    async def login(request: Request, key: Annotated[str, Form(max_length=1024)]) -> Response:
        if server.guard.key is not None and not server.guard.opens(key):
            await asyncio.sleep(_WRONG_KEY_S)
            return failure(401, "unauthorized", "the API key is wrong")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            cookie_of(key),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


def _add_health(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """The server answers. Whether it makes frames is `/readyz`'s to say."""
        return Health(status="ok")

    @app.get("/readyz", tags=["health"], responses={503: {"model": Health}})
    async def readyz() -> JSONResponse:
        """200 only when a frame could be made now."""
        status = "draining" if server.streams.draining else server.engine.health
        return JSONResponse({"status": status}, 200 if server.ready else 503)

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model", tags=["streams"])
    async def model() -> ModelCard:
        """What is being served, in the words of `session.created`."""
        info = server.engine.model
        return ModelCard(
            model=info.name, version=__version__, width=info.width, height=info.height,
            fps=info.fps, steps=info.steps, size_step=info.size_step,
            chunk_frames=info.chunk_frames, loras=list(info.loras), control=info.control,
        )  # fmt: skip


def _add_images(app: FastAPI, server: Server) -> None:
    kinds = {f"image/{kind.lower()}": {"schema": {"type": "string", "format": "binary"}}
             for kind in images.FORMATS}  # fmt: skip

    @app.post(
        "/v1/images",
        tags=["streams"],
        status_code=201,
        responses={400: {"model": Failure}, 413: {"model": Failure}},
        openapi_extra={"requestBody": {"required": True, "content": kinds}},
    )
    async def upload(request: Request) -> Uploaded:
        """Upload a picture (PNG, JPEG or WebP, as the body) that a stream can begin with."""
        data = await request.body()
        image = await run_in_threadpool(images.read, data, server.limits)
        return Uploaded(
            id=server.images.add(image),
            width=image.width,
            height=image.height,
            expires_s=server.limits.image_s,
        )


def _add_errors(app: FastAPI) -> None:
    """Each error as a `Failure`, with the status that is its kind's."""

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        wait = str(max(1, round(error.retry_after_s)))
        return failure(429, "busy", str(error), **{"Retry-After": wait})

    @app.exception_handler(images.TooLarge)
    async def too_large(_: Request, error: Exception) -> JSONResponse:
        return failure(413, "too_large", str(error))

    @app.exception_handler(InputError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        return failure(400, "invalid", str(error))

    @app.exception_handler(LiveReelError)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return failure(503, "unavailable", str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the request"
        return failure(422, "malformed", f"{where}: {first['msg']}"[:500])

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return failure(error.status_code, "http", str(error.detail), **(error.headers or {}))


__all__ = ["Server", "make_app"]
