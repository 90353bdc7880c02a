"""diffusers on the subject's own weights: its pipeline makes whole clips.

Beside a stream it makes one of the window's length: a clip of as many latent frames as a stream's
chunk sees, in as many steps as a chunk is given, is the nearest that diffusers has to the stream:
the same span of attention and the same forwards for each frame, but for the stream's cache pass.
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
    from collections.abc import Mapping

    from livereel.engine.types import Frames

    from .models import Part
    from .subject import Subject


@dataclass(frozen=True)
class Family:
    """A transformer's pipeline and its scheduler, as a `scheduler_config.json` describes it;
    `time_dim` is the noise's that counts frames."""

    pipeline: str
    scheduler: Mapping[str, Any]
    time_dim: int


FAMILIES = {
    "WanTransformer3DModel": Family(
        "WanPipeline", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 2
    ),
    "CogVideoXTransformer3DModel": Family(
        "CogVideoXPipeline",
        {
            "_class_name": "CogVideoXDDIMScheduler",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        1,
    ),
}
"""Noise levels are the published models'; Wan's solver is the plainest it is used with."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A whole clip: its frames, the steps it is made in, and by how much it is guided; 1 is not at
    all, and what is more takes two forwards a step."""

    frames: int
    steps: int
    guidance: float

    @classmethod
    def beside(cls, subject: Subject) -> Clip:
        """The one that is nearest to the subject's stream."""
        frames = 1 + subject.runner.vae.temporal_factor * (subject.stream.window - 1)
        guidance = subject.stream.guidance_scale if subject.guided else 1.0
        return cls(frames=frames, steps=subject.steps, guidance=guidance)

    @property
    def passes(self) -> int:
        """Forwards of the DiT."""
        return self.steps * (2 if self.guidance > 1 else 1)


def family_of(subject: Subject) -> Family:
    """Raises `InputError` for a model that diffusers has no pipeline of, as far as known here."""
    kind = subject.model.transformer.class_name
    if kind not in FAMILIES:
        raise InputError(f"the diffusers baseline knows no pipeline of a {kind}")
    return FAMILIES[kind]


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
    dit = part(subject.model.transformer, subject.dit)
    leave_control_out(dit, subject.stream.told_channels)
    return dit


def leave_control_out(dit: Any, channels: int) -> None:
    """Take the channels of a control off diffusers' DiT, whose pipelines know of none.

    What is led nowhere has zeros in them, which add nothing.
    """
    if not channels:
        return
    old = dit.patch_embedding
    kept = old.in_channels - channels
    new = nn.Conv3d(kept, old.out_channels, old.kernel_size, old.stride, device="meta")
    new.weight = nn.Parameter(old.weight[:, :kept].detach().clone(), requires_grad=False)
    new.bias = old.bias
    dit.patch_embedding = new
    dit.register_to_config(in_channels=kept)


class Diffusers:
    """A pipeline, eager or `fast`: its VAE channels-last, its DiT as `fastest` makes it."""

    def __init__(
        self, subject: Subject, *, fast: bool = False, clip: Clip | None = None,
        noise: Tensor | None = None,
    ) -> None:  # fmt: skip
        """`clip` is the one beside the subject's stream unless another is given; `noise`
        `[1, C, T, h, w]`, that it begins with, is drawn for each unless it is given."""
        library, runner, self._family = diffusers(), subject.runner, family_of(subject)
        self._clip = clip or Clip.beside(subject)
        self._noise = None if noise is None else noise.movedim(2, self._family.time_dim)
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
        scheduler = getattr(library, self._family.scheduler["_class_name"])
        self._pipeline = getattr(library, self._family.pipeline)(
            tokenizer=None, text_encoder=None, vae=self._vae, transformer=dit,
            scheduler=scheduler.from_config(dict(self._family.scheduler)),
        )  # fmt: skip
        self._pipeline.set_progress_bar_config(disable=True)
        settings.append(f"clips of {self._clip.frames} frames")
        self.settings = ", ".join(settings)
        self.contents = Contents(passes=self._clip.passes, cache_pass=False, vae="full")
        self.stages: dict[str, list[float]] = {}
        self.until_steady = 2 if fast else 1

    def open(self) -> None:
        """See `Contender.open`."""
        subject = self._subject
        self._text = subject.text(subject.prompt)
        self._negative = subject.text("")

    def turn(self) -> int:
        """See `Contender.turn`."""
        return len(self.clip(self._clip.steps))

    @torch.inference_mode()
    def clip(self, steps: int) -> Frames:
        """uint8 frames `[F, H, W, 3]`."""
        subject = self._subject
        width, height = subject.size
        video = self._pipeline(
            prompt_embeds=self._text, negative_prompt_embeds=self._negative, width=width,
            height=height, num_frames=self._clip.frames, num_inference_steps=steps,
            guidance_scale=self._clip.guidance, latents=self._noise,
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
