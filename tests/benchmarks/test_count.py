"""The counts against torch's own counter on small models, and at full size against known totals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, CogVideoXTransformer3DModel, WanTransformer3DModel
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livereel.benchmarks.count import DECODE, DIRECT, TINY, Counted, Step, Work, count, work_of
from livereel.benchmarks.models import Model, Part, find
from livereel.engine.config import DEFAULT_SELF_FORCING
from livereel.engine.errors import InputError

STREAM = replace(
    DEFAULT_SELF_FORCING, width=64, height=32, window=6, max_sequence_length=7, timesteps=(1000.0,)
)
WAN: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
    freq_dim=32, ffn_dim=64, num_layers=3,
)  # fmt: skip
WAN_VAE: dict[str, Any] = dict(
    base_dim=8, z_dim=4, dim_mult=(1, 2, 2, 2), latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
)
COGVIDEOX: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, time_embed_dim=16,
    text_embed_dim=12, num_layers=2, sample_width=8, sample_height=4, sample_frames=9,
    max_text_seq_length=7,
)  # fmt: skip
TINY_WAN = Model(
    transformer=Part(class_name="WanTransformer3DModel", config=WAN),
    vae=Part(class_name="AutoencoderKLWan", config=WAN_VAE),
    frames=9,
)


def counted(model: Model = TINY_WAN, *, frames: int = 9, **changes: Any) -> Counted:
    options: dict[str, Any] = dict(size=(64, 32), stream=STREAM, steps=2, dtype=torch.bfloat16)
    return count(model, frames=frames, **(options | changes))


def flops(steps: tuple[Step, ...], name: str) -> int:
    (found,) = (step for step in steps if step.name == name)
    return sum(found.work.flops.values())


def theirs(job: Any) -> int:
    # torch's counter does not know its own fused attention on CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        job()
    return int(counter.get_total_flops())


def test_products_are_counted_by_kind() -> None:
    x, w, b = torch.empty(5, 3, 4), torch.empty(7, 4), torch.empty(7)
    video, taps = torch.empty(2, 3, 4, 5, 6), torch.empty(8, 3, 3, 3, 3)
    q, k = torch.empty(1, 2, 9, 16), torch.empty(1, 2, 11, 16)

    def job() -> None:
        F.linear(x, w, b).relu()
        F.conv3d(video, taps, padding=1)
        F.scaled_dot_product_attention(q, k, k)

    work = work_of(job)
    assert work.flops == {
        "linear": 2 * 15 * 4 * 7,
        "convolution": 2 * (2 * 8 * 4 * 5 * 6) * 3 * 27,
        "attention": 2 * 2 * 2 * 9 * 11 * 16,
    }
    assert work.moved == {
        "linear": 4 * (15 * 4 + 7 * 4 + 7 + 15 * 7),
        "convolution": 4 * (video.numel() + taps.numel() + 2 * 8 * 4 * 5 * 6),
        "attention": 4 * (2 * q.numel() + 2 * k.numel()),
    }
    assert sum(work.flops.values()) == theirs(job)


def test_units() -> None:
    work = Work(flops={"linear": 3 * 10**12, "attention": 10**12}, moved={"linear": 5 * 10**9})
    assert (work.tflop, work.gigabytes) == (4.0, 5.0)


def test_a_wan_clip_is_what_torch_counts_of_diffusers() -> None:
    found = counted()
    dit = WanTransformer3DModel(**WAN)
    latents, text = torch.zeros(1, 4, 3, 4, 8), torch.zeros(1, 7, 12)
    assert flops(found.clip, "DiT pass") == theirs(lambda: dit(latents, torch.ones(1), text))
    vae = AutoencoderKLWan(**(WAN_VAE | {"dim_mult": [1, 2, 2, 2]}))
    assert flops(found.clip, DIRECT) == theirs(lambda: vae.decode(latents))
    assert flops(found.clip, DECODE) < flops(found.clip, DIRECT)


def test_a_cogvideox_clip_is_what_torch_counts_of_diffusers() -> None:
    model = Model(
        transformer=Part(class_name="CogVideoXTransformer3DModel", config=COGVIDEOX),
        vae=Part(
            class_name="AutoencoderKLCogVideoX",
            config=dict(
                block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
                norm_num_groups=4,
            ),
        ),
        frames=9,
    )  # fmt: skip
    found = counted(model)
    dit = CogVideoXTransformer3DModel(**COGVIDEOX)
    latents, text = torch.zeros(1, 3, 4, 4, 8), torch.zeros(1, 7, 12)
    ours = flops(found.clip, "DiT pass")
    assert ours == theirs(lambda: dit(latents, text, torch.ones(1, dtype=torch.long)))
    # It looks at six latent frames anew in each pass, and keeps nothing that would take another.
    assert [step.name for step in found.chunk] == ["DiT pass", DECODE, TINY]
    assert flops(found.chunk, "DiT pass") > ours


def test_a_chunk_is_what_the_cached_passes_take() -> None:
    found = counted()
    passes, cache, *_ = found.chunk
    assert (passes.name, passes.times, cache.name, cache.times) == ("DiT pass", 2, "cache pass", 1)
    # Three frames of 8 tokens see six; each sees 7 words.
    scores = 24 * 48 + 24 * 7
    assert passes.work.flops["attention"] == 3 * 4 * scores * 48
    assert cache.work.flops["attention"] == 2 * 4 * scores * 48
    assert found.ring == 2 * 3 * 6 * 8 * 48 * 2


def test_weights_are_counted_in_their_dtypes() -> None:
    half, full = counted(), counted(dtype=torch.float32)
    assert half.weights["VAE"] * 2 == full.weights["VAE"]
    assert half.weights["DiT"] * 2 > full.weights["DiT"] > half.weights["DiT"]


def test_the_table_has_a_line_for_each_stage() -> None:
    lines = str(counted()).splitlines()
    assert lines[0].startswith("weights: DiT 0.00 GB")
    assert lines[2] == "clip of 9 frames (3 latent)"
    assert [line[2:35].strip() for line in lines[8:]] == [
        "DiT pass, each of 2", "cache pass", DECODE, TINY, "chunk in all, with the VAE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(size=(60, 32)), "60x32 does not fit.*multiples of 16"),
        (dict(size=(0, 32)), "0x32 does not fit"),
        (dict(size=(160_000, 32)), "at most"),
        (dict(frames=8), "clip of 8 frames does not fit.*1 \\+ a multiple of 4"),
        (dict(size=(8192, 8192), frames=41), "tokens; at most"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        counted(**changes)


KNOWN = {"wan2.1-1.3b": 283.0, "wan2.1-14b": 1678, "cogvideox-2b": 120.0, "cogvideox-5b": 332.2}


@pytest.mark.parametrize(
    "name",
    [
        "wan2.1-1.3b",
        *(pytest.param(name, marks=pytest.mark.slow) for name in KNOWN if name != "wan2.1-1.3b"),
    ],
)
def test_known_totals_at_full_size(name: str) -> None:
    model = find(name)
    size = (model.stream.width, model.stream.height)
    found = count(
        model, size=size, frames=model.frames, stream=model.stream, steps=4, dtype=torch.bfloat16
    )
    assert flops(found.clip, "DiT pass") / 1e12 == pytest.approx(KNOWN[name], rel=5e-4)
    if name == "wan2.1-1.3b":
        assert flops(found.clip, DIRECT) / 1e12 == pytest.approx(275.4, rel=5e-4)
        assert flops(found.clip, TINY) / 1e12 == pytest.approx(21 * 0.544, rel=2e-3)
        assert flops(found.chunk, "DiT pass") / 1e12 == pytest.approx(40.41, rel=5e-4)
