from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from livereel.engine.config import DEFAULT_SELF_FORCING, StreamConfig
from livereel.engine.errors import CheckpointError, InputError

MINIMAL: dict[str, Any] = {"window": 6, "timesteps": [1000, 500]}


def test_json_round_trip() -> None:
    text = json.dumps(DEFAULT_SELF_FORCING.to_dict())
    assert StreamConfig.from_dict(json.loads(text)) == DEFAULT_SELF_FORCING


def test_default_list_is_the_warp_of_four_even_steps() -> None:
    shift = DEFAULT_SELF_FORCING.shift
    sigmas = [1.0, 0.75, 0.5, 0.25]
    warped = [1000 * shift * s / (1 + (shift - 1) * s) for s in sigmas]
    assert DEFAULT_SELF_FORCING.timesteps == pytest.approx(warped, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "first"),
    [({}, 3), ({"chunk_latents": 2}, 2), ({"chunk_latents": 2, "first_chunk_latents": 1}, 1)],
)
def test_first_chunk_defaults_to_the_others(values: dict[str, Any], first: int) -> None:
    config = StreamConfig.from_dict({**MINIMAL, **values})
    assert config.first_chunk_latents == first
    assert [config.chunk_size(i) for i in range(3)] == [first] + 2 * [config.chunk_latents]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"windw": 3}, "windw"),
        ({"chunk_latents": 0}, "chunk_latents"),
        ({"chunk_latents": True}, "chunk_latents"),
        ({"chunk_latents": 2.0}, "chunk_latents"),
        ({"chunk_latents": 2, "first_chunk_latents": 3}, "first_chunk_latents"),
        ({"window": 2}, "window"),
        ({"window": 10**9}, "window"),
        ({"window": "6"}, "window"),
        ({"sinks": -1}, "sinks"),
        ({"anchors": 257}, "anchors"),
        ({"anchor_every": 0}, "anchor_every"),
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": 1000}, "timesteps"),
        ({"timesteps": [1000, 1000]}, "timesteps"),
        ({"timesteps": [500, 1000]}, "timesteps"),
        ({"timesteps": [1000, 0]}, "timesteps"),
        ({"timesteps": [1000.5]}, "timesteps"),
        ({"timesteps": [float("nan")]}, "timesteps"),
        ({"timesteps": ["1000"]}, "timesteps"),
        ({"context_noise": -1}, "context_noise"),
        ({"context_noise": float("nan")}, "context_noise"),
        ({"solver": "heun"}, "solver"),
        ({"solver": ["euler"]}, "solver"),
        ({"fps": 0}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"max_sequence_length": 10**6}, "max_sequence_length"),
        ({"width": 0}, "width"),
        ({"height": 10**6}, "height"),
        ({"guidance_scale": None}, "guidance_scale"),
        ({"shift": 0}, "shift"),
    ],
)
def test_bad_values_are_named_in_one_line(values: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as error:
        StreamConfig.from_dict({**MINIMAL, **values}, source="m/livereel.json")
    assert named in str(error.value)
    assert str(error.value).startswith("m/livereel.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["window", "timesteps"])
def test_missing_keys_are_named(key: str) -> None:
    values = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(CheckpointError, match=key):
        StreamConfig.from_dict(values)


def test_direct_construction_is_checked_and_frozen() -> None:
    with pytest.raises(InputError, match="descend"):
        StreamConfig(first_chunk_latents=3, window=3, timesteps=(1.0, 2.0))
    with pytest.raises(FrozenInstanceError):
        DEFAULT_SELF_FORCING.window = 3  # type: ignore[misc]
