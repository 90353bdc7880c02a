"""A loaded model on the ranks of a group, for `Engine` and its sessions to use as any other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ..runners.torch import TorchRunner
from .banded import in_turns
from .guidance import SpreadDenoiser
from .pipeline import PipelineRunner

if TYPE_CHECKING:
    from torch import Tensor

    from ..runners.runner import Runner
    from ..types import ClipTransformer
    from .group import Group


def spread(runner: Runner, group: Group, *, streams: bool) -> Runner:
    """What each rank of `group` puts in its engine's place of `runner`, the same model on all.

    All ranks then make the same calls with the same arguments, and rank 0 alone has the frames. If
    the model `streams`, its chunks flow through the ranks (`pipeline.py`). Otherwise the ranks
    share each pass over a whole clip (`guidance.py`, `sequence.py`), and then its frames
    (`time_split.py`).
    """
    if streams:
        return cast("Runner", PipelineRunner(runner, group))
    assert isinstance(runner, TorchRunner)  # packages hold models that stream
    low, vae = runner.low_noise, in_turns(runner.vae, group)
    return replace(
        runner,
        transformer=_over(group, runner.transformer),
        low_noise=None if low is None else _over(group, low),
        vae=vae,
        parts_at_once=1 if vae is runner.vae else group.size,
    )


def _over(group: Group, transformer: ClipTransformer) -> ClipTransformer:
    return cast("ClipTransformer", _SpreadTransformer(transformer, group))


class _SpreadTransformer:
    """A `ClipTransformer` whose passes over whole clips are run on all ranks."""

    def __init__(self, transformer: Any, group: Group) -> None:
        self._transformer = transformer
        self._denoiser = SpreadDenoiser(transformer, group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None
    ) -> Tensor:
        return self._denoiser(latents, timestep, text, image)
