"""A loaded model as the engine's process steps it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..engine import Engine
from ..errors import InputError, ResourceError
from ..memory import available, estimate, gigabytes, shortage_told
from .abreast import Abreast
from .admission import Kind
from .messages import Change, Cut, ModelInfo, Spec, Update

if TYPE_CHECKING:
    from ..session import Session
    from ..types import Chunk, Frames

_MOST = 8
"""Streams that are stepped together."""


class ModelStream:
    """A session of the engine."""

    def __init__(self, session: Session, loras: Mapping[str, float]) -> None:
        self.session, self.fps = session, session.fps
        self.width, self.height = session.size
        self.loras, self._changes = loras, False

    @property
    def chunk(self) -> int:
        """The next chunk's number."""
        return self.session.next_chunk

    @property
    def pts(self) -> int:
        """Its first frame's."""
        return self.session.next_frame

    @property
    def kind(self) -> Kind:
        """What its passes cost hangs on."""
        return Kind(self.width, self.height, self.session.steps)

    @property
    def key(self) -> Hashable:
        """Those of a kind go together, but for their first, smaller chunks; only with the same
        LoRAs, though, which are in the weights, and alone where these are about to change."""
        own = id(self) if self._changes else 0
        return self.kind, self.chunk == 0, frozenset(self.loras.items()), own

    @property
    def ready(self) -> bool:
        """Whether frames enough were pushed, if it is made from such."""
        return self.session.ready

    @property
    def state_bytes(self) -> int:
        """Memory that it holds."""
        return self.session.state_bytes

    def update(self, control: Change) -> None:
        """Queue a control."""
        if isinstance(control, Update):
            self.session.update(
                prompt=control.prompt, seed=control.seed, steps=control.steps,
                recache=control.recache, strength=control.strength, loras=control.loras,
                control=control.control,
            )  # fmt: skip
            if control.loras is not None:
                self.loras, self._changes = control.loras, True
        elif isinstance(control, Cut):
            image = None if control.image is None else _picture(control.image, *self.session.size)
            self.session.cut(control.prompt, image=image)
        else:
            self.session.reset()

    def push(self, frames: bytes) -> None:
        """Give it frames of its size."""
        self.session.push(_pictures(frames, self.width, self.height))

    def next(self) -> Chunk:
        """Its next chunk."""
        chunk = next(self.session)
        self._changes = False
        return chunk

    def snapshot(self, *, light: bool) -> bytes:
        """As `Session.snapshot`."""
        return self.session.snapshot(light=light)

    def close(self) -> None:
        """End the session."""
        self.session.close()


class ModelBackend:
    """Runs a model that streams."""

    def __init__(self, engine: Engine, name: str) -> None:
        """Raises `InputError` for a model that makes whole clips only."""
        if not engine.streams:
            raise InputError(f"{name} makes whole clips, not streams; serve wants one that streams")
        config, factor = engine.config, engine.runner.vae.temporal_factor
        self._engine = engine
        self._abreast = Abreast(
            most=_MOST if engine.device.type == "cpu" else 1, threads=torch.get_num_threads()
        )
        self.model = ModelInfo(
            name=name,
            width=config.width,
            height=config.height,
            fps=config.fps,
            steps=len(config.timesteps),
            size_step=engine.size_step,
            chunk_frames=config.chunk_latents * factor,
            first_chunk_frames=(config.first_chunk_latents - 1) * factor + 1,
            device=str(engine.device),
            dtype=str(engine.dtype).removeprefix("torch."),
            loras=() if engine.loras is None else engine.loras.names,
            control=config.control_channels > 0,
            control_wraps=config.control_wraps,
        )

    @classmethod
    def load(cls, model: str, device: str, dtype: str, loras: Sequence[str] = ()) -> ModelBackend:
        """As `Engine.load` and `Engine.load_lora`."""
        engine = Engine.load(model, device, dtype)
        for path in loras:
            engine.load_lora(path)
        return cls(engine, Path(model).name)

    def check(self, spec: Spec) -> None:
        """Raise `ResourceError` where memory does not suffice for the session's size."""
        engine = self._engine
        if spec.snapshot is not None:
            return
        width, height = spec.width or self.model.width, spec.height or self.model.height
        need = estimate(engine.folder, width=width, height=height, dtype=self.model.dtype)
        wanted = need.kv_ring + need.conv_caches + need.activations
        free = available("cpu" if engine.device.type == "cpu" else str(engine.device))
        if free is not None and wanted > free:
            raise ResourceError(
                f"the session would need about {gigabytes(wanted)} at {width}x{height}; "
                f"{gigabytes(free)} are free"
            )

    def open(self, spec: Spec, *, chunk: int | None, pts: int | None) -> ModelStream:
        """Open or restore a session."""
        engine = self._engine
        if spec.snapshot is not None:
            session = engine.restore(
                spec.snapshot, fps=spec.fps, pace=spec.pace, strength=spec.strength,
                loras=spec.loras,
            )  # fmt: skip
        else:
            width, height = spec.width or self.model.width, spec.height or self.model.height
            image = None if spec.image is None else _picture(spec.image, width, height)
            session = engine.open(
                spec.prompt or "", seed=spec.seed, steps=spec.steps, width=width, height=height,
                fps=spec.fps, pace=spec.pace, image=image, strength=spec.strength,
                loras=spec.loras,
            )  # fmt: skip
        session.renumber(
            chunk=session.next_chunk if chunk is None else chunk,
            frame=session.next_frame if pts is None else pts,
        )
        return ModelStream(session, spec.loras or {})

    @property
    def most(self) -> int:
        """As many as there are threads, on a CPU; a GPU steps one stream after the other."""
        return self._abreast.most

    def step(self, streams: Sequence[ModelStream]) -> list[Chunk | Exception]:
        """The next chunk of each."""
        loras = self._engine.loras
        if len(streams) > 1 and loras is not None:
            try:  # once: threads that each find them missing would change weights at the same time
                with shortage_told():
                    loras.use(streams[0].loras)
            except ResourceError as error:
                return [error for _ in streams]
        return self._abreast.run([stream.next for stream in streams])


def _picture(data: bytes, width: int, height: int) -> Frames:
    if len(data) != width * height * 3:
        raise InputError(
            f"the image has {len(data)} bytes; wanted {width * height * 3}, "
            f"RGB of {width}x{height} pixels"
        )
    picture: Frames = _pictures(data, width, height)[0].copy()
    return picture


def _pictures(data: bytes, width: int, height: int) -> Frames:
    if len(data) % (width * height * 3):
        raise InputError(f"{len(data)} bytes are no frames of {width}x{height} pixels in RGB")
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
