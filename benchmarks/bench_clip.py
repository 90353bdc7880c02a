"""Whole clips, from noise to bytes on the host, beside diffusers'.

    livereel bench clip [--model demo] [--frames 81] [--steps 50] [--baseline diffusers-fast]

All make the same clip: from the same noise and text, by the same schedule, in as many steps, each
of two forwards where it is guided. A clip of two steps comes first, untimed: it compiles all there
is to compile, and shows how near the contenders' frames are. Then they take turns, a clip each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from livereel.engine.errors import InputError
from livereel.engine.runners.clips import ClipRequest, clip_length
from livereel.engine.sampling.noise import normal
from livereel.engine.whole_clip import check_values, whole_clip

from . import harness
from .baseline_diffusers import Clip, Diffusers, family_of
from .bench_stream import reserved, spent_on
from .bench_vae import DifferError, decibels
from .count import DECODE, TINY, count, latent_size, total
from .harness import Case, Spread
from .report import Contents, Section

if TYPE_CHECKING:
    from livereel.engine.text.encoder import TextEncoder
    from livereel.engine.types import Frames

    from .ceilings import Ceilings
    from .report import Spent
    from .subject import Subject

BASELINES: Mapping[str, bool] = {"diffusers": False, "diffusers-fast": True}
"""By name, and whether it is set up to be fast."""
SEED = 0
TRIAL_STEPS = 2
LEAST_DB = 25.0
"""Of the frames over their difference, where numbers are of fp32. In fewer bits two right samplers
may part further, with weights that are random above all, and nothing is demanded."""


@dataclass(frozen=True)
class KnownText:
    """Stands for a text encoder whose work is done."""

    texts: Mapping[str, Tensor]

    def encode(self, prompts: Sequence[str], length: int) -> Tensor:
        """Embeddings `[B, L, D]`."""
        return torch.cat([self.texts[prompt] for prompt in prompts])


class Ours:
    """LiveReel's own."""

    name = "livereel"

    def __init__(self, subject: Subject, clip: Clip) -> None:
        width, height = subject.size
        self._runner = subject.runner
        self._scheduler = family_of(subject).scheduler
        self._request = ClipRequest(
            prompt=subject.prompt, negative="", frames=clip.frames, height=height, width=width,
            seed=SEED, steps=clip.steps, guidance=(clip.guidance, clip.guidance),
            text_length=subject.stream.max_sequence_length,
            told_channels=subject.stream.told_channels,
        )  # fmt: skip
        check_values(self._request)
        self.settings = f"{subject.dtype} on {self._runner.device}, {self._runner.road} road"
        self.contents = Contents(passes=clip.passes, cache_pass=False, vae=subject.decoder)

    def clip(self, steps: int) -> Frames:
        """uint8 frames `[F, H, W, 3]`."""
        return whole_clip(
            self._runner, replace(self._request, steps=steps), self._scheduler, clean_start=False,
            tell=lambda done, of: None,
        )  # fmt: skip


