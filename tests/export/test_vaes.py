"""Every form of the Wan VAE exports, and its graphs compute what torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from livereel.engine.models.wan.vae import WanVAE
from livereel.export import lint
from livereel.export.onnx import OnnxWriter
from livereel.export.steps import VaeDecode, VaeEncode, fold_upsamples, with_state

FORMS = {
    "2.1": dict(z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True]),
    "2.2": dict(
        decoder_base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], in_channels=12, out_channels=12, patch_size=2,
        is_residual=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", [pytest.param("2.1", marks=pytest.mark.slow), "2.2"])
def test_a_stream_is_decoded_and_encoded_as_in_torch(tmp_path: Path, form: str) -> None:
    torch.manual_seed(1)
    scale: dict[str, Any] = dict(base_dim=4, latents_mean=[0.1] * 4, latents_std=[1.5] * 4)
    vae = WanVAE.from_config({**FORMS[form], **scale}).eval()
    fold_upsamples(vae)
    latent = torch.zeros(1, 4, 1, 2, 3)
    frame = torch.zeros(1, 3, 1, 2 * vae.spatial_factor, 3 * vae.spatial_factor)
    numbers = torch.full((4,), 0.1), torch.full((4,), 1.5)
    decode, encode = VaeDecode(vae, *numbers).eval(), VaeEncode(vae, *numbers).eval()
    steps = dict(with_state(decode, latent, {"vae_decode_first": 1}, {"vae_decode": 2}))
    factor = vae.temporal_factor
    steps |= with_state(encode, frame, {"vae_encode_first": 1}, {"vae_encode": factor})
    writer = OnnxWriter(tmp_path)
    graphs = {name: writer.write(name, step) for name, step in steps.items()}
    assert not [fault for graph in graphs.values() for fault in lint.structure(tmp_path, graph)]
    loaded = {name: writer.load(graph) for name, graph in graphs.items()}
    found = lint.errors(cast(Any, None), "vae", steps, loaded)
    assert {name for name, _ in found} == set(steps)
    assert max(found.values()) <= 1e-4
