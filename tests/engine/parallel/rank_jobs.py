"""What tests have ranks do. Ranks import this by its file's name, from a folder on their path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from livereel.engine import Engine, InputError
from livereel.engine.cli.signals import StopSignals
from livereel.engine.layers.causal_conv import CacheTape
from livereel.engine.models.cogvideox.config import CogVideoXTransformerConfig
from livereel.engine.models.cogvideox.transformer import CogVideoXTransformer
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.parallel.group import Exchange, Group
from livereel.engine.parallel.guidance import SpreadDenoiser
from livereel.engine.parallel.spread import spread
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.types import Chunk


def who(group: Group) -> tuple[int, int, int, int]:
    return os.getpid(), group.rank, group.size, torch.get_num_threads()


def die(group: Group, rank: int) -> None:
    """End as the kernel ends processes, while the others wait."""
    if group.rank == rank:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    group.gather(torch.zeros(1), 0, [1] * group.size)


def refuse(group: Group, rank: int) -> None:
    """Raise on one rank, while the others wait."""
    if group.rank == rank:
        raise InputError("width is 7; wanted a multiple of 16")
    group.gather(torch.zeros(1), 0, [1] * group.size)


def err(group: Group) -> None:
    raise ValueError("a mistake of ours")


def wait_for_stop(group: Group, ready: str) -> str:
    """What `generate` does at Ctrl-C, on the first rank; others would wait for it."""
    if group.rank:
        group.exchange({}, {0: torch.empty(1)}).wait()
    try:
        with StopSignals():
            Path(ready).touch()
            time.sleep(60)
    except KeyboardInterrupt:
        return "stopped"
    return "not stopped"


def trade(group: Group) -> bool:
    """Parts of uneven sizes, some of them empty, to all and from all."""
    rank, size = group.rank, group.size
    rows = [2, 0, 3, 1][:size]
    sent = [torch.full((rows[rank], to + 1), 10.0 * rank + to) for to in range(size)]
    came = group.all_to_all(sent, [(rows[source], rank + 1) for source in range(size)])
    right = [torch.full((rows[s], rank + 1), 10.0 * s + rank) for s in range(size)]
    whole = group.gather(sent[rank][:, :1], 0, rows)
    kept = torch.cat([torch.full((rows[s], 1), 11.0 * s) for s in range(size)])
    return all(map(torch.equal, came, right)) and torch.equal(whole, kept)


def share_pass(group: Group, ranks: int, kind: str, case: dict[str, Any]) -> float | str | None:
    """The largest difference of a pass on so many ranks from one on this rank alone."""
    part = group.part(*range(ranks))
    if part is None:
        return None
    model, inputs = make_model(kind, **case)
    try:
        with torch.inference_mode():
            spread_out = SpreadDenoiser(model, part)(*inputs)
            alone = model(*inputs)
    except InputError as error:
        return str(error)
    assert spread_out.shape == alone.shape
    return float((spread_out - alone).abs().max())


def send_pass(group: Group, kind: str, case: dict[str, Any]) -> int:
    """Bytes that this rank sends for a pass."""
    model, inputs = make_model(kind, **case)
    sent = [0]

    class Counting(Group):
        def exchange(self, given: Mapping[int, Tensor], taken: Mapping[int, Tensor]) -> Exchange:
            sent[0] += sum(x.numel() * x.element_size() for x in given.values())
            return super().exchange(given, taken)

        def part(self, *places: int) -> Group | None:
            part = super().part(*places)
            return None if part is None else Counting(part.rank, part.ranks, part.device)

    counting = Counting(group.rank, group.ranks, group.device)
    with torch.inference_mode():
        SpreadDenoiser(model, counting)(*inputs)
    return sent[0]


def make_model(
    kind: str, *, heads: int, frames: int, side: tuple[int, int], batch: int, timed: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(heads)
    model: Any
    if kind == "wan":
        model = WanTransformer(
            WanTransformerConfig(
                num_attention_heads=heads, attention_head_dim=12, in_channels=4, out_channels=4,
                text_dim=10, freq_dim=16, ffn_dim=32, num_layers=2,
            )
        )  # fmt: skip
    else:
        cog = {"rotary": {}, "waves": {}, "1.5": {"patch_size_t": 2}}[kind]
        model = CogVideoXTransformer(
            CogVideoXTransformerConfig(
                num_attention_heads=heads, attention_head_dim=16, in_channels=4, out_channels=4,
                time_embed_dim=12, text_embed_dim=10, num_layers=2, sample_width=8,
                sample_height=8, sample_frames=9, max_text_seq_length=5,
                use_rotary_positional_embeddings=kind != "waves", **cog,
            )
        )  # fmt: skip
        frames *= 2 if kind == "1.5" else 1
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    latents = torch.randn(batch, 4, frames, 2 * side[0], 2 * side[1])
    times = torch.rand(batch, frames if timed else 1) * 999
    return model.eval(), (latents, times, torch.randn(batch, 5, 10))


def stream(
    group: Group, ranks: int, folder: str, recipe: dict[str, Any], frames: int, cut: int | None
) -> list[tuple[Any, ...]] | None:
    """On rank 0: the stream's pictures made by one rank and by so many, and what else differs."""
    part = group.part(*range(ranks))
    if part is None:
        return None
    engine = Engine.load(folder, device="cpu", dtype="float32")
    engine = replace(engine, folder=replace(engine.folder, stream=_recipe(engine, recipe)))
    parted = replace(engine, runner=spread(engine.runner, part, streams=True))
    made = _chunks(parted, frames, cut)
    if group.rank:
        return None
    alone = _chunks(engine, frames, cut)
    return [
        (a.frames, b.frames, (a.index, a.pts, a.applied), (b.index, b.pts, b.applied))
        for a, b in zip(alone, made, strict=True)
    ]


