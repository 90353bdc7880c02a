"""A VAE on Triton's kernels as a module, whose tensors torch can trace, move and name.

Shapes: as in `livereel.engine.types.VAE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from livereel.engine.layers.causal_conv import ConvCaches
    from livereel.engine.types import VAE


@dataclass(frozen=True)
class _Held:
    """A tensor: the buffer's name, and where each of its dims is in the buffer."""

    name: str
    dims: tuple[int, ...]


class HeldVAE(nn.Module):
    """`vae.encode` and `decode` of a VAE that is no module.

    The tensors of its layers are buffers here, without gaps as they lie in memory, and are put in
    the layers' places while they run.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self._fused = vae
        self._places: list[tuple[object, str, Any]] = []
        self._take(vae, "held")

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.decode`."""
        with self._given():
            return self._fused.decode(latents, caches)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.encode`."""
        with self._given():
            return self._fused.encode(frames, caches)

    @contextmanager
    def _given(self) -> Iterator[None]:
        """The layers with this module's tensors."""
        before = [getattr(owner, name) for owner, name, _ in self._places]
        try:
            for owner, name, value in self._places:
                setattr(owner, name, self._made(value))
            yield
        finally:
            for (owner, name, _), value in zip(self._places, before, strict=True):
                setattr(owner, name, value)

    def _made(self, value: Any) -> Any:
        if isinstance(value, _Held):
            return self.get_buffer(value.name).permute(value.dims)
        return tuple(map(self._made, value)) if isinstance(value, tuple) else value

    def _take(self, value: Any, name: str) -> Any:
        """What stands for `value`, which layers or tensors may be in."""
        if isinstance(value, Tensor):
            return self._hold(value, name)
        if isinstance(value, (list, tuple)):
            return type(value)(self._take(x, f"{name}_{i}") for i, x in enumerate(value))
        if isinstance(value, nn.Module):
            if all(value is not known for known in self.modules()):
                self.add_module(name, value)
        elif type(value).__module__.startswith("livereel."):
            for key, own in list(vars(value).items()):
                stands = self._take(own, f"{name}_{key.strip('_')}")
                if isinstance(own, (Tensor, tuple)):
                    self._places.append((value, key, stands))
        return value

    def _hold(self, x: Tensor, name: str) -> _Held:
        order = sorted(range(x.ndim), key=lambda dim: -x.stride()[dim])
        self.register_buffer(name, x.detach().permute(order).contiguous())
        return _Held(name, tuple(order.index(dim) for dim in range(x.ndim)))
