"""What tests of the engine share: counting ops, kernels' references, block-causal diffusers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


class Ran(TorchDispatchMode):
    """Counts LiveReel's ops, by name, and torch's convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("livereel::")
        if func.namespace == "livereel":
            self.ops[name] += 1
        else:
            self.convolutions += "conv" in name
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def ran() -> Callable[[], Ran]:
    """Makes a context that counts the ops run in it."""
    return Ran


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The triton road's modules with each kernel's reference in its place: fast, on any machine."""
    from livereel.engine.models.wan import fused_vae, in_ring, ring_step
    from livereel.engine.runners import torch as runner

    for module, names in (
        (
            in_ring,
            ("norm_modulate", "gate_residual", "residual_norm", "qk_norm_rope", "chunk_attention"),
        ),
        (ring_step, ("qk_norm_rope", "chunk_attention")),
        (fused_vae, ("causal_conv3d", "upsample2x_conv", "rms_norm_silu")),
        (runner, ("to_pixels",)),
    ):
        for name in names:
            kernel = import_module(f"livereel.kernels.{name}")
            monkeypatch.setattr(module, name, getattr(kernel, f"{name}_reference"))


class BlockCausalAttention:
    """An attention processor for diffusers' attn1: each token sees its own chunk and earlier ones.

    Written from the definition: all keys, a mask, complex rotation. `chunks` are latent frames of
    `tokens` each; `past` is how many frames before its own a chunk sees (None: all).
    """

    def __init__(self, chunks: Sequence[int], tokens: int, past: int | None) -> None:
        lengths = torch.tensor(chunks)
        first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths * tokens)
        frame = torch.arange(sum(chunks)).repeat_interleave(tokens)
        oldest = torch.zeros_like(first) if past is None else first - past
        self.mask = (first[:, None] >= first[None, :]) & (oldest[:, None] <= frame[None, :])

    def __call__(
        self, attn: Any, hidden: torch.Tensor, encoder_hidden_states: Any = None,
        attention_mask: Any = None, rotary_emb: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (attn.heads, -1))

        q, k = heads(attn.norm_q(attn.to_q(hidden))), heads(attn.norm_k(attn.to_k(hidden)))
        y = self.attend(q, k, heads(attn.to_v(hidden)), rotary_emb)
        return attn.to_out[0](y.flatten(2))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Any
    ) -> torch.Tensor:
        """`[B, tokens, h, d]`, not rotated, to the same shape."""
        return attend(turn(q, rotary), turn(k, rotary), v, self.mask)


class SparsePastAttention(BlockCausalAttention):
    """The same where a chunk sees only some earlier frames, as if there were no others: `seen` has
    each chunk's list of them, whose places are their positions; the chunk's own follow on."""

    def __init__(self, chunks: Sequence[int], tokens: int, seen: Sequence[Sequence[int]]) -> None:
        self.chunks, self.tokens, self.seen = chunks, tokens, seen

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Any
    ) -> torch.Tensor:
        parts, first = [], 0
        for length, seen in zip(self.chunks, self.seen, strict=True):
            frames = [*seen, *range(first, first + length)]
            rows = torch.cat([torch.arange(self.tokens) + f * self.tokens for f in frames])
            own = rows[-length * self.tokens :]
            places = [angles[:, : len(rows)] for angles in rotary]
            last = [angles[:, -len(own) :] for angles in places]
            parts.append(attend(turn(q[:, own], last), turn(k[:, rows], places), v[:, rows], None))
            first += length
        return torch.cat(parts, dim=1)


def turn(x: torch.Tensor, rotary: Any) -> torch.Tensor:
    """Rotate `[B, tokens, h, d]` by diffusers' cosines and sines."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    angle = torch.complex(rotary[0][..., 0::2].double(), rotary[1][..., 1::2].double())
    return torch.view_as_real(pairs * angle).flatten(-2).to(x.dtype)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@pytest.fixture(scope="session")
def block_causal() -> Callable[..., None]:
    """Makes a diffusers transformer block-causal; arguments as of `BlockCausalAttention`."""

    def change(
        model: WanTransformer3DModel, chunks: Sequence[int], tokens: int, past: int | None = None
    ) -> None:
        for block in model.blocks:
            block.attn1.set_processor(BlockCausalAttention(chunks, tokens, past))

    return change


@pytest.fixture(scope="session")
def sparse_past() -> Callable[..., None]:
    """The same for `SparsePastAttention`."""

    def change(
        model: WanTransformer3DModel,
        chunks: Sequence[int],
        tokens: int,
        seen: Sequence[Sequence[int]],
    ) -> None:
        for block in model.blocks:
            block.attn1.set_processor(SparsePastAttention(chunks, tokens, seen))

    return change
