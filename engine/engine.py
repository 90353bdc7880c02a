"""The library's face: load a model, make clips, open streams.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .checkpoint.folder import DEMO, ModelFolder, open_folder, read_json
from .config import MAX_FRAMES, MAX_GIVEN, MAX_SIDE
from .controls import (
    check_count,
    check_loras,
    check_picture,
    check_prompt,
    check_rate,
    check_seed,
    check_steps,
    frame_count,
)
from .errors import InputError
from .media.reader import read_image
from .memory import shortage_told
from .package import fingerprint, is_package, open_package, read_manifest
from .runners.clips import ClipRequest, encoded
from .runners.loras import Loras
from .runners.packages import load_package
from .runners.torch import FP8, TorchRunner, pick_device, pick_dtype
from .sampling.schedule import steps_left
from .sampling.stream import StreamState
from .session import Session
from .state import load_state
from .types import Video
from .whole_clip import GUIDANCE, STEPS, check_values, whole_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from .config import StreamConfig
    from .media.storyboard import Storyboard
    from .runners.runner import Runner
    from .types import Frames

_STRENGTH = 0.6


@dataclass(frozen=True)
class Engine:
    """A loaded model. Make one with `Engine.load`; it serves any number of sessions in turn."""

    folder: ModelFolder
    runner: Runner
    loras: Loras | None = None

    @classmethod
    @shortage_told()
    def load(
        cls,
        model: str | Path = "demo",
        device: str = "auto",
        dtype: str = "auto",
        provider: str = "auto",
        decoder: str | Path = "own",
        keep_bf16: Collection[str] = (),
    ) -> Engine:
        """Load `model`: "demo", a folder in diffusers' layout (see `livereel convert`), or a
        package that `livereel export` wrote.

        `device` is "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; `dtype` is "auto"
        (bfloat16 where the chip has it), "float32", "bfloat16", "float16" or "fp8": bfloat16 with
        the DiT's large products in fp8 (e4m3), which Hopper and newer GPUs multiply twice as fast;
        `keep_bf16` names further layers, or modules, that shall not be. A package has the dtype
        that it was exported in. `provider` is what onnxruntime runs an ONNX package by:
        "auto" (the device's own), "cpu", "cuda" or "tensorrt". `decoder` is the VAE's "own", or a
        far smaller one of TAEHV's: "tiny", which lies in the folder's `tiny_decoder/`, or the path
        of a .safetensors file.

        Raises `CheckpointError` for a folder that is no model or damaged, `InputError` for an
        unknown device or dtype, `ResourceError` for a device that is not there or has too little
        memory.
        """
        fp8 = dtype == FP8
        if keep_bf16 and not fp8:
            raise InputError(f"keep_bf16 is for dtype {FP8!r}, not for {dtype!r:.40}")
        if is_package(model):
            package = open_package(model)
            if decoder != "own":
                raise InputError(f"{model} is a package, which has its own decoder")
            return cls(package.folder, load_package(package, device, dtype, provider))
        if provider != "auto":
            raise InputError(f"provider {provider!r:.40} is for ONNX packages; {model} is a model")
        picked = pick_device(device)
        folder = open_folder(DEMO if model == "demo" else model)
        runner = TorchRunner.load(
            folder, device=picked, dtype=pick_dtype(dtype, picked), fp8=fp8, keep=keep_bf16
        )
        if decoder != "own":
            tiny = folder.path / "tiny_decoder" if decoder == "tiny" else Path(decoder)
            runner = runner.with_decoder(tiny)
        return cls(folder, runner, None if fp8 else Loras(runner.modules, runner.refresh))

    @shortage_told()
    def load_lora(
        self, path: str | Path, name: str | None = None, *, part: str = "transformer"
    ) -> str:
        """Read a LoRA, a .safetensors file or a folder with one, for `open`, `generate` and
        `Session.update` to use under `name` (by default the path's own); gives the name.

        `part` is "transformer", or "transformer_2" for the DiT of low noise. Raises
        `CheckpointError` for a file that is none or does not fit, `InputError` for a name that is
        taken and for a model that takes none.
        """
        if self.loras is None:
            raise InputError(f"{self.folder.path} takes no LoRAs: graphs, or fp8, hold its weights")
        name = Path(path).stem if name is None else name
        self.loras.load(path, name, part, self.folder.classes)
        return name

    @property
    def config(self) -> StreamConfig:
        """How the model streams."""
        return self.folder.stream

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        """What the DiT and the VAE compute in."""
        return self.runner.dtype

    @property
    def streams(self) -> bool:
        """Whether the model is causal; others make whole clips by `generate` alone."""
        return self.folder.has_recipe

    @property
    def size_step(self) -> int:
        """Width and height in pixels must be multiples of this."""
        return self.runner.vae.spatial_factor * self.runner.transformer.spatial_patch

    def open(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        image: Frames | None = None,
        last_image: Frames | None = None,
        clip: Frames | None = None,
        strength: float | None = None,
        loras: Mapping[str, float] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        pace: bool = False,
        start_frame: int = 0,
    ) -> Session:
        """Open a stream; nothing is computed until it is iterated over.

        `steps` of the model's passes are used (all by default). `image`, uint8 `[H, W, 3]` of the
        stream's size, becomes its first frame; `clip`, `[F, H, W, 3]`, its first frames (the newest
        1 + 4n of them where a latent frame is 4), which it goes on from. With a `strength`, above 0
        and at most 1, the stream is made from frames that are given to `Session.push`, by the last
        `strength` of the steps. `loras` are strengths of those that `load_lora` has read. The
        stream ends after `frames`, or never; a model with `goal_channels` arrives with the last of
        them at the picture `last_image`, uint8 `[H, W, 3]`. `fps` is the rate at which frames are
        due (the model's by default); with `pace` the session does with less when it falls behind
        that rate (see `Session`). `start_frame` is the number of the first frame: a stream that
        goes on where another one ended draws other noise.

        Raises `InputError` for a value out of range, or for a model that makes whole clips only.
        """
        if not self.streams:
            raise InputError(
                f"{self.folder.path} has no livereel.json: it makes whole clips (generate), "
                f"not streams"
            )
        config = self.config
        width, height = self._size(width, height)
        check_prompt(prompt)
        check_seed(seed)
        check_count("start_frame", start_frame, 0, 2**62)
        steps = len(config.timesteps) if steps is None else steps
        check_steps(steps, config)
        given = image[None] if image is not None and clip is None else clip
        if (image is not None) + (clip is not None) + (strength is not None) > 1:
            raise InputError("a stream starts from an image, from a clip or from frames pushed")
        self._check_goal(last_image, frames, fed=strength is not None)
        steps_left(steps, 1.0 if strength is None else strength)
        chunk_frames = config.chunk_latents * self.runner.vae.temporal_factor
        state = StreamState(
            prompt=prompt,
            seed=seed,
            steps=steps,
            width=width,
            height=height,
            noise_offset=-(-start_frame // chunk_frames),
            pts=start_frame,
            given=None if given is None else self._given(given, width, height),
            goal=None if last_image is None else self._given(last_image[None], width, height),
            goal_ahead=(frames or 1) - 1,
            strength=1.0 if strength is None else strength,
            loras=dict(loras or {}),
        )
        return self._session(state, fps, frames, pace, fed=strength is not None)

    def play(
        self,
        storyboard: Storyboard,
        *,
        seed: int = 0,
        steps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        loras: Mapping[str, float] | None = None,
        fps: float | None = None,
        pace: bool = False,
    ) -> Session:
        """Open a stream of a storyboard's shots; it ends with the last one.

        Cuts land on the frame that the lengths before them give, at `fps` frames a second; a shot
        that blends in does so with the first chunk from there on. Other controls may come between.
        Raises `InputError` as `open` does, and for pictures that cannot be read.
        """
        rate = self.config.fps if fps is None else fps
        check_rate(rate)
        width, height = self._size(width, height)
        first, *later = storyboard.shots
        starts = storyboard.starts(rate)
        pictures = [
            None if shot.image is None else read_image(shot.image, width, height)
            for shot in storyboard.shots
        ]
        session = self.open(
            first.prompt, seed=seed, steps=steps, width=width, height=height, image=pictures[0],
            loras=loras, frames=starts[-1], fps=rate, pace=pace,
        )  # fmt: skip
        for shot, picture, start in zip(later, pictures[1:], starts[1:], strict=False):
            if shot.cut:
                session.cut(shot.prompt, image=picture, at=start)
            else:
                session.update(prompt=shot.prompt, recache=True, at=start)
        return session

    def restore(
        self,
        snapshot: bytes,
        *,
        frames: int | None = None,
        fps: float | None = None,
        pace: bool = False,
        strength: float | None = None,
        loras: Mapping[str, float] | None = None,
    ) -> Session:
        """Go on from `Session.snapshot`, bitwise if it was exact, closely if it was light.

        A session that is to be fed frames wants a `strength`, and one that used LoRAs `loras`, as
        in `open`.
        Snapshots may come from strangers: a restored session costs no more than `open` at its size
        does. Raises `InputError` for bytes that are no snapshot, damaged, or of another model.
        """
        state, tensors, light = load_state(
            snapshot, model=self._fingerprint, layout=self.runner.layout
        )
        self._size(state.width, state.height)
        if strength is not None:
            steps_left(1, strength)
            state.strength = strength
        state.loras = dict(loras or {})
        session = self._session(state, fps, frames, pace, fed=strength is not None)
        session.adopt(tensors, light=light)
        return session

    def generate(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        image: Frames | None = None,
        last_image: Frames | None = None,
        clip: Frames | None = None,
        video: Frames | None = None,
        strength: float = _STRENGTH,
        loras: Mapping[str, float] | None = None,
        fps: float | None = None,
        negative_prompt: str = "",
        guidance_scale: float = GUIDANCE,
        low_noise_guidance_scale: float | None = None,
        tile: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Video:
        """A clip of `frames`, or of `round(seconds * fps)` frames (5 s when neither is given).

        Causal models stream it; others denoise it as a whole, by the schedule of their folder's
        `scheduler/`, with `negative_prompt` and `guidance_scale` (which only they use; 50 steps by
        default). A model of two DiTs may have a `low_noise_guidance_scale` for the second. `image`
        and `last_image`, uint8 `[H, W, 3]` of the clip's size, are its first and last frames, for
        models that take such; a stream goes on from a `clip`, `[F, H, W, 3]`, as `open` does.
        `video`, `[F, H, W, 3]`, is changed by the last `strength` of the steps; the result has as
        many frames as it, unless told otherwise, and no more. With `tile` a whole clip goes through
        the VAE in tiles, their seams blended, which takes less memory. `progress(done, total)` is
        called as work gets done: frames of a stream; of a whole clip the steps, and then the parts
        that it is decoded in. Raises `InputError` for a value out of range, `ResourceError` when
        memory runs out.
        """
        tell = progress or (lambda done, total: None)
        rate = self.config.fps if fps is None else fps
        if video is not None and seconds is None and frames is None:
            frames = len(video)
        count = frame_count(seconds, frames, rate)
        if video is not None and len(video) < count:
            raise InputError(f"{count} frames are wanted of a video that has {len(video)}")
        if self.streams:
            if tile:
                raise InputError("a stream is not decoded in tiles; leave tile out")
            session = self.open(
                prompt, seed=seed, steps=steps, width=width, height=height, image=image, clip=clip,
                last_image=last_image, strength=None if video is None else strength, loras=loras,
                frames=count, fps=rate,
            )  # fmt: skip
            chunks = []
            for chunk in session if video is None else session.through(video[:count]):
                chunks.append(chunk)
                tell(sum(len(chunk.frames) for chunk in chunks), count)
            pixels = np.concatenate([chunk.frames for chunk in chunks])
            return Video(frames=pixels, fps=rate, stats=tuple(chunk.stats for chunk in chunks))
        if clip is not None:
            raise InputError("this model makes whole clips; only a stream goes on from a clip")
        width, height = self._size(width, height)
        low = guidance_scale if low_noise_guidance_scale is None else low_noise_guidance_scale
        request = ClipRequest(
            prompt=prompt, negative=negative_prompt, frames=count, height=height, width=width,
            seed=seed, steps=STEPS if steps is None else steps, guidance=(guidance_scale, low),
            image=image, last_image=last_image, video=None if video is None else video[:count],
            strength=strength, text_length=self.config.max_sequence_length, tile=tile,
        )  # fmt: skip
        check_values(request)
        check_loras(self.loras, loras or {})
        if self.loras is not None:
            self.loras.use(loras or {})
        scheduler = read_json(self.folder.path / "scheduler" / "scheduler_config.json")
        pixels = whole_clip(
            self.runner, request, scheduler, clean_start=self.folder.clean_start, tell=tell
        )
        return Video(frames=pixels, fps=rate)

    @shortage_told()
    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to latents `[B, C, T, h, w]` (the posterior's mean,
        un-normalized, fp32), as diffusers' `vae.encode(...).latent_dist.mode()` gives. Raises
        `InputError` for another shape or number of frames."""
        return self.runner.vae.encode(self.runner.ready(frames))[0].float()

    @shortage_told()
    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalized latents `[B, C, T, h, w]` to fp32 frames `[B, 3, F, H, W]` in [-1, 1], as
        diffusers' `vae.decode(...).sample` gives. Raises `InputError` for another shape."""
        return self.runner.vae.decode(self.runner.ready(latents))[0].float()

    def _session(
        self, state: StreamState, fps: float | None, frames: int | None, pace: bool, *, fed: bool
    ) -> Session:
        rate = self.config.fps if fps is None else fps
        check_rate(rate)
        check_count("frames", frames, 1, MAX_FRAMES)
        check_loras(self.loras, state.loras)
        model = self._fingerprint
        return Session(
            self.runner, self.config, state, model=model, fps=rate, frames=frames, pace=pace,
            fed=fed, loras=self.loras,
        )  # fmt: skip

    def _check_goal(self, last_image: Frames | None, frames: int | None, *, fed: bool) -> None:
        """Raise `InputError` for a last picture where there can be none."""
        if last_image is None:
            return
        if not self.config.goal_channels:
            raise InputError("this model's streams arrive at no picture; leave the last_image out")
        if frames is None:
            raise InputError("a last_image wants a number of frames that the stream ends after")
        if fed:
            raise InputError(
                "a stream that is fed frames ends with these; leave the last_image out"
            )

    @shortage_told()
    @torch.inference_mode()
    def _given(self, clip: Frames, width: int, height: int) -> Tensor:
        """Latents of the frames that a stream starts from, or of the one that it arrives at."""
        check_picture(clip, width, height)
        factor = self.runner.vae.temporal_factor
        latents = (len(clip) - 1) // factor + 1
        if latents > MAX_GIVEN:
            most = (MAX_GIVEN - 1) * factor + 1
            raise InputError(f"a stream starts from at most {most} frames, got {len(clip)}")
        return torch.cat(list(encoded(self.runner, clip[-1 - (latents - 1) * factor :])), dim=2)

    def _size(self, width: int | None, height: int | None) -> tuple[int, int]:
        width = self.config.width if width is None else width
        height = self.config.height if height is None else height
        own = (self.config.width, self.config.height)
        if self.folder.exported and (width, height) != own:
            raise InputError(
                f"this package makes pictures of {own[0]}x{own[1]}, not of {width}x{height}; "
                f"livereel export --size writes one that does"
            )
        step = self.size_step
        for name, value in (("width", width), ("height", height)):
            check_count(name, value, step, MAX_SIDE)
            if value % step:
                near = value // step * step
                raise InputError(
                    f"{name} is {value}; it must be a multiple of {step}, such as {near or step} "
                    f"or {near + step}"
                )
        return width, height

    @cached_property
    def _fingerprint(self) -> str:
        """Keeps snapshots of different models apart."""
        path = self.folder.path
        return read_manifest(path).fingerprint if self.folder.exported else fingerprint(path)
