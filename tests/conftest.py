"""What all tests share: options, which tests run in this process, and a tiny model.

Tests marked `interpreter` launch kernels in Triton's interpreter, on the CPU, and need a process
of their own with TRITON_INTERPRET=1 set before Triton is imported; those marked `compile` and `gpu`
need one without it (`make test-kernels` starts both).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.kernels.jit import INTERPRETED

TRITON = importlib.util.find_spec("triton") is not None
THREADS = torch.get_num_threads()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--wheel",
        type=Path,
        metavar="FOLDER",
        help="the folder of a freshly built wheel, for the tests of what users install",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not(item: pytest.Item) -> str | None:
    """Why this process cannot run `item`; None when it can."""
    gpu, compiles, interpreter = (
        item.get_closest_marker(name) is not None for name in ("gpu", "compile", "interpreter")
    )
    if (gpu or compiles or interpreter) and not TRITON:
        return "needs Triton"
    if (gpu or compiles) and INTERPRETED:
        return "needs kernels compiled: unset TRITON_INTERPRET"
    if gpu:
        return None if torch.cuda.is_available() else "needs a CUDA device"
    if interpreter and not INTERPRETED:
        return "needs kernels interpreted: set TRITON_INTERPRET=1"
    return None


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest) -> Path:
    """The wheel under test; without `--wheel` such tests are skipped."""
    folder = request.config.getoption("--wheel")
    if folder is None:
        pytest.skip("needs --wheel FOLDER (make test passes it)")
    (path,) = Path(folder).resolve().glob("livereel-*.whl")
    return path


# A tiny model of the demo's kind with random weights, written by diffusers and transformers.

RECIPE = {
    "chunk_latents": 3,
    "first_chunk_latents": 1,
    "window": 6,
    "sinks": 0,
    "timesteps": [1000.0, 900.0, 600.0],
    "context_noise": 0.0,
    "solver": "renoise",
    "fps": 16,
    "max_sequence_length": 8,
    "width": 48,
    "height": 32,
}


def save_tiny_model(folder: Path, recipe: dict[str, object] | None) -> Path:
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

    torch.manual_seed(7)
    tokenizer = build_tokenizer(["a", "red", "blue", "ball", "moving", "left"])
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=32, ffn_dim=64, num_layers=2,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[True, True],
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=8,
        latents_mean=[0.1] * 4, latents_std=[1.2] * 4,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder)
    save_tokenizer(tokenizer, folder / "tokenizer")
    if recipe is not None:
        (folder / "livereel.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(autouse=True)
def as_many_threads() -> Iterator[None]:
    """Threads that a test gave to torch are what later tests' threads would begin with."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model's folder."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", RECIPE)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights without livereel.json: a model that makes whole clips."""
    return save_tiny_model(tmp_path_factory.mktemp("clip") / "model", None)


@pytest.fixture(scope="session")
def engine(tiny_folder: Path) -> Engine:
    """The causal model in fp32 on the CPU."""
    return Engine.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def exported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model as an ONNX package, which `livereel export` has checked."""
    out = tmp_path_factory.mktemp("exported") / "package"
    assert main(["export", "--model", str(tiny_folder), "-o", str(out)]) == 0
    return out
