"""diffusers on the subject's own weights: its pipeline makes a whole clip, of the window's length.

A clip of as many latent frames as a stream's chunk sees, in as many steps as a chunk is given, is
the nearest that diffusers has to the stream: the same span of attention and the same forwards for
each frame, but for the stream's cache pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from livereel.engine.errors import InputError
from livereel.engine.layers.layout import channels_last

from .report import Contents

if TYPE_CHECKING:
    from livereel.engine.types import Frames

    from .models import Part
    from .subject import Subject


@dataclass(frozen=True)
class Family:
    """A transformer's pipeline, and its scheduler with what that is made with."""

    pipeline: str
    scheduler: str


FAMILIES = {
    "WanTransformer3DModel": Family("WanPipeline", "FlowMatchEulerDiscreteScheduler"),
    "CogVideoXTransformer3DModel": Family("CogVideoXPipeline", "CogVideoXDDIMScheduler"),
}


def diffusers() -> Any:
    """The library, which is untyped; `InputError` where it is not installed."""
    try:
        library = import_module("diffusers")
        import_module("accelerate")
    except ImportError as error:
        raise InputError(
            "this baseline needs diffusers: pip install diffusers accelerate"
        ) from error
    library.utils.logging.set_verbosity_error()
    return library


def part(described: Part, weights: nn.Module) -> Any:
    """diffusers' module of that config over the tensors of `weights`, which are shared."""
    library = diffusers()
    cls = getattr(library, described.class_name)
    # On meta but for tables of positions, which no file holds.
    with import_module("accelerate").init_empty_weights(include_buffers=False):
        module = cls.from_config(dict(described.config))
    module.load_state_dict(weights.state_dict(), strict=True, assign=True)
    return module.to(next(weights.parameters()).device).eval().requires_grad_(False)


def fastest(module: Any, device: torch.device) -> str:
    """Give a DiT the fastest settings that diffusers has without other packages; says which."""
    said = "torch.compile"
    if device.type == "cuda":
        module.set_attention_backend("_native_cudnn")
        said = "cuDNN attention, torch.compile"
    module.compile()
    return said


def dit_of(subject: Subject) -> Any:
    """diffusers' DiT over the subject's weights; `InputError` where these are in fp8."""
    if subject.fp8:
        raise InputError("baselines share the DiT's weights, and those are in fp8: take --baseline "
                         "none")  # fmt: skip
    return part(subject.model.transformer, subject.dit)


class Diffusers:
    """A pipeline, eager or `fast`: its VAE channels-last, its DiT as `fastest` makes it."""

    def __init__(self, subject: Subject, *, fast: bool = False) -> None:
        library, runner = diffusers(), subject.runner
        kind = subject.model.transformer.class_name
        if kind not in FAMILIES:
            raise InputError(f"the diffusers baseline knows no pipeline of a {kind}")
        family = FAMILIES[kind]
        self.name = "diffusers, fast" if fast else "diffusers"
        self._subject = subject
        dtype = str(runner.dtype).removeprefix("torch.")
        dit = dit_of(subject)
        self._vae = part(subject.model.vae, subject.vae())
        settings = [f"{dtype} on {runner.device}"]
        if fast:
            own_weights(self._vae)
            channels_last(self._vae)
            settings += ["channels-last VAE", fastest(dit, runner.device)]
        else:
            settings.append("eager")
        self._pipeline = getattr(library, family.pipeline)(
            tokenizer=None, text_encoder=None, vae=self._vae, transformer=dit,
            scheduler=getattr(library, family.scheduler)(),
        )  # fmt: skip
        self._pipeline.set_progress_bar_config(disable=True)
        latents = subject.stream.window
        self._frames = 1 + subject.runner.vae.temporal_factor * (latents - 1)
        settings.append(f"clips of {self._frames} frames")
        self.settings = ", ".join(settings)
        passes = subject.steps * (2 if subject.guided else 1)
        self.contents = Contents(passes=passes, cache_pass=False, vae="full")
        self.stages: dict[str, list[float]] = {}
        self.until_steady = 2 if fast else 1

    def open(self) -> None:
        """See `Contender.open`."""
        subject = self._subject
        self._text = subject.text(subject.prompt)
        self._negative = subject.text("")

    def turn(self) -> int:
        """See `Contender.turn`."""
        return len(self.clip())

    @torch.inference_mode()
    def clip(self) -> Frames:
        """uint8 frames `[F, H, W, 3]`."""
        subject = self._subject
        width, height = subject.size
        video = self._pipeline(
            prompt_embeds=self._text, negative_prompt_embeds=self._negative, width=width,
            height=height, num_frames=self._frames, num_inference_steps=subject.steps,
            guidance_scale=subject.stream.guidance_scale if subject.guided else 1.0,
            max_sequence_length=subject.stream.max_sequence_length, output_type="np",
        ).frames[0]  # fmt: skip
        frames: Frames = (video * 255.0).round().astype(np.uint8)
        return frames


def own_weights(module: nn.Module) -> None:
    """Take copies of weights, so that another layout is nobody else's."""
    for p in module.parameters():
        p.data = p.data.clone()


def latents_like(subject: Subject, frames: int, *, seed: int) -> Tensor:
    """Random un-normalized latents `[1, C, T, h, w]` of a clip, fp32, as large as real ones."""
    vae = subject.runner.vae
    width, height = subject.size
    factor = vae.spatial_factor
    length = 1 + (frames - 1) // vae.temporal_factor
    shape = (1, vae.channels, length, height // factor, width // factor)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    device = subject.runner.device
    return vae.denormalize(noise.to(device))
