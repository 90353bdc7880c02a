from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from livereel.engine.errors import InputError
from livereel.engine.layers.motion_module import (
    MotionModule,
    MotionState,
    TemporalAttention,
    TemporalMixer,
)

SIZE = (2, 3)  # height and width


def animatediff(positions: str | None = "sinusoidal") -> AnimateDiffTransformer3D:
    """diffusers' module, its weights random, none of them zero."""
    torch.manual_seed(0)
    theirs = AnimateDiffTransformer3D(
        num_attention_heads=2, attention_head_dim=20, in_channels=40, num_layers=2,
        norm_num_groups=4, positional_embeddings=positions, num_positional_embeddings=16,
    )  # fmt: skip
    return theirs.eval()


def motion_module(theirs: AnimateDiffTransformer3D, mask: Any = "full") -> MotionModule:
    """Ours with those weights; strict, but for tables of positions that theirs may lack."""
    ours = MotionModule(40, heads=2, layers=2, groups=4, places=16, mask=mask)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all("pos_embed" in name for name in missing)
    if missing:
        for block in ours.transformer_blocks:
            block.pos_embed.pe.zero_()
    return ours.eval()


def run_theirs(theirs: AnimateDiffTransformer3D, x: Tensor) -> Tensor:
    """`x` `[B, C, T, H, W]`, which diffusers wants as `[B T, C, H, W]`."""
    b, t = x.shape[0], x.shape[2]
    frames = theirs(x.transpose(1, 2).flatten(0, 1), num_frames=t)
    return frames.unflatten(0, (b, t)).transpose(1, 2)


class Seen(AttnProcessor2_0):
    """diffusers' attention under a mask over frames."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)

    def __call__(self, attn: nn.Module, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        bias = self.bias.expand(hidden_states.shape[0], -1, -1)
        out: Tensor = super().__call__(attn, hidden_states, attention_mask=bias)
        return out


class ByChunk(nn.Module):
    """A norm that sees the frames of `[B, C, T, H, W]` chunk by chunk."""

    def __init__(self, norm: nn.Module, chunks: list[int]) -> None:
        super().__init__()
        self.norm, self.chunks = norm, chunks

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.split(self.chunks, dim=2)], dim=2)


def visible(chunks: list[int], window: int, sinks: int, causal: bool) -> Tensor:
    """Whether frame i, in these chunks, sees frame j: `[T, T]`."""
    edges = torch.tensor([0, *chunks]).cumsum(0).tolist()
    seen = torch.zeros(edges[-1], edges[-1], dtype=torch.bool)
    for start, end in pairwise(edges):
        for i in range(start, end):
            until = i + 1 if causal else end
            seen[i, max(0, end - window) : until] = True
            seen[i, : min(sinks, until)] = True
    return seen


def by_chunk(theirs: AnimateDiffTransformer3D, chunks: list[int], seen: Tensor) -> None:
    """Let diffusers' module do at once what a stream of these chunks does."""
    theirs.norm = ByChunk(theirs.norm, chunks)
    for block in theirs.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.set_processor(Seen(seen))


def streamed(ours: MotionModule, x: Tensor, chunks: list[int], state: MotionState) -> Tensor:
    outs = []
    for part in x.split(chunks, dim=2):
        y, state = ours.stream(part, state)
        outs.append(y)
    return torch.cat(outs, dim=2)


@pytest.mark.parametrize("frames", [1, 5, 16])
@torch.inference_mode()
def test_equals_animatediff_over_a_whole_clip(frames: int) -> None:
    theirs = animatediff()
    x = torch.randn(2, 40, frames, *SIZE)
    ours = motion_module(theirs)(x)
    torch.testing.assert_close(ours, run_theirs(theirs, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * 4, [1, 3, 2], [5]])
@pytest.mark.parametrize("mask", ["full", "causal"])
@torch.inference_mode()
def test_a_stream_equals_animatediff_under_its_mask(chunks: list[int], mask: str) -> None:
    """While the window holds all, and so places are those in the clip."""
    theirs = animatediff()
    ours = motion_module(theirs, mask)
    x = torch.randn(2, 40, sum(chunks), *SIZE)
    out = streamed(ours, x, chunks, ours.start(2, *SIZE, window=14, sinks=1))
    by_chunk(theirs, chunks, visible(chunks, 15, 0, mask == "causal"))
    torch.testing.assert_close(out, run_theirs(theirs, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "sinks"), [(3, 0), (4, 2), (3, 1)])
