"""LiveReel as an application of Ray Serve: a front that people talk to, and engines behind it.

    serve run livereel.engine.serve.ray_app:build model=demo max_replicas=4

or `livereel serve --ray`. The front is the server as it runs on one machine, before a `RayEngine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    HTTPOptions,
    RequestRouterConfig,
)

from ..errors import ResourceError
from . import heap, logs
from .app import Server, make_app
from .engine_process import EngineProcess
from .limits import Limits
from .ray_batch import clips_of
from .ray_engine import RayEngine
from .ray_replica import Replica
from .ray_router import SessionPolicy, SessionRouter
from .security import Guard
from .worker import Setup

if TYPE_CHECKING:
    from ..orders import Order, Step

NAME = "livereel"
KEY = "LIVEREEL_API_KEY"
_CALLS = 4096
"""Calls that a replica takes at once: the engine says itself how many sessions it takes."""
_GRACE_S = 60.0
"""An engine gives up a stream so much later than the front should have."""
_BEAT_S = 0.5
_LEAVE_S = 10.0
"""A replica that is taken away ends its sessions in so many seconds."""
_QUIET = {"enable_access_log": False}
_LOCAL: dict[str, Any] = {"include_dashboard": False}


class Settings(BaseModel):
    """What `build` is given, on the command line or in Serve's config file. The API key comes from
    the environment of the front's node, `LIVEREEL_API_KEY`."""

    model_config = ConfigDict(extra="forbid")

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    min_replicas: int = Field(1, ge=1, le=1024)
    max_replicas: int = Field(1, ge=1, le=1024)
    sessions_each: float = Field(4.0, gt=0, le=1024)
    """Sessions for which a replica is kept."""
    cpus_each: float = Field(1.0, ge=0)
    gpus_each: float | None = Field(None, ge=0)
    """One, unless told otherwise, where the cluster has any and `device` is not "cpu"."""
    upscale_delay_s: float = Field(5.0, ge=0)
    downscale_delay_s: float = Field(120.0, ge=0)
    sessions: int = Field(64, ge=1, le=1024)
    """Streams at most."""
    idle_s: float = Field(30.0, gt=0)
    lifetime_s: float = Field(6 * 3600.0, gt=0)
    loras: list[str] = []
    host: str = "127.0.0.1"
    allow_host: list[str] = []
    allow_origin: list[str] = []
    state: str | None = None
    fake: tuple[float, float, int] | None = None
    """As `Setup.fake`."""


class Engines(Replica):
    """A replica: an engine's process and the sessions on it."""

    async def __init__(self, setup: Setup) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.to_stderr()
        super().__init__(EngineProcess(setup), serve.get_replica_context().replica_id.unique_id)
        await self.start()
        self._watch = asyncio.create_task(self._leave_when_taken_away())

    async def _leave_when_taken_away(self) -> None:
        """Serve says nothing to a replica that is to go before all calls to it are over. But calls
        for it go to others then, its own too."""
        context, known = serve.get_replica_context(), False
        calls = serve.get_deployment_handle(context.deployment, context.app_name)
        own = calls.options(method_name="name", session_id=context.replica_id.unique_id)
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(Exception):  # of Ray's many; it is asked again
                here = await asyncio.wait_for(own.remote(), _LEAVE_S) == await self.name()
                if known and not here:
                    break
                known = known or here
        await self.leave(_LEAVE_S)


