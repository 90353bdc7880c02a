"""TensorRT-RTX builds engines of the graphs on a machine without a GPU; nothing here runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from livereel.engine.checkpoint.folder import DEMO, open_folder
from livereel.engine.cli import main
from livereel.engine.models.wan.transformer import WanTransformer
from livereel.engine.models.wan.vae import WanVAE
from livereel.export import lint, steps
from livereel.export.steps import Plan, Step
from livereel.export.tensorrt import TARGETS, RTXWriter

pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX")


def build(folder: Path, named: Iterator[tuple[str, Step]], wanted: set[str]) -> None:
    """Write graphs and their engines; what is in the graphs must pass the check."""
    writer = RTXWriter(folder)
    for name, step in named:
        if name in wanted:
            graph = writer.write(name, step)
            assert lint.structure(folder, graph) == []
            assert (folder / "engines" / f"{name}.engine").stat().st_size > 100_000


def test_the_demos_graphs_have_engines_for_three_chips(tmp_path: Path) -> None:
    assert TARGETS == ("sm_86", "sm_89", "sm_120")
    folder = open_folder(DEMO)
    plan = Plan(folder, folder.stream, torch.float32)
    named = (named for _, steps in plan.parts() for named in steps.items())
    build(tmp_path, named, {"text_encode", "denoise", "vae_decode"})


def wan_block(dtype: torch.dtype) -> Iterator[tuple[str, Step]]:
    """Wan2.1 1.3B with one of its blocks, its latents smaller than in a video."""
    model = WanTransformer.from_config(
        dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=1)
    ).to(dtype)
    for name, weight in model.named_parameters():
        if not set(WanTransformer.keep_in_fp32).isdisjoint(name.split(".")):
            weight.data = weight.data.float()
    layers, tokens, heads, width = model.kv_shape(16, 16)
    text = torch.zeros(layers, 512, heads, width, dtype=dtype)
    past = torch.zeros(layers, 9, tokens, heads, width, dtype=dtype)
    inputs = {
        "latent": torch.zeros(1, 16, 3, 16, 16), "timestep": torch.ones(1), "text_k": text,
        "text_v": text.clone(), "past_k": past, "past_v": past.clone(),
        "positions": torch.arange(12),
    }  # fmt: skip
    step = model.step(9, 3, 16, 16).eval()
    yield "denoise", Step(step, inputs, ("flow", "k", "v"), "transformer")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_a_block_of_wan_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    build(tmp_path, wan_block(dtype), {"denoise"})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_whole_decoder_of_wan_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    vae = WanVAE.from_config({}).to(dtype)
    steps.fold_upsamples(vae)
    decode = steps.VaeDecode(vae, torch.zeros(16), torch.ones(16)).eval()
    lone = torch.zeros(1, 16, 1, 16, 16)
    named = steps.with_state(decode, lone, {"vae_decode_first": 1}, {"vae_decode": 3})
    build(tmp_path, named, {"vae_decode"})


def test_targets_that_are_not_known_are_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--format", "tensorrt-rtx", "--target", "sm_90", "-o", str(tmp_path / "package")]
    assert main(["export", "--model", str(tiny_folder), *options]) == 2
    assert "has no engines for sm_90; it has them for" in capsys.readouterr().err
