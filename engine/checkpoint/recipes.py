"""What `livereel.json` says for published checkpoints, whose files do not say it.

Sources for the causal ones of Wan: the inference settings of Self-Forcing at 33593df, LongLive 1.0
at e52d9ef and CausVid at ca21150. Those that begin with "windows" stream CogVideoX, which was
trained on whole clips, by windows of its own clips' length at the steps that its clips are made in;
no weights were at hand to try them on.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import DEFAULT_SELF_FORCING, StreamConfig

_WINDOWS = StreamConfig(
    chunk_latents=6,
    first_chunk_latents=5,
    window=13,
    timesteps=tuple(float(t) for t in range(999, 0, -20)),
    solver="ddim",
    shift=3.0,
    guidance_scale=6.0,
    fps=8.0,
    max_sequence_length=226,
    width=720,
    height=480,
)

RECIPES: dict[str, StreamConfig] = {
    "self-forcing": DEFAULT_SELF_FORCING,
    # Its local_attn_size of 12 counts the 3 sinks; ours does not.
    "longlive": replace(DEFAULT_SELF_FORCING, window=9, sinks=3),
    # The list is used as it stands, although sampling noise was warped with shift 8 in training.
    "causvid": replace(DEFAULT_SELF_FORCING, timesteps=(1000.0, 757.0, 522.0), shift=8.0),
    "windows-2b": _WINDOWS,
    "windows-5b": replace(_WINDOWS, solver="dpm", shift=1.0),
    # A token stands for two latent frames, so that chunks are even.
    "windows-1.5": replace(
        _WINDOWS,
        solver="dpm",
        shift=1.0,
        first_chunk_latents=6,
        window=22,
        width=1360,
        height=768,
        fps=16.0,
    ),
}


def recipe_of(name: str) -> str | None:
    """The recipe that a file or folder is named after, if any: "LongLive-1.3B" is "longlive"."""
    plain = name.lower().replace("-", "").replace("_", "")
    return next((recipe for recipe in RECIPES if recipe.replace("-", "") in plain), None)
