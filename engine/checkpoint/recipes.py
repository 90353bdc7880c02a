"""What `livereel.json` says for the published causal Wan checkpoints, whose files do not say it.

Sources: the inference settings of Self-Forcing at 33593df, LongLive 1.0 at e52d9ef and CausVid at
ca21150.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import DEFAULT_SELF_FORCING, StreamConfig

RECIPES: dict[str, StreamConfig] = {
    "self-forcing": DEFAULT_SELF_FORCING,
    # Its local_attn_size of 12 counts the 3 sinks; ours does not.
    "longlive": replace(DEFAULT_SELF_FORCING, window=9, sinks=3),
    # The list is used as it stands, although sampling noise was warped with shift 8 in training.
    "causvid": replace(DEFAULT_SELF_FORCING, timesteps=(1000.0, 757.0, 522.0), shift=8.0),
}


def recipe_of(name: str) -> str | None:
    """The recipe that a file or folder is named after, if any: "LongLive-1.3B" is "longlive"."""
    plain = name.lower().replace("-", "").replace("_", "")
    return next((recipe for recipe in RECIPES if recipe.replace("-", "") in plain), None)
