"""A package's steps on Triton's kernels, traced and taken apart for a GPU that is not there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import WanVAEConfig
from livereel.export.aoti import trace
from livereel.export.held import HeldVAE
from livereel.export.steps import VaeDecode

pytestmark = [
    pytest.mark.compile,
    pytest.mark.usefixtures("hopper"),
    pytest.mark.filterwarnings("ignore"),
]


def taken_apart(module: nn.Module, inputs: list[Tensor], launches: Any) -> tuple[Any, set[str]]:
    """The kernels that a module becomes, and torch's operations beside them."""
    program = trace(module.requires_grad_(False).eval(), inputs)
    results = [node.meta["val"] for node in program.graph.output_node().args[0]]
    assert all(x.is_contiguous() for x in results[1:])
    graph = program.run_decompositions({}, decompose_custom_triton_ops=True).graph
    assert "livereel" not in str(graph)
    found = Counter(name for name, _ in launches(graph))
    targets = [node.target for node in graph.nodes]
    others = [x for x in targets if isinstance(x, torch._ops.OpOverload)]
    return found, {op._schema.name.removeprefix("aten::") for op in others}


def test_a_denoising_step(launches: Any) -> None:
    config = WanTransformerConfig(
        num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=32, ffn_dim=64, num_layers=1,
    )  # fmt: skip
    dit = WanTransformer(config).in_ring()
    assert dit is not None
    past = [torch.empty(1, 3, 4, 1, 64) for _ in range(2)]
    text = [torch.empty(1, 5, 1, 64) for _ in range(2)]
    inputs = [torch.empty(1, 4, 2, 4, 4), torch.empty(1), *text, *past, torch.arange(5)]
    found, others = taken_apart(dit.step(3, 2, 4, 4), inputs, launches)
    assert found == {
        "_norm_modulate_kernel": 2, "_gate_residual_kernel": 1, "_residual_norm_kernel": 2,
        "_qk_norm_rope_kernel": 1, "_chunk_attention_kernel": 1,
    }  # fmt: skip
    assert not {x for x in others if "layer_norm" in x or "softmax" in x or "matmul" in x}


def test_a_decoding_step(launches: Any) -> None:
    config = WanVAEConfig(
        base_dim=8, z_dim=4, dim_mult=(1,), num_res_blocks=1, temperal_downsample=(),
        latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4,
    )  # fmt: skip
    vae = HeldVAE(WanVAE(config).fused())
    decode = VaeDecode(vae, torch.zeros(4), torch.ones(4))
    caches = decode(torch.empty(1, 4, 1, 4, 4))[1:]
    found, others = taken_apart(decode, [torch.empty(1, 4, 2, 4, 4), *caches], launches)
    assert set(found) == {"_causal_conv3d_kernel", "_rms_norm_silu_kernel"}
    assert "conv3d" not in others and "silu" not in others
