"""The full-size configs: each builds, and has the parameters that its name tells."""

from __future__ import annotations

import pytest

from livereel.benchmarks.models import MODELS, find
from livereel.engine.checkpoint.load import build
from livereel.engine.errors import InputError

PARAMETERS = {
    "wan2.1-1.3b": 1_418_996_800,
    "wan2.1-14b": 14_288_491_584,
    "wan2.2-5b": 4_999_787_712,
    "cogvideox-2b": 1_693_783_872,
    "cogvideox-5b": 5_570_283_072,
}


@pytest.mark.parametrize("name", [*MODELS])
@pytest.mark.slow
def test_the_dit_has_as_many_parameters_as_the_published(name: str) -> None:
    part = find(name).transformer
    dit = build(part.class_name, part.config, name)
    assert sum(p.numel() for p in dit.parameters()) == PARAMETERS[name]


def test_the_demo_is_a_folder() -> None:
    assert find("demo").transformer.config["num_layers"] > 0


def test_an_unknown_name_is_told_with_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown model 'wan9'.*wan2\.1-1\.3b"):
        find("wan9")
