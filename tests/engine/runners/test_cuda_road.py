"""A stream on a GPU: the same frames with and without graphs, and a host that waits for nothing.

These have not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from livereel.engine.engine import Engine
from livereel.engine.layers.attention import attention
from livereel.engine.layers.linear_gelu import linear_gelu
from livereel.engine.runners.makers import GraphedMaker
from livereel.engine.session import Session

if TYPE_CHECKING:
    from ..conftest import Ran

pytestmark = pytest.mark.gpu

PROMPT = "a red circle moving right on a blue background"
WARM = 8
"""Chunks until the window is full and each graph has been captured."""


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.load("demo", device="cuda", dtype="bfloat16")


def frames(session: Session, chunks: int) -> Any:
    return np.concatenate([chunk.frames for chunk in islice(session, chunks)])


@contextmanager
def no_waiting() -> Iterator[None]:
    """Let torch raise where an operation makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graphs_give_the_same_frames(demo: Engine) -> None:
    plain = replace(demo, runner=replace(demo.runner, graphs=False)).open(PROMPT, seed=3)
    graphed = demo.open(PROMPT, seed=3)
    assert isinstance(graphed._generator._maker, GraphedMaker)
    assert not isinstance(plain._generator._maker, GraphedMaker)
    assert np.array_equal(frames(graphed, 12), frames(plain, 12))
    for session in (plain, graphed):
        session.update(prompt="a green square moving up on a white background", recache=True)
    assert np.array_equal(frames(graphed, 6), frames(plain, 6))
    restored = demo.restore(graphed.snapshot())
    assert np.array_equal(frames(restored, 4), frames(graphed, 4))


def test_a_gpu_stream_is_close_to_the_cpu_s(demo: Engine) -> None:
    reference = Engine.load("demo", device="cpu", dtype="float32")
    ours, expected = (frames(engine.open(PROMPT, seed=3), 2) for engine in (demo, reference))
    assert np.abs(ours.astype(int) - expected).mean() < 4


def test_fp8_takes_its_kernels_and_is_close(demo: Engine, ran: Callable[[], Ran]) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no fp8")
    engine = Engine.load("demo", device="cuda", dtype="fp8")
    with ran() as steps:
        ours = frames(engine.open(PROMPT, seed=3, steps=1), 2)
    # Each block's three norms quantize what they give; three other layers their own input.
    assert steps.ops["norm_modulate_fp8"] == steps.ops["quantize_rows"] > 0
    expected = frames(demo.open(PROMPT, seed=3, steps=1), 2)
    assert np.abs(ours.astype(int) - expected).mean() < 4


def test_attention_is_cudnn_s_where_that_is_faster() -> None:
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("this GPU's fastest is torch's own choice")
    q, k, v = torch.randn(3, 1, 512, 4, 128, device="cuda").bfloat16()
    attention(q, k, v)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        y = attention(q, k, v)
    assert any("cudnn" in event.name.lower() for event in seen.events())
    wanted = attention(q.cpu().double(), k.cpu().double(), v.cpu().double())
    torch.testing.assert_close(y.cpu().double(), wanted, rtol=2e-2, atol=2e-2)


def test_gelu_is_cublas_s_and_by_tanh() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 1024, device="cuda").bfloat16()
    x = torch.randn(1, 512, 256, device="cuda").bfloat16()
    with torch.no_grad():
        linear_gelu(layer, x)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            y = linear_gelu(layer, x)
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    kernels = [event.name for event in seen.events()]
    assert not any("GeluCUDA" in name for name in kernels), kernels
    wanted = F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(y.double(), wanted, rtol=5e-3, atol=1e-3)


def test_the_host_waits_for_frames_alone_and_memory_stays(demo: Engine) -> None:
    # Large enough that the decoder is still at work when the host has begun the next chunk.
    session = demo.open(PROMPT, seed=3, width=512, height=512)
    frames(session, WARM)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen, no_waiting():
        frames(session, 20)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    calls = [event.name for event in seen.events()]
    waits = ("cudaStreamSynchronize", "cudaMemcpy", "cudaMalloc")
    assert not [name for name in calls if name in waits]
    assert calls.count("cudaDeviceSynchronize") <= 1  # the profiler's own, at its end
    assert calls.count("cudaEventSynchronize") <= 20
    assert overlap(seen) > 0


def overlap(seen: Any) -> float:
    """Microseconds in which kernels of two streams were running at once."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for event in seen.profiler.kineto_results.events():
        if "CUDA" in str(event.device_type()) and event.duration_ns() > 0:
            start = event.start_ns()
            stream = event.device_resource_id()
            spans.setdefault(stream, []).append((start, start + event.duration_ns()))
    streams = sorted(spans.values(), key=len)[-2:]
    assert len(streams) == 2, "all kernels ran in one stream"
    shared = 0.0
    for start, end in streams[0]:
        for first, last in streams[1]:
            shared += max(0, min(end, last) - max(start, first))
    return shared / 1000
