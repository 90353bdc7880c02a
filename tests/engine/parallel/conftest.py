"""Ranks that run what `vae_jobs.py` and `rank_jobs.py` have, started once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from livereel.engine.parallel.launch import Ranks

# Without shrinking: a failure says what it was given, and a rank may not live to try again.
settings.register_profile(
    "ranks", deadline=None, derandomize=True, database=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="session")
def path() -> Iterator[Path]:
    """This folder, from which ranks import their jobs."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        yield here


@pytest.fixture(scope="session")
def jobs(path: Path) -> ModuleType:
    import rank_jobs

    return rank_jobs


@pytest.fixture(scope="session")
def vae_jobs(path: Path) -> ModuleType:
    import vae_jobs

    return vae_jobs


@pytest.fixture(scope="session")
def two_ranks(path: Path) -> Iterator[Ranks]:
    with Ranks(2, threads=1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks(path: Path) -> Iterator[Ranks]:
    with Ranks(4, threads=1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def cogvideox_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CogVideoX's kind of the model that makes whole clips."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXTransformer3DModel,
    )

    folder = tmp_path_factory.mktemp("cogvideox") / "model"
    shutil.copytree(clip_folder, folder)
    torch.manual_seed(3)
    parts = {
        "transformer": CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
            time_embed_dim=12, text_embed_dim=12, num_layers=2, sample_width=12, sample_height=8,
            sample_frames=9, max_text_seq_length=9,
        ),
        "vae": AutoencoderKLCogVideoX(
            block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": CogVideoXDDIMScheduler(
            prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    }  # fmt: skip
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "CogVideoXPipeline"
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
