from __future__ import annotations

import pytest

from livereel.engine.checkpoint.recipes import RECIPES, recipe_of


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("self_forcing_dmd.pt", "self-forcing"),
        ("Self-Forcing", "self-forcing"),
        ("LongLive-1.3B", "longlive"),
        ("longlive_base.pt", "longlive"),
        ("CausVid", "causvid"),
        ("model.pt", None),
        ("", None),
    ],
)
def test_names_speak_of_recipes(name: str, recipe: str | None) -> None:
    assert recipe_of(name) == recipe


def test_every_recipe_attends_to_what_its_cache_held() -> None:
    """And those by windows to as much as their model's clips hold."""
    # In latent frames: Self-Forcing and CausVid keep 21 (32,760 tokens), LongLive 12 with sinks.
    held = {name: recipe.window + recipe.sinks for name, recipe in RECIPES.items()}
    windows = {"windows-2b": 13, "windows-5b": 13, "windows-1.5": 22}
    assert held == {"self-forcing": 21, "longlive": 12, "causvid": 21, **windows}
    assert [len(RECIPES[name].timesteps) for name in windows] == [50, 50, 50]
