"""The VAE's decoder alone: a clip's latents to frames as floats, beside diffusers'.

    livereel bench vae [--model demo] [--frames 81] [--decoder full|tiny] [--json FILE]

All decode the same latents on the device; nothing is converted or copied to the host. Contenders
take turns, and a turn ends when the device is idle. Where their frames differ by more than rounding
in the dtype explains, nothing is reported; a tiny decoder's are other frames, and its figures say
so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from livereel.engine.errors import InputError, LiveReelError
from livereel.engine.layers.layout import channels_last

from . import harness
from .baseline_diffusers import latents_like, own_weights, part
from .bench_stream import decoder_work, reserved
from .harness import Case, Spread
from .report import Contents, Section

if TYPE_CHECKING:
    from .ceilings import Ceilings
    from .subject import Subject

LEAST_DB = 25.0
"""Of the frames over their difference; bfloat16 leaves some 35 to 45."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How diffusers' VAE is set up."""

    name: str
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """`channels-last, torch.compile`."""
        said = {"channels-last": self.channels_last, "torch.compile": self.compiled}
        return ", ".join(name for name, on in said.items() if on) or "eager"


BASELINES: Mapping[str, Setting] = {
    "diffusers": Setting(name="diffusers"),
    "diffusers-channels-last": Setting(name="diffusers, channels-last", channels_last=True),
    "diffusers-fast": Setting(name="diffusers, fast", channels_last=True, compiled=True),
}


class DifferError(LiveReelError):
    """Contenders did not make the same frames."""


def measure(
    subject: Subject, baselines: Sequence[str], *, frames: int, runs: int, warmup: int,
    top: Ceilings, clock: Callable[[], float] = time.perf_counter,
) -> Section:  # fmt: skip
    """Ours and the baselines, in turns. Raises `InputError` for a length that the VAE has no clips
    of, `DifferError` where frames differ."""
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"unknown baseline {name!r:.40}; known are {', '.join(BASELINES)}")
    runner, factor = subject.runner, subject.runner.vae.temporal_factor
    if (frames - 1) % factor:
        near = 1 + frames // factor * factor
        raise InputError(f"frames is {frames}; wanted 1 + a multiple of {factor}, such as {near}")
    latents = runner.ready(latents_like(subject, frames, seed=0))
    decoders: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "livereel": (subject.settings, lambda z: runner.vae.decode(z)[0])
    }
    for name in baselines:
        setting = BASELINES[name]
        decode = _theirs(subject, setting)
        dtype = str(runner.dtype).removeprefix("torch.")
        decoders[setting.name] = f"{dtype} on {runner.device}, {setting}", decode
    notes = _agreement(subject, decoders, latents)

    figures: dict[str, Spread] = {}
    cases = []
    for name, (settings, decode) in decoders.items():
        turn = _turn(subject, decode, latents)
        before = reserved(subject)
        turn()
        if before is not None:
            gigabytes = (torch.cuda.max_memory_reserved(runner.device) - before) / 1e9
            figures[f"{name}: memory beside the weights, GB"] = Spread.of([gigabytes])
        cases.append(Case(name=name, settings=settings, run=turn))
    timings = harness.measure(cases, rounds=runs, warmup=warmup, clock=clock)
    width, height = subject.size
    section = Section.compare(
        f"vae: {subject.name}, {frames} frames of {width}x{height} decoded", timings, notes=notes
    )
    full = str(Contents(passes=0, cache_pass=False, vae="full", conversion=False))
    own = str(Contents(passes=0, cache_pass=False, vae=subject.decoder, conversion=False))
    return Section(
        title=section.title, timings=timings, ratios=section.ratios, figures=figures, notes=notes,
        setup={"what": "vae", "frames": frames, **subject.setup},
        contents={timing.name: own if timing is timings[0] else full for timing in timings},
        work=decoder_work(subject, frames, timings[0], top),
    )  # fmt: skip


def _theirs(subject: Subject, setting: Setting) -> Callable[[Tensor], Tensor]:
    vae: Any = part(subject.model.vae, subject.vae())
    own_weights(vae)
    if setting.channels_last:
        channels_last(vae)
    if setting.compiled:
        vae.decoder.compile()

    def decode(z: Tensor) -> Tensor:
        if not setting.channels_last:
            z = z.contiguous()
        frames: Tensor = vae.decode(z, return_dict=False)[0]
        return frames

    return decode


def _turn(
    subject: Subject, decode: Callable[[Tensor], Tensor], latents: Tensor
) -> Callable[[], int]:
    @torch.inference_mode()
    def turn() -> int:
        frames = decode(latents).shape[2]
        subject.sync()
        return frames

    return turn


@torch.inference_mode()
def _agreement(
    subject: Subject, decoders: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]],
    latents: Tensor,
) -> list[str]:  # fmt: skip
    """How near ours are to each baseline's frames. A tiny decoder's are others."""
    if subject.decoder == "tiny":
        return ["a tiny decoder makes other frames; diffusers' are the full VAE's"]
    (_, (_, ours)), *others = decoders.items()
    made = ours(latents).float()
    notes = []
    for name, (_, decode) in others:
        theirs = decode(latents).float().clamp(-1, 1)  # as ours are, and all before they are shown
        if theirs.shape != made.shape:
            raise DifferError(
                f"we make {made.shape[2]} frames and {name} {theirs.shape[2]} of the same latents; "
                "another length may do"
            )
        found = decibels(theirs, made - theirs)
        if not found >= LEAST_DB:
            raise DifferError(
                f"our frames differ from those of {name} ({found:.1f} dB, at least {LEAST_DB:g} "
                "wanted), so no speed is reported"
            )
        notes.append(f"the same frames as {name} to {found:.1f} dB")
    return notes


def decibels(signal: Tensor, error: Tensor) -> float:
    """Of a signal over an error."""
    power = float(error.square().mean())
    return math.inf if power == 0 else 10 * math.log10(float(signal.square().mean()) / power)
