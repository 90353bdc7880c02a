"""The ops' twins: what torch sees of them without a GPU, and on one the same results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from livereel.kernels.causal_conv3d import causal_conv3d
from livereel.kernels.chunk_attention import Run, chunk_attention, run_tables
from livereel.kernels.gate_residual import gate_residual
from livereel.kernels.group_norm_silu import group_norm_silu
from livereel.kernels.norm_modulate import norm_modulate
from livereel.kernels.qk_norm_rope import qk_norm_rope, time_pairs
from livereel.kernels.residual_norm import residual_norm
from livereel.kernels.rms_norm_silu import rms_norm_silu
from livereel.kernels.spatial_norm import spatial_norm
from livereel.kernels.twins import with_twins
from livereel.kernels.upsample2x_conv import upsample2x_conv

Draw = Callable[..., Tensor]
Launches = Callable[[torch.fx.Graph], list[tuple[str, list[str]]]]


def drawn(device: str) -> Draw:
    def draw(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(sizes, device=device, dtype=torch.float32).to(dtype)

    return draw


def modulations(draw: Draw, count: int) -> list[Tensor]:
    return [draw(1, 1, 1, 128, dtype=torch.float32) for _ in range(count)]


def conv(draw: Draw, channels: int) -> tuple[Any, ...]:
    weight = draw(channels, channels, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    x, past = draw(1, 4, 8, 17, channels), draw(1, 2, 8, 17, channels)
    residual, gain = draw(1, 4, 8, 17, channels), draw(channels)
    return x, past, weight, draw(channels), residual, gain, 1, 1, 1, True, True


def norm_rope(draw: Draw) -> tuple[Any, ...]:
    pairs, width = time_pairs(64), torch.float32
    time, space = draw(1, 2, pairs, 2, dtype=width), draw(8, 32 - pairs, 2, dtype=width)
    slots = draw(1, 2).int() * 0 + torch.arange(3, 5, device=time.device, dtype=torch.int32)
    ring = draw(2, 1, 5, 8, 2, 64)
    q, k, v = draw(3, 1, 16, 128)
    return q, k, v, draw(128), draw(128), time, space, slots, ring[0].clone(), ring[1].clone(), 1e-6


def attention(draw: Draw) -> tuple[Any, ...]:
    q, k, v = draw(1, 16, 2, 64), draw(1, 5, 8, 2, 64), draw(1, 5, 8, 2, 64)
    runs, _ = run_tables([[[Run(0, 2), Run(3, 2)]]], time_pairs(64))
    return q, k, v, runs.to(q.device), None, 16


STATISTICS = [("_moments_kernel", ["p_moments"]), ("_combine_kernel", ["p_stats"])]
CALLS: dict[str, tuple[Any, Callable[[Draw], tuple[Any, ...]], list[Any]]] = {
    "norm_modulate": (
        norm_modulate,
        lambda draw: (draw(1, 2, 8, 128), *modulations(draw, 2), 1e-6, 1.0),
        [("_norm_modulate_kernel", ["p_out"])],
    ),
    "gate_residual": (
        gate_residual,
        lambda draw: (draw(1, 2, 8, 128), draw(1, 2, 8, 128), *modulations(draw, 1)),
        [("_gate_residual_kernel", ["p_out"])],
    ),
    "residual_norm": (
        residual_norm,
        lambda draw: (draw(1, 2, 8, 128), draw(1, 2, 8, 128), *modulations(draw, 3), 1e-6, 1.0),
        [("_residual_norm_kernel", ["p_sum", "p_out"])],
    ),
    "qk_norm_rope": (
        qk_norm_rope,
        norm_rope,
        [("_qk_norm_rope_kernel", ["p_out", "p_k_ring", "p_v_ring"])],
    ),
    "chunk_attention": (chunk_attention, attention, [("_chunk_attention_kernel", ["p_out"])]),
    "causal_conv3d": (
        causal_conv3d,
        lambda draw: conv(draw, 96),
        [("_causal_conv3d_kernel", ["p_y", "p_activated"])],
    ),
    "a wide causal_conv3d": (
        causal_conv3d,
        lambda draw: conv(draw, 256),
        [("_causal_conv3d_kernel", ["p_y"]), ("_rms_norm_silu_kernel", ["p_out"])],
    ),
    "rms_norm_silu": (
        rms_norm_silu,
        lambda draw: (draw(1, 2, 8, 9, 96), draw(96)),
        [("_rms_norm_silu_kernel", ["p_out"])],
    ),
    "upsample2x_conv": (
        upsample2x_conv,
        lambda draw: (draw(1, 2, 8, 9, 96), draw(4, 64, 2, 2, 96), draw(64), draw(64), True, True),
        [("_upsample2x_conv_kernel", ["p_y", "p_activated"])],
    ),
    "group_norm_silu": (
        group_norm_silu,
        lambda draw: (draw(1, 2, 8, 9, 64), draw(64), draw(64), 8, 1e-6, True),
        [*STATISTICS, ("_group_norm_silu_kernel", ["p_out"])],
    ),
    "spatial_norm": (
        spatial_norm,
        lambda draw: (
            draw(1, 2, 8, 9, 64),
            draw(1, 1, 4, 4, 128),
            draw(64),
            draw(64),
            8,
            1e-6,
            True,
        ),
        [*STATISTICS, ("_spatial_norm_kernel", ["p_out"])],
    ),
}
"""An op, its arguments, and the kernels that it launches with what these write."""


class Called(nn.Module):
    """An op with its tensors as inputs; what it changes comes out too."""

    def __init__(self, op: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.op, self.arguments = op, arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter([x.clone() for x in tensors])
        arguments = [next(given) if isinstance(x, Tensor) else x for x in self.arguments]
        made = self.op(*arguments)
        results = (made,) if isinstance(made, Tensor) else made
        return (*results, *(arguments[8:10] if self.op is qk_norm_rope else ()))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x for x in self.arguments if isinstance(x, Tensor))


class Every(nn.Module):
    """All of them in one graph."""

    def __init__(self, calls: list[Called]) -> None:
        super().__init__()
        self.calls = nn.ModuleList(calls)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for call in self.calls:
            own, tensors = tensors[: len(call.tensors)], tensors[len(call.tensors) :]
            results += call(*own)
        return tuple(x for x in results if x.numel())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x for call in self.calls for x in call.tensors)


@pytest.mark.compile
@pytest.mark.usefixtures("hopper")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_torch_sees_what_a_twin_launches(name: str, launches: Launches) -> None:
    op, arguments, kernels = CALLS[name]
    called = Called(op, arguments(drawn("cuda")))
    program = torch.export.export(called, called.tensors, strict=False)
    assert "livereel" in str(program.graph)
    decomposed = with_twins(program).run_decompositions({}, decompose_custom_triton_ops=True)
    assert launches(decomposed.graph) == kernels
    others = [node.target for node in decomposed.graph.nodes if node.op == "call_function"]
    # What is not a kernel only makes memory, or copies.
    assert {str(x).partition(".")[2] for x in others if isinstance(x, torch._ops.OpOverload)} <= {
        "clone.default", "empty.memory_format", "empty_like.default", "new_empty.default",
        "slice.Tensor",
    }  # fmt: skip


@pytest.mark.compile
@pytest.mark.parametrize(
    "name",
    ["norm_modulate", "residual_norm", "qk_norm_rope", "group_norm_silu", "chunk_attention",
     "linear_fp8", "temporal_attention"],
)  # fmt: skip
def test_numbers_of_64_bits_are_computed_with_in_32(name: str) -> None:
    """A compiled package passes a kernel's floats as such."""
    ready = import_module(f"livereel.kernels.{name}").SHIPPED
    one = next(x for x in ready if "fp32" in x.signature.values())
    wide = {key: "fp64" if kind == "fp32" else kind for key, kind in one.signature.items()}
    assert not replace(one, signature=wide).compile(90).count("^D(ADD|MUL|FMA)")


@pytest.mark.gpu
def test_twins_that_were_compiled_equal_their_ops(tmp_path: Path) -> None:
    """In one package; what is compiled holds the kernels by name."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package, config

    torch.manual_seed(0)
    every = Every([Called(op, arguments(drawn("cuda"))) for op, arguments, _ in CALLS.values()])
    with torch.no_grad(), config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        program = with_twins(torch.export.export(every, every.tensors, strict=False))
        file = aoti_compile_and_package(program, package_path=str(tmp_path / "twins.pt2"))
    loaded = aoti_load_package(file)
    wanted = every(*every.tensors)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        ours = loaded(*every.tensors)
    assert len(ours) == len(wanted)
    for x, y in zip(ours, wanted, strict=True):
        torch.testing.assert_close(x, y)
    ran = " ".join(event.name for event in seen.events())
    for _, _, kernels in CALLS.values():
        assert all(kernel in ran for kernel, _ in kernels)
