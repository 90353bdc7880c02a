from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from livereel.engine.layers.motion_module import MotionModule, TemporalAttention
from livereel.kernels.temporal_attention import (
    MASKS,
    temporal_attention,
    temporal_attention_reference,
)

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def qkv(
    t: int, s: int, size: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries, and keys and values that are slices of one projection; `size` is B, H, W, h, d."""
    b, height, width, h, d = size
    draw = torch.Generator().manual_seed(t * s + d)
    q = torch.randn(b, t, height, width, h, d, generator=draw, dtype=torch.float64)
    kv = torch.randn(b, s, height, width, 2, h, d, generator=draw, dtype=torch.float64)
    return q.to(device, dtype), *kv.to(device, dtype).unbind(4)


def wide(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, floats in fp64."""
    return {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }


@pytest.mark.parametrize("mask", MASKS)
def test_reference_is_attention_over_time_at_each_pixel(mask: str) -> None:
    q, k, v = qkv(5, 5, (2, 2, 3, 2, 8))
    i, j = torch.arange(5)[:, None], torch.arange(5)[None]
    seen = {"full": j >= 0, "causal": j <= i, "sparse_causal": (j == 0) | (j == i - 1)}[mask]
    flat = [x.permute(0, 2, 3, 4, 1, 5) for x in (q, k, v)]
    wanted = scaled_dot_product_attention(*flat, attn_mask=seen).permute(0, 4, 1, 2, 3, 5)
    torch.testing.assert_close(temporal_attention_reference(q, k, v, mask), wanted)


def test_reference_adds_positions_by_place_and_passes_over_empty_slots() -> None:
    q, k, v = qkv(2, 4, (1, 1, 2, 1, 8))
    add_k, add_v = torch.randn(2, 6, 1, 8, dtype=torch.float64)
    order = torch.tensor([[2, -1, 0, 1]], dtype=torch.int32)
    now = torch.tensor([[1, 2]], dtype=torch.int32)
    k[:, 1] = v[:, 1] = torch.nan
    out = temporal_attention_reference(q, k, v, "causal", now, order, add_k, add_v)
    places = [2, 3, 0]  # slots of the frames at places 0, 1 and 2
    k, v = k[:, places] + add_k[:3, None, None], v[:, places] + add_v[:3, None, None]
    torch.testing.assert_close(out, temporal_attention_reference(q, k, v, "causal"))


def test_reference_gives_zeros_when_nothing_is_seen() -> None:
    q, k, v = qkv(1, 2, (1, 1, 1, 1, 8))
    none = torch.full((1, 2), -1, dtype=torch.int32)
    assert temporal_attention_reference(q, k, v, k_at=none).abs().max() == 0


CASES = [
    pytest.param(1, 1, (1, 1, 1, 1, 16), "full", torch.float32, id="tiny"),
    pytest.param(5, 5, (2, 1, 5, 2, 40), "causal", torch.float32, id="odd"),
    pytest.param(3, 17, (1, 1, 3, 1, 24), "sparse_causal", torch.float32, id="stream"),
    pytest.param(18, 18, (1, 1, 2, 2, 64), "full", torch.float16, id="half"),
    pytest.param(2, 7, (1, 1, 2, 1, 80), "causal", torch.bfloat16, id="bf16"),
]
REAL = [
    pytest.param(16, 16, (2, 64, 64, 8, 40), "full", torch.float16, id="animatediff-320"),
    pytest.param(16, 16, (2, 16, 16, 8, 160), "causal", torch.bfloat16, id="animatediff-1280"),
    pytest.param(1, 24, (2, 32, 32, 8, 80), "full", torch.bfloat16, id="animatediff-stream"),
    pytest.param(25, 25, (1, 72, 128, 5, 64), "sparse_causal", torch.bfloat16, id="svd"),
    pytest.param(64, 64, (1, 9, 7, 3, 256), "full", torch.float16, id="most"),
    pytest.param(5, 9, (1, 9, 7, 3, 64), "causal", torch.float32, id="fp32"),
]
SIZES = [
    pytest.param(*case.values, id=case.id, marks=mark)
    for mark, cases in ((pytest.mark.interpreter, CASES), (pytest.mark.gpu, REAL))
    for case in cases
]


@pytest.mark.parametrize(("t", "s", "size", "mask", "dtype"), SIZES)
def test_equals_the_reference_in_fp64(
    t: int, s: int, size: tuple[int, int, int, int, int], mask: str, dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    q, k, v = qkv(t, s, size, dtype, device)
    out = temporal_attention(q, k, v, mask)
    truth = temporal_attention_reference(q.double(), k.double(), v.double(), mask)
    assert out.dtype == dtype and out.is_contiguous()
    torch.testing.assert_close(out.double(), truth, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize(("t", "s", "size", "mask", "dtype"), SIZES)
def test_reads_slots_in_any_order_and_adds_positions(
    t: int, s: int, size: tuple[int, int, int, int, int], mask: str, dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    """Sessions of different fill; slots that hold nothing are poisoned."""
    q, k, v = qkv(t, s, size, dtype, device)
    b, h, d = size[0], *size[3:]
    places = torch.stack([torch.randperm(s) for _ in range(b)]).int()
    if s > t:
        places[0] = torch.where(places[0] < s - 1, places[0], -1)
    for i in range(b):
        k[i, (places[i] < 0).to(device)] = v[i, (places[i] < 0).to(device)] = torch.nan
    now = (places.amax(1, keepdim=True) - torch.arange(t - 1, -1, -1)).int()
    arguments = {
        "q": q, "k": k, "v": v, "mask": mask, "q_at": now.to(device), "k_at": places.to(device),
        "k_add": torch.randn(s + 1, h, d).to(device, dtype),
        "v_add": torch.randn(s + 1, h, d).to(device, dtype),
    }  # fmt: skip
    out = temporal_attention(**arguments)
    truth = temporal_attention_reference(**wide(arguments))
    close = 2 * CLOSE[dtype]  # keys and values are rounded once more
    torch.testing.assert_close(out.double(), truth, rtol=close, atol=close)


@pytest.mark.interpreter
def test_keeps_the_rules_of_custom_ops() -> None:
    q, k, v = qkv(2, 3, (1, 1, 2, 1, 16), torch.float32)
    at = torch.tensor([[2, -1, 0]], dtype=torch.int32)
    add = torch.randn(3, 1, 16)
    torch.library.opcheck(temporal_attention, (q, k, v, "causal", at[:, :2].contiguous(), at, add))
    torch.library.opcheck(temporal_attention, (q, k, v))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_run() -> None:
    q, k, v = qkv(2, 3, (1, 2, 2, 1, 16), torch.float32)
    for changed, words in (
        ({"mask": "none"}, "wants a mask among full, causal, sparse_causal; got 'none'"),
        ({"q": q.double()}, "bfloat16, float16 or float32; got float64"),
        ({"k": k.transpose(2, 3)}, "wants k .* pixels evenly spaced"),
        ({"v": v.contiguous()}, "wants v .* with k's strides"),
        ({"k": k[:, :2]}, r"wants v \[1, 2, 2, 2, 1, 16\]"),
        ({"k": torch.empty(1, 65, 2, 2, 1, 16)}, r"1 to 64 frames .* \[1, 65, 2, 2, 1, 16\]"),
        ({"k_at": torch.zeros(1, 3)}, r"wants k_at int32 \[1, 3\], contiguous; got float32"),
        ({"v_add": torch.zeros(3, 2, 16)}, r"wants v_add \[P, 1, 16\] of q's dtype"),
    ):
        with pytest.raises(ValueError, match=words):
            temporal_attention(**{"q": q, "k": k, "v": v, **changed})


class Recorded(TorchDispatchMode):
    """The names of the project's own ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "livereel":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "road",
    [pytest.param("reference"), pytest.param("triton", marks=pytest.mark.interpreter),
     pytest.param("triton", marks=pytest.mark.gpu)],
)  # fmt: skip
@torch.inference_mode()
def test_motion_modules_take_the_road_they_are_given(road: Any, device: torch.device) -> None:
    torch.manual_seed(0)
    module = MotionModule(16, heads=2, groups=2, places=6).to(device)
    state = module.start(1, 1, 2, window=3, sinks=1)
    x = torch.randn(1, 16, 2, 1, 2, device=device)
    wanted, _ = module.stream(x, state)
    for layer in module.modules():
        if isinstance(layer, TemporalAttention):
            layer.road = road
    with Recorded() as ran:
        out, _ = module.stream(x, state)
    assert ran.names == (["temporal_attention"] * 2 if road == "triton" else [])
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)
