"""What is measured: a model, loaded or of random weights, and the recipe and size it streams at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from livereel.engine import Engine, memory
from livereel.engine.checkpoint.load import load_component
from livereel.engine.controls import check_steps
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.layers.linear_fp8 import convert_linears
from livereel.engine.layers.road import pick_road
from livereel.engine.runners.torch import FP8, TorchRunner, pick_device, pick_dtype
from livereel.engine.types import ClipTransformer, LoadedVAE
from livereel.kernels.to_pixels import to_pixels_reference

from . import models
from .count import latent_size
from .random_weights import RandomText, parameters, random_parts, tiny_decoder

if TYPE_CHECKING:
    from livereel.engine.config import StreamConfig
    from livereel.engine.text.encoder import TextEncoder

    from .models import Model

PROMPT = "a large red circle moving right on a white background"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded model; `stream` has the size, window and chunk that were asked for."""

    name: str
    model: Model
    runner: TorchRunner
    stream: StreamConfig
    steps: int
    vae: Callable[[], nn.Module]
    """Gives the VAE in plain torch, under diffusers' names."""
    decoder: str = "full"
    random: bool = False
    fp8: bool = False
    prompt: str = PROMPT

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", dtype: str = "auto", decoder: str = "full",
        random: bool = False,
    ) -> Subject:  # fmt: skip
        """`name` is "demo", a model folder, or with `random` weights one of `models.MODELS`.

        Raises `InputError` for a name that is neither, `ResourceError` for want of memory, and what
        `Engine.load` raises.
        """
        model = models.find(name)
        if name in models.MODELS and not random:
            raise InputError(f"{name} has no weights here: add --random-weights or name a folder")
        where = pick_device(device)
        fp8 = dtype == FP8
        if random:
            runner, vae = _random(model, where, pick_dtype(dtype, where), decoder, fp8=fp8)
        else:
            own = {"full": "own", "tiny": "tiny"}[decoder]
            engine = Engine.load(name, device=device, dtype=dtype, decoder=own)
            if not isinstance(engine.runner, TorchRunner):
                raise InputError(f"{name} is a package; bench_runners measures these")
            runner = engine.runner
            vae = partial(
                load_component, engine.folder, "vae", device=runner.device, dtype=runner.dtype
            )
        steps = len(model.stream.timesteps)
        return cls(
            name=name, model=model, runner=runner, stream=model.stream, steps=steps,
            decoder=decoder, random=random, vae=vae, fp8=fp8,
        )  # fmt: skip

    def at(
        self, *, size: tuple[int, int] | None = None, steps: int | None = None,
        window: int | None = None, chunk: int | None = None, first_chunk: int | None = None,
    ) -> Subject:  # fmt: skip
        """The same with other settings; None leaves one as it is.

        Raises `InputError` for a size or number of steps that the model does not make, and for a
        window smaller than its chunk.
        """
        stream = self.stream
        width, height = size or (stream.width, stream.height)
        latent_size(self.runner.transformer, self.runner.vae, (width, height))
        chunk = chunk or stream.chunk_latents
        stream = replace(
            stream, width=width, height=height, chunk_latents=chunk,
            first_chunk_latents=first_chunk or min(chunk, stream.first_chunk_latents),
            window=window or stream.window,
        )  # fmt: skip
        steps = steps or self.steps
        check_steps(steps, stream)
        return replace(self, stream=stream, steps=steps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.stream.width, self.stream.height

    @property
    def guided(self) -> bool:
        """Whether each step takes two forwards."""
        return self.stream.guidance_scale > 1

    @property
    def dtype(self) -> str:
        """What it was loaded in: "fp8" is bfloat16 but for the DiT's large products."""
        return FP8 if self.fp8 else str(self.runner.dtype).removeprefix("torch.")

    @property
    def settings(self) -> str:
        """`bfloat16 on cuda, triton road, CUDA graphs`."""
        runner = self.runner
        graphs = runner.graphs and runner.device.type == "cuda" and runner.denoiser.in_place
        own = f"{self.dtype} on {runner.device}, {runner.road} road"
        return f"{own}, CUDA graphs" if graphs else own

    @property
    def setup(self) -> dict[str, str | int]:
        """What was measured, for a result's JSON."""
        stream = self.stream
        return {
            "model": self.name, "weights": "random" if self.random else "own",
            "width": stream.width, "height": stream.height, "steps": self.steps,
            "window": stream.window, "chunk": stream.chunk_latents,
            "first_chunk": stream.first_chunk_latents, "decoder": self.decoder,
            "dtype": self.dtype,
            "device": self.runner.device.type, "road": self.runner.road,
        }  # fmt: skip

    @property
    def dit(self) -> nn.Module:
        """The DiT in plain torch, under diffusers' names."""
        return cast(nn.Module, self.runner.transformer)

    def text(self, prompt: str) -> Tensor:
        """A prompt's embedding `[1, L, D]`, of random numbers where the weights are."""
        return self.runner.encode_text(prompt, self.stream.max_sequence_length)

    def sync(self) -> None:
        """Wait until the device has done all it was given."""
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize(self.runner.device)


def _random(
    model: Model, device: torch.device, dtype: torch.dtype, decoder: str, *, fp8: bool
) -> tuple[TorchRunner, Callable[[], nn.Module]]:
    road = pick_road("auto", device, dtype)
    wanted = round(1.2 * dtype.itemsize * (parameters(model.transformer) + parameters(model.vae)))
    free = memory.available(str(device))
    if free is not None and wanted > free:
        raise ResourceError(
            f"too little memory: these weights take about {memory.gigabytes(wanted)} and "
            f"{memory.gigabytes(free)} are free"
        )
    dit, vae = random_parts(model, device, dtype)
    transformer = cast(ClipTransformer, dit)
    if fp8:
        convert_linears(dit, keep=transformer.keep_in_bf16, road=road)
    text = cast("TextEncoder", RandomText(device, transformer.text_width))
    runner = TorchRunner.on_road(road, transformer, cast(LoadedVAE, vae), text, device, dtype)
    if decoder == "tiny":
        to_bytes = runner.to_bytes if road == "triton" else to_pixels_reference
        runner = replace(runner, vae=tiny_decoder(runner.vae, device, dtype), to_bytes=to_bytes)
    return runner, lambda: vae