@serve.ingress()
class Front:
    """The page, the API and the streams; frames come from `engines`."""

    def __init__(self, engines: Any, settings: Settings, key: str | None) -> None:
        logs.to_stderr()
        heap.keep_compact()
        guard = Guard(
            host=settings.host,
            key=key or os.environ.get(KEY) or None,
            hosts=frozenset(settings.allow_host),
            origins=frozenset(settings.allow_origin),
        )
        self._passing = tempfile.TemporaryDirectory(prefix="livereel-")
        self._server = Server(
            engine=RayEngine(engines),
            guard=guard,
            folder=Path(settings.state or self._passing.name),
            limits=Limits(streams=settings.sessions, lease_s=settings.idle_s),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = make_app(self._server)
        app.router.lifespan_context = self._live
        return app

    @contextlib.asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        await self._server.start()
        yield
        await self._server.stop()

    async def drain(self) -> None:
        """Tell all who watch how to go on, and end the streams."""
        await self._server.drain()


def engines(settings: Settings) -> serve.Application:
    """The engines alone, to be called by a `RayEngine`."""
    setup = Setup(
        model=settings.model,
        device=settings.device,
        dtype=settings.dtype,
        sessions=settings.sessions,
        idle_s=settings.idle_s + _GRACE_S,
        lifetime_s=settings.lifetime_s,
        loras=tuple(settings.loras),
        fake=settings.fake,
    )
    gpus = settings.gpus_each
    if gpus is None:
        gpus = float(settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
    deployment = serve.deployment(
        Engines,
        name="Engines",
        max_ongoing_requests=_CALLS,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=2 * _LEAVE_S,
        graceful_shutdown_wait_loop_s=_BEAT_S,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": settings.cpus_each, "num_gpus": gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            metrics_interval_s=1.0,
            look_back_period_s=3.0,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function=SessionPolicy,
                policy_kwargs={"sessions_each": settings.sessions_each},
            ),
        ),
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
    )
    app: serve.Application = deployment.bind(setup)
    return app


def build(settings: Settings, key: str | None = None) -> serve.Application:
    """The application: the front before its engines."""
    front = serve.deployment(
        Front,
        name="Front",
        num_replicas=1,  # it knows the streams' tokens
        max_ongoing_requests=_CALLS,
        graceful_shutdown_timeout_s=5.0,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": 0},
    )
    app: serve.Application = front.bind(engines(settings), settings, key)
    return app


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Join the cluster of `RAY_ADDRESS`, or start one here that ends with the block. Whether Ray's
    own ports want a token hangs on `RAY_AUTH_MODE` as it was when Ray was imported. Raises
    `ResourceError`."""
    ours = "RAY_ADDRESS" not in os.environ
    try:
        ray.init(namespace=NAME, **_LOCAL if ours else {})
    except Exception as error:  # of many kinds
        raise ResourceError(f"Ray cannot be started or reached: {error}") from error
    try:
        yield
    finally:
        if ours:
            serve.shutdown()
            ray.shutdown()


def _deploy(app: serve.Application, name: str, prefix: str | None) -> Any:
    """Returns its handle when it runs."""
    try:
        return serve.run(app, name=name, route_prefix=prefix)
    except RuntimeError as error:
        raise ResourceError(f"Ray Serve cannot run {name}: {error}") from error


def run(settings: Settings, key: str | None, port: int, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called when the first frame could be made."""
    stop = threading.Event()
    with cluster():
        for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray takes them for itself
            signal.signal(number, lambda *_: stop.set())
        serve.start(http_options=HTTPOptions(host=settings.host, port=port))
        _deploy(build(settings, key), NAME, "/")
        ready()
        stop.wait()
        front = serve.get_deployment_handle("Front", NAME)
        with contextlib.suppress(TimeoutError):
            front.drain.remote().result(timeout_s=Limits().grace_s + 1)
        serve.delete(NAME)


def make_clips(settings: Settings, orders: Sequence[Order]) -> Iterator[Step]:
    """As `batch.make_clips`, on replicas that are there for as long as it takes."""
    name = f"{NAME}-batch-{secrets.token_hex(4)}"
    with cluster():
        serve.start(proxy_location="Disabled")  # where Serve runs already, it stays as it is
        handle = _deploy(engines(settings), name, None)
        try:
            at_once = max(1, round(settings.max_replicas * settings.sessions_each))
            yield from clips_of(RayEngine(handle), orders, min(at_once, len(orders)))
        finally:
            serve.delete(name)


__all__ = ["Engines", "Front", "Settings", "build", "make_clips", "run"]
