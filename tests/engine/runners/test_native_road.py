"""A stream on the C++ core's kernels: which parts run there, and what it holds to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from livereel.engine import native
from livereel.engine.engine import Engine
from livereel.engine.layers.packed import to_bytes
from livereel.engine.layers.pixels import to_uint8
from livereel.engine.models.wan.native_transformer import NativeTransformer
from livereel.engine.models.wan.native_vae import NativeVAE
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.session import Session

pytestmark = pytest.mark.skipif(not native.dot_supported(), reason="no AVX512-BF16 here")

PROMPT = "a red ball moving left"


@pytest.fixture(scope="module")
def half(tiny_folder: Path) -> Engine:
    """The causal model in bfloat16 on the road that is picked for it."""
    return Engine.load(tiny_folder, device="cpu", dtype="bfloat16")


def frames_of(session: Session, chunks: int) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in islice(session, chunks)])


def test_all_parts_take_the_road(half: Engine, tiny_folder: Path, engine: Engine) -> None:
    runner = half.runner
    assert runner.road == "native" and isinstance(runner.vae, NativeVAE)
    assert isinstance(runner.denoiser, Gathered)
    assert isinstance(runner.denoiser.denoiser, NativeTransformer)
    assert runner.to_bytes is to_bytes
    plain = TorchRunner.load(
        half.folder, device=runner.device, dtype=torch.bfloat16, road="reference"
    )
    for other in (plain, engine.runner):  # another road; fp32, for which there are no kernels
        assert isinstance(other.vae, WanVAE) and isinstance(other.denoiser, Gathered)
        assert other.denoiser.denoiser is other.transformer


def test_frames_are_those_of_fp32_but_for_rounding(half: Engine, engine: Engine) -> None:
    """With the weights rounded, passes and decodes in bfloat16; colors are 0 to 255."""
    got, wanted = (frames_of(e.open(PROMPT, seed=3), 3) for e in (half, engine))
    difference = got.astype(float) - wanted
    assert np.sqrt((difference**2).mean()) <= 4
    assert wanted.std() >= 20  # so that this says something


def test_bytes_are_those_of_torch(half: Engine) -> None:
    latents = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    decoded = half.decode(latents)
    assert np.array_equal(half.runner.frames(decoded.bfloat16()), to_uint8(decoded))


def test_streamed_is_bitwise_whole(half: Engine) -> None:
    latents = torch.randn(1, 4, 7, 5, 3, generator=torch.Generator().manual_seed(0))
    caches, parts = None, []
    with torch.inference_mode():
        for part in latents.split([1, 3, 3], dim=2):
            decoded, caches = half.runner.vae.decode(half.runner.ready(part), caches)
            parts.append(decoded)
    assert torch.equal(torch.cat(parts, dim=2).float(), half.decode(latents))


def test_restored_is_bitwise_uninterrupted(half: Engine) -> None:
    session = half.open(PROMPT, seed=5)
    frames_of(session, 2)
    copy = half.restore(session.snapshot())
    assert np.array_equal(frames_of(session, 2), frames_of(copy, 2))
