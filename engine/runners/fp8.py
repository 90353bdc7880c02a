"""What fp8 costs a model: its layers and its latents against those in bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..layers.linear_fp8 import Fp8Report, measure_fp8
from ..layers.road import pick_road
from ..sampling.stream import StreamState
from .torch import TorchRunner

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint.folder import ModelFolder

PROMPT = "a red circle moving right on a blue background"


@torch.inference_mode()
def fp8_report(
    folder: ModelFolder, device: torch.device, *, keep: Collection[str] = ()
) -> Fp8Report:
    """Load a model that streams, make a stream's first chunk in bfloat16, and again with the DiT in
    fp8 as `TorchRunner.load` has it; the report's `whole` is of that chunk's clean latents.

    Raises what `TorchRunner.load` does.
    """
    dtype, config = torch.bfloat16, folder.stream
    runner = TorchRunner.load(folder, device=device, dtype=dtype, road="reference")
    sampler = runner.sampler(config, config.width, config.height)
    text, nothing = (
        runner.transformer.text_kv(runner.encode_text(prompt, config.max_sequence_length))
        for prompt in (PROMPT, "")
    )
    negative = nothing if config.guidance_scale > 1 else None

    def sample() -> Tensor:
        steps = len(config.timesteps)
        state = StreamState(PROMPT, 0, steps, config.width, config.height)
        return sampler.sample(state, text, negative)

    kept = {*runner.transformer.keep_in_bf16, *keep}
    road = pick_road("auto", device, dtype)
    return measure_fp8(cast("nn.Module", runner.transformer), sample, keep=kept, road=road)