def measure(
    subject: Subject, baselines: Sequence[str], clip: Clip, *, runs: int, top: Ceilings,
    clock: Callable[[], float] = time.perf_counter,
) -> Section:  # fmt: skip
    """Ours and the baselines, in turns. Raises `InputError` for a baseline or a length that there
    is none of, and for a tiny decoder beside a baseline's full VAE, `DifferError` where fp32 frames
    differ."""
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"unknown baseline {name!r:.40}; known are {', '.join(BASELINES)}")
    if baselines and subject.decoder == "tiny":
        raise InputError("a tiny decoder makes other frames than the baselines' full VAE: take "
                         "--decoder full, or --baseline none")  # fmt: skip
    runner = subject.runner
    factor = runner.vae.temporal_factor
    if clip.frames % factor != 1:
        near = 1 + clip.frames // factor * factor
        raise InputError(
            f"frames is {clip.frames}; wanted 1 + a multiple of {factor}, such as {near}"
        )
    texts = {prompt: subject.text(prompt) for prompt in (subject.prompt, "")}
    text_encoder = cast("TextEncoder", KnownText(texts))
    subject = replace(subject, runner=replace(runner, text_encoder=text_encoder))
    height, width = latent_size(runner.transformer, runner.vae, subject.size)
    shape = (1, runner.transformer.channels, clip_length(runner, clip.frames), height, width)
    noise = normal(SEED, 0, 0, shape).to(runner.device)

    contenders: list[Ours | Diffusers] = [Ours(subject, clip)]
    figures: dict[str, Spread] = {}
    trials: dict[str, Frames] = {}
    for name in baselines:
        theirs = Diffusers(subject, fast=BASELINES[name], clip=clip, noise=noise)
        theirs.open()
        contenders.append(theirs)
    for contender in contenders:
        before = reserved(subject)
        trials[contender.name] = contender.clip(TRIAL_STEPS)
        if before is not None:
            gigabytes = (torch.cuda.max_memory_reserved(runner.device) - before) / 1e9
            figures[f"{contender.name}: memory beside the weights, GB"] = Spread.of([gigabytes])
    notes = _agreement(subject, trials)
    cases = [
        Case(name=c.name, settings=c.settings, run=_turn(subject, c, clip.steps))
        for c in contenders
    ]
    timings = harness.measure(cases, rounds=runs, warmup=0, clock=clock)
    width, height = subject.size
    section = Section.compare(
        f"clip: {subject.name}, {clip.frames} frames of {width}x{height} in {clip.steps} steps, "
        f"guidance {clip.guidance:g}", timings, notes=notes,
    )  # fmt: skip
    setup = {"what": "clip", **subject.setup, "frames": clip.frames, "steps": clip.steps}
    for key in ("window", "chunk", "first_chunk"):
        del setup[key]
    return Section(
        title=section.title, timings=timings, ratios=section.ratios, figures=figures, notes=notes,
        setup={**setup, "guidance": f"{clip.guidance:g}"},
        contents={c.name: str(c.contents) for c in contenders},
        work=[_work(subject, clip, statistics.median(timings[0].seconds), top)],
    )  # fmt: skip


def _turn(subject: Subject, contender: Ours | Diffusers, steps: int) -> Callable[[], int]:
    def turn() -> int:
        frames = len(contender.clip(steps))
        subject.sync()
        return frames

    return turn


def _agreement(subject: Subject, trials: Mapping[str, Frames]) -> list[str]:
    """How near ours are to each baseline's frames."""
    (_, made), *others = trials.items()
    notes = []
    for name, theirs in others:
        if theirs.shape != made.shape:
            raise DifferError(f"we make frames of {made.shape} and {name} of {theirs.shape}")
        shown, ours = (torch.from_numpy(x.astype(np.float32)) / 127.5 - 1 for x in (theirs, made))
        found = decibels(shown, ours - shown)
        if subject.runner.dtype == torch.float32 and not found >= LEAST_DB:
            raise DifferError(
                f"our frames differ from those of {name} ({found:.1f} dB, at least {LEAST_DB:g} "
                "wanted), so no speed is reported"
            )
        notes.append(f"the same frames as {name} to {found:.1f} dB, after {TRIAL_STEPS} steps")
    return notes


def _work(subject: Subject, clip: Clip, seconds: float, top: Ceilings) -> Spent:
    found = count(
        subject.model, size=subject.size, frames=clip.frames, stream=subject.stream, steps=1,
        dtype=subject.runner.dtype,
    )  # fmt: skip
    decode = TINY if subject.decoder == "tiny" else DECODE
    wanted = (
        replace(step, times=1 if step.name == decode else clip.passes)
        for step in found.clip
        if step.name in ("DiT pass", decode)
    )
    return spent_on("clip", total(wanted), seconds, top)