def _recipe(engine: Engine, changes: dict[str, Any]) -> Any:
    return replace(engine.config, **changes)


def _chunks(engine: Engine, frames: int, cut: int | None) -> Sequence[Chunk]:
    session = engine.open("a red ball", seed=3, frames=frames)
    if cut is not None:
        session.cut("a blue ball", at=cut)
        session.update(prompt="a red ball moving left", recache=True, at=cut + 6)
    return list(session)


def frames_encoded(group: Group, folder: str, frames: int) -> int:
    """How many of a clip's frames this rank's encoder takes; all ranks get the same latents."""
    runner = Engine.load(folder, device="cpu", dtype="float32").runner
    assert isinstance(runner, TorchRunner)
    vae: Any = runner.vae
    taken, step = [], vae.encode_step

    def counted(part: Tensor, tape: CacheTape) -> Tensor:
        taken.append(part.shape[2])
        return cast(Tensor, step(part, tape))

    vae.encode_step = counted
    latents, _ = spread(runner, group, streams=False).encode(torch.zeros(1, 3, frames, 32, 48))
    first = latents.clone()
    group.broadcast(first)
    assert torch.equal(first, latents)
    return sum(taken)


def clip(
    group: Group, ranks: int, folder: str, *, video: bool = False, tile: bool = False
) -> tuple[int, int] | None:
    """How far a whole clip of so many ranks, of a `video` or of noise, is from one rank's, in
    levels, and how bright it is."""
    part = group.part(*range(ranks))
    if part is None:
        return None
    engine = Engine.load(folder, device="cpu", dtype="float32")
    parted = replace(engine, runner=spread(engine.runner, part, streams=False))
    options: dict[str, Any] = dict(width=48, height=32, steps=2, guidance_scale=4.0, tile=tile)
    if video:
        options["video"] = np.random.default_rng(0).integers(0, 256, (25, 32, 48, 3), np.uint8)
    else:
        options["frames"] = 25
    made, alone = (one.generate("a red ball", **options) for one in (parted, engine))
    apart = abs(made.frames.astype(int) - alone.frames.astype(int)).max()
    return int(apart), int(alone.frames.max())
