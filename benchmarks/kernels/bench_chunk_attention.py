"""A chunk's attention to the KV ring at the shapes of Wan, against cuDNN's and FlashAttention-2.

Keys lie rotated in the ring. Where all that is seen is one run of slots, peers read it in place as
we do; where there are sinks, peers must rotate those to where they are to look from and put them
before the window, which is part of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from livereel.kernels.chunk_attention import Run, chunk_attention, run_tables
from livereel.kernels.qk_norm_rope import rotate_pairs, time_pairs

from .harness import Case, Contender, main

HEAD = 128
CHUNK = 3
SIZES = (
    ("Wan 1.3B 832x480", 12, 1560, 9, 0),
    ("Wan 1.3B 832x480", 12, 1560, 21, 0),
    ("Wan 1.3B 832x480", 12, 1560, 9, 3),
    ("Wan 1.3B 1280x720", 12, 3600, 9, 0),
    ("Wan 1.3B 1280x720", 12, 3600, 21, 0),
    ("Wan 14B 832x480", 40, 1560, 9, 0),
    ("Wan 14B 832x480", 40, 1560, 21, 0),
    ("Wan 14B 832x480", 40, 1560, 9, 3),
    ("Wan 14B 1280x720", 40, 3600, 9, 0),
    ("Wan 14B 1280x720", 40, 3600, 21, 0),
)
"""Model and picture, heads, tokens of a latent frame, window and sinks in latent frames. A chunk is
three latent frames, part of the window."""

PEERS = (
    ("cuDNN", SDPBackend.CUDNN_ATTENTION),
    ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
)
EXACT = SDPBackend.EFFICIENT_ATTENTION
"""What computes the truth, in fp32, without the memory for all scores."""

Size = tuple[str, int, int, int, int]


def cases(device: torch.device, sizes: Sequence[Size] = SIZES) -> Iterator[Case]:
    """Each size, its window full."""
    for size in sizes:
        yield _case(device, *size)


def _case(
    device: torch.device, model: str, heads: int, tokens: int, window: int, sinks: int
) -> Case:
    q = torch.randn(1, CHUNK * tokens, heads, HEAD, device=device).bfloat16()
    k, v = torch.randn(2, 1, sinks + window, tokens, heads, HEAD, device=device).bfloat16()
    blocks = [Run(0, sinks, 100), Run(sinks, window)] if sinks else [Run(0, window)]
    runs, shifts = (table.to(device) for table in run_tables([[blocks]], time_pairs(HEAD)))

    def attention(backend: SDPBackend, dtype: torch.dtype) -> Tensor:
        keys = _placed(k, sinks, shifts) if sinks else k
        rows = [x.flatten(1, -3).transpose(1, 2).to(dtype) for x in (q, keys, v)]
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(rows[0], rows[1], rows[2]).transpose(1, 2)

    def ours() -> Tensor:
        out: Tensor = chunk_attention(q, k, v, runs, shifts if sinks else None, q.shape[1])
        return out

    settings = "bf16, forced, " + ("sinks rotated and put in front" if sinks else "ring in place")
    kept = f"window {window}" + (f" and {sinks} sinks" if sinks else "")
    return Case(
        op="chunk_attention",
        shape=f"{model}, {kept}: {q.shape[1]} x {k.shape[1] * tokens}, {heads} heads",
        truth=lambda: attention(EXACT, torch.float32),
        tolerance=0.02,
        ours=Contender(name="livereel", settings="bf16, ring in place", run=ours),
        others=tuple(
            Contender(name=name, settings=settings, run=_run(attention, backend))
            for name, backend in PEERS
        ),
        flops=4 * q.shape[1] * k.shape[1] * tokens * heads * HEAD,
        least_ratio=0.95,
    )


def _run(
    attention: Callable[[SDPBackend, torch.dtype], Tensor], backend: SDPBackend
) -> Callable[[], Tensor]:
    return partial(attention, backend, torch.bfloat16)


def _placed(k: Tensor, sinks: int, shifts: Tensor) -> Tensor:
    """The ring's keys, its sinks rotated forward as far as `shifts` turns queries back."""
    pairs = shifts.shape[3]
    turns = shifts[0, 0, 0] * shifts.new_tensor([1.0, -1.0])
    near = rotate_pairs(k[:, :sinks, ..., : 2 * pairs], turns).to(k.dtype)
    return torch.cat((torch.cat((near, k[:, :sinks, ..., 2 * pairs :]), -1), k[:, sinks:]), 1)


if __name__ == "__main__":
    raise SystemExit(main("chunk_attention", cases))
