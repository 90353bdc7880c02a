"""A picture's tokens against transformers' own processor and tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.clip.vision import CLIPVision, ImageEncoder, Preprocessing

TOWER = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
             image_size=28, patch_size=14)  # fmt: skip
PROCESSING = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def save(folder: Path, kind: str = "CLIPVisionModel", **processing: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**TOWER, projection_dim=6)
    getattr(transformers, kind)(config).save_pretrained(folder / "image_encoder")
    (folder / "image_processor").mkdir()
    values = json.dumps(PROCESSING | processing)
    (folder / "image_processor" / "preprocessor_config.json").write_text(values)
    index = {"image_encoder": ["transformers", kind]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize("size", [(40, 64), (64, 40), (28, 28), (31, 29)])
def test_tokens_equal_transformers(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    import transformers
    from transformers import CLIPImageProcessor

    folder = save(tmp_path, kind)
    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    ours = ImageEncoder.load(open_folder(folder), device="cpu", dtype=torch.float32)
    processor = CLIPImageProcessor(**PROCESSING)
    values = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        torch.stack([ours.preprocessing(picture) for picture in pictures]), values, rtol=0,
        atol=1e-5,
    )  # fmt: skip
    tower = getattr(transformers, kind).from_pretrained(folder / "image_encoder").eval()
    with torch.no_grad():
        expected = tower(values, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours.encode(pictures), expected, rtol=1e-4, atol=1e-4)
    assert ours.width == 8


@pytest.mark.parametrize(
    ("processing", "sentence"),
    [
        ({"do_center_crop": False}, "do_center_crop=False is not supported"),
        ({"size": {"shortest_edge": 10**9}}, "size must be a whole number"),
        ({"crop_size": 29}, "crop_size must be a whole number from 1 to 28"),
        ({"image_std": [0, 1, 1]}, "image_std must be"),
        ({"image_mean": "gray"}, "image_mean must be"),
    ],
)
def test_another_way_of_preparing_is_refused(
    tmp_path: Path, processing: dict[str, Any], sentence: str
) -> None:
    folder = save(tmp_path, **processing)
    with pytest.raises(CheckpointError, match=sentence):
        ImageEncoder.load(open_folder(folder), device="cpu", dtype=torch.float32)


def test_bounds_of_config_and_picture() -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers must be a whole number"):
        CLIPVision.from_config({"num_hidden_layers": 10**6})
    with pytest.raises(InputError, match="4000x1; a side may be 16 times the other"):
        Preprocessing()(np.zeros((1, 4000, 3), np.uint8))