@torch.inference_mode()
def test_a_stream_forgets_what_left_its_window(window: int, sinks: int) -> None:
    """Without positions, whose places diffusers cannot move along with the window."""
    chunks = [2, 1, 3, 1, 2, 2]
    theirs = animatediff(positions=None)
    ours = motion_module(theirs)
    x = torch.randn(1, 40, sum(chunks), *SIZE)
    out = streamed(ours, x, chunks, ours.start(1, *SIZE, window=window, sinks=sinks))
    by_chunk(theirs, chunks, visible(chunks, window, sinks, causal=False))
    torch.testing.assert_close(out, run_theirs(theirs, x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_places_are_counted_within_the_window() -> None:
    """One attention over a stream equals attention to the window's frames laid out in order."""
    torch.manual_seed(0)
    layer = TemporalAttention(16, 2)
    x, places = torch.randn(1, 9, 1, 2, 16), torch.randn(5, 16)
    rings = (torch.zeros(1, 5, 1, 2, 2, 8), torch.zeros(1, 5, 1, 2, 2, 8))
    for frame in range(9):
        state = MotionState(window=4, sinks=1, frames=frame, kv=(rings,))
        out = layer(x[:, frame : frame + 1], places, state.tables(1), rings)
        seen = [0, *range(max(1, frame - 3), frame + 1)][: frame + 1]
        whole = layer(x[:, seen], places, None, None)
        torch.testing.assert_close(out, whole[:, -1:])


@torch.inference_mode()
def test_a_pass_can_be_run_again() -> None:
    ours = motion_module(animatediff())
    state = ours.start(1, *SIZE, window=3)
    for _ in range(2):
        _, state = ours.stream(torch.randn(1, 40, 2, *SIZE), state)
    x = torch.randn(1, 40, 2, *SIZE)
    first, _ = ours.stream(x, state)
    ours.stream(torch.randn(1, 40, 2, *SIZE), state)
    again, _ = ours.stream(x, state)
    assert torch.equal(first, again)


def svd(layers: int) -> TransformerSpatioTemporalModel:
    torch.manual_seed(0)
    theirs = TransformerSpatioTemporalModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, cross_attention_dim=24,
        num_layers=layers,
    )  # fmt: skip
    theirs.time_mixer.mix_factor.data.fill_(-0.3)
    return theirs.eval()


def mixed_by_theirs(
    theirs: TransformerSpatioTemporalModel, frames: int, context: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """What went into each layer's temporal half and came out, `[B, T, H, W, C]`."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def keep(kept: list[Tensor]) -> Any:
        shape = (context.shape[0], frames, *SIZE, 32)
        return lambda _module, _inputs, out: kept.append(out.reshape(shape))

    for block in theirs.transformer_blocks:
        block.register_forward_hook(keep(before))
    theirs.time_mixer.register_forward_hook(keep(after))
    theirs(
        torch.randn(context.shape[0] * frames, 32, *SIZE),
        context.repeat_interleave(frames, dim=0),
        torch.zeros(context.shape[0], frames),
    )
    return before, after


def temporal_mixer(theirs: TransformerSpatioTemporalModel) -> TemporalMixer:
    layers = len(theirs.transformer_blocks)
    ours = TemporalMixer(32, heads=2, context=24, layers=layers)
    own = ours.state_dict().keys()
    ours.load_state_dict({name: x for name, x in theirs.state_dict().items() if name in own})
    return ours.eval()


@torch.inference_mode()
def test_equals_stable_video_diffusion_over_a_whole_clip() -> None:
    theirs = svd(layers=2)
    context = torch.randn(2, 3, 24)
    ours = temporal_mixer(theirs)
    for layer, (x, y) in enumerate(zip(*mixed_by_theirs(theirs, 5, context), strict=True)):
        torch.testing.assert_close(ours(x, context, layer), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "sinks"), [(9, 0), (3, 1)])
@torch.inference_mode()
def test_a_stream_equals_stable_video_diffusion_under_its_mask(window: int, sinks: int) -> None:
    chunks = [1, 2, 3, 2]
    theirs = svd(layers=1)
    seen = visible(chunks, window, sinks, causal=False)
    theirs.temporal_transformer_blocks[0].attn1.set_processor(Seen(seen))
    context = torch.randn(1, 1, 24)
    ((x,), (y,)) = mixed_by_theirs(theirs, sum(chunks), context)
    ours = temporal_mixer(theirs)
    state = ours.start(1, *SIZE, window=window, sinks=sinks)
    outs = []
    for part in x.split(chunks, dim=1):
        out, state = ours.stream(part, context, state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=1), y, rtol=1e-4, atol=1e-4)


def test_refuses_more_frames_than_it_has_places_for() -> None:
    ours = MotionModule(8, heads=1, groups=2, places=6)
    with pytest.raises(InputError, match="has 6 places; got 7 frames"):
        ours(torch.zeros(1, 8, 7, 1, 1))
    with pytest.raises(InputError, match="has 6 places; got 7 frames"):
        ours.start(1, 1, 1, window=5, sinks=2)
    with pytest.raises(InputError, match="1 frame or more and 0 sinks or more; got 0, 0"):
        ours.start(1, 1, 1, window=0)
    with pytest.raises(InputError, match="a window of 2 frames takes 1 to as many; got 3"):
        ours.stream(torch.zeros(1, 8, 3, 1, 1), ours.start(1, 1, 1, window=2))
