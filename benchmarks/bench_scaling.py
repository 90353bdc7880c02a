"""How long a whole clip takes on N devices: reckoned from work, speeds and links, and checked here.

    livereel bench scaling [--model wan2.1-1.3b] [--tflops T] [--link GB/S:US] [--plot FILE.png]

Devices share a clip as `engine/parallel` has them do: guidance's two passes part them in two where
they are an even number, those left to one pass share its tokens and trade them for heads before and
behind each attention; the decoder works on some of the clip's latent frames on each, and its caches
go from rank to rank. Nothing is taken to overlap. What ranks do alike is counted on each: the keys
and values of the text.

The check is a small DiT's pass, by one rank and by two, one thread each, over gloo. Rates are
measured while both ranks compute, since that is when they compute; that of the link is, too.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from livereel.engine import machine
from livereel.engine.config import CLIP_PART
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.parallel.group import MAX_RANKS, Group
from livereel.engine.parallel.guidance import SpreadDenoiser
from livereel.engine.parallel.launch import Ranks

from .count import META, MOST_TOKENS, built, latent_size, weight_bytes, work_of
from .harness import Spread
from .report import Goal, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from livereel.engine.types import VAE, ClipTransformer

    from .models import Model

GOAL = 20.0
"""Percent that the reckoning may be off by."""
_ROUNDS, _WARM_UPS = 15, 2
_SMALL, _LARGE = 1, 1 << 20
"""Numbers in the messages that a link is measured by."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """How a device reaches the others: `bandwidth` bytes a second one way, and `latency` seconds
    for each exchange."""

    bandwidth: float
    latency: float


LINKS: Mapping[str, Link] = {
    "NVLink": Link(bandwidth=450e9, latency=15e-6),
    "PCIe": Link(bandwidth=50e9, latency=25e-6),
    "100 GbE": Link(bandwidth=12.5e9, latency=50e-6),
}
"""Nominal: NVLink of the fourth generation, PCIe of the fifth with 16 lanes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A pass over one clip, as far as its time on N ranks goes.

    `products` and `attention` are FLOPs, `moved` the bytes that they read and write and `weights`
    those of them that are the DiT's. `alike` are FLOPs of `products` that each rank does, whatever
    its share. A token is `width` numbers of `item` bytes.
    """

    products: float
    attention: float
    moved: float
    weights: float
    alike: float
    frames: int
    tokens: int
    heads: int
    layers: int
    width: int
    item: int
    flow: int
    """Bytes of the result."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the solver on so many devices, in seconds, and what a device sends, in bytes."""

    devices: int
    compute: float
    exchange: float
    sent: float

    @property
    def seconds(self) -> float:
        """In all."""
        return self.compute + self.exchange


def predict(
    shape: Shape, devices: int, link: Link, *, flops: float, moved: float = math.inf,
    guided: bool = True,
) -> Step | None:  # fmt: skip
    """A step on devices that compute `flops`, and read and write `moved` bytes, a second.

    None where there are more ranks to a pass than it has heads or tokens in a frame.
    """
    batch = 2 if guided else 1
    teams = math.gcd(batch, devices)
    ranks, clips = devices // teams, batch // teams
    if ranks > min(shape.heads, shape.tokens):
        return None
    rows = math.ceil(shape.tokens / ranks)
    share, heads = rows / shape.tokens, math.ceil(shape.heads / ranks) / shape.heads
    work = (shape.products - shape.alike) * share + shape.alike + shape.attention * heads
    touched = shape.weights + clips * (shape.moved - shape.weights) * share
    sent, exchanges = 0.0, 0
    if ranks > 1:
        away = (ranks - 1) / ranks
        traded = 4 * clips * shape.frames * rows * shape.width * shape.item * away
        sent += shape.layers * traded + clips * shape.flow * share * (ranks - 1)
        exchanges += 2 * shape.layers + 1
    if teams > 1:
        sent += clips * shape.flow * (teams - 1)
        exchanges += 1
    return Step(
        devices=devices,
        compute=max(clips * work / flops, touched / moved),
        exchange=sent / link.bandwidth + exchanges * link.latency,
        sent=sent,
    )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip of so many `seconds`: a pass over it, steps of the solver, the decoder's FLOPs and
    bytes, the bytes of its caches (`halo`), and the `latents` that it works on, frame by frame."""

    shape: Shape
    seconds: float
    steps: int
    guided: bool
    decode: tuple[float, float]
    halo: float
    latents: int

    def on(self, devices: int, link: Link, *, flops: float, moved: float) -> float | None:
        """Seconds that it takes; None where so many cannot share it."""
        step = predict(self.shape, devices, link, flops=flops, moved=moved, guided=self.guided)
        rounds, rest = divmod(self.latents, devices * CLIP_PART)
        share = (rounds * CLIP_PART + math.ceil(rest / devices)) / self.latents
        decode = share * max(self.decode[0] / flops, self.decode[1] / moved)
        if devices > 1:
            decode += (rounds + (rest > 0)) * self.halo / link.bandwidth
        return None if step is None else self.steps * step.seconds + decode


def clip_of(
    model: Model, *, size: tuple[int, int], frames: int, steps: int, guided: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> Clip:  # fmt: skip
    """A clip by a model of that size, counted without weights.

    Raises `InputError` for a size that the model does not make, or more tokens than are counted.
    """
    dit, vae = (built(part, dtype) for part in (model.transformer, model.vae))
    transformer, codec = cast("ClipTransformer", dit), cast("VAE", vae)
    height, width = latent_size(transformer, codec, size)
    count = -(-(frames - 1) // codec.temporal_factor) + 1
    count += -count % transformer.temporal_patch
    patch = transformer.spatial_patch
    if (tokens := count * (height // patch) * (width // patch)) > MOST_TOKENS:
        raise InputError(f"the clip has {tokens} tokens; at most {MOST_TOKENS} are counted")

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    channels = transformer.channels + transformer.condition_channels
    text = empty(1, model.stream.max_sequence_length, transformer.text_width)
    z = empty(1, codec.channels, count, height, width)
    work = work_of(lambda: codec.decode(z))
    return Clip(
        shape=shape_of(dit, empty(1, channels, count, height, width), text),
        seconds=frames / model.stream.fps,
        steps=steps,
        guided=guided,
        decode=(sum(work.flops.values()), sum(work.moved.values())),
        halo=sum(cache.numel() * cache.element_size() for cache in codec.decode(z[:, :, :1])[1]),
        latents=count,
    )


def shape_of(dit: nn.Module, latents: Tensor, text: Tensor) -> Shape:
    """Of a DiT's pass over `latents` `[1, C, T, H, W]`, on any device, meta too."""
    transformer, config = cast("ClipTransformer", dit), cast(Any, dit.config)
    time_at = torch.zeros(1, device=latents.device)
    work = work_of(lambda: dit(latents, time_at, text))
    attention = work.flops.get("attention", 0)
    item = latents.element_size()
    return Shape(
        products=sum(work.flops.values()) - attention,
        attention=attention,
        moved=sum(work.moved.values()),
        weights=weight_bytes(dit),
        alike=sum(work_of(lambda: transformer.text_kv(text)).flops.values()),
        frames=latents.shape[2] // transformer.temporal_patch,
        tokens=latents[0, 0, 0].numel() // transformer.spatial_patch**2,
        heads=config.num_attention_heads,
        layers=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        item=item,
        flow=latents[0, 0].numel() * transformer.channels * item,
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A round's seconds: of a pass by each rank alone, of one by both, and of a message each way
    with `_SMALL` and with `_LARGE` numbers."""

    alone: float
    shared: float
    small: float
    large: float


def check(*, rounds: int = _ROUNDS) -> tuple[Section, float]:
    """Reckon a pass on two ranks from one's, and run it; also gives the FLOPs a second of a rank.

    Each round's shared pass is reckoned from that round's lone ones, and the middle round counts:
    what else the machine does changes from round to round, and little inside one. Raises
    `ResourceError` when a rank dies.
    """
    with Ranks(2, threads=1) as ranks:
        found = ranks.run(_measure, rounds)
    dit, inputs = _small_dit()
    shape = shape_of(dit, inputs[0], inputs[2])
    return _section([_slower(pair) for pair in zip(*found, strict=True)], shape)


def _slower(pair: Sequence[Measured]) -> Measured:
    """What both ranks take for each part of a round."""
    names = [field.name for field in fields(Measured)]
    return Measured(**{name: max(getattr(one, name) for one in pair) for name in names})


def _section(found: Sequence[Measured], shape: Shape) -> tuple[Section, float]:
    """What `check` gives, of its rounds."""
    small, large = (
        statistics.median(getattr(one, name) for one in found) for name in ("small", "large")
    )
    link = Link(
        bandwidth=4 * (_LARGE - _SMALL) / max(large - small, 1e-9), latency=max(small, 1e-6)
    )
    work = shape.products + shape.attention
    flops = work / statistics.median(one.alone for one in found)

    def reckoned(one: Measured) -> Step:
        step = predict(shape, 2, link, flops=work / one.alone, guided=False)
        assert step is not None
        return step

    steps = [reckoned(one) for one in found]
    pairs = zip(steps, found, strict=True)
    ratio = statistics.median(step.seconds / one.shared for step, one in pairs)
    return Section(
        title="a small DiT's pass by two ranks over gloo, one thread each",
        figures={
            "one rank, while the other does the same, s": Spread.of([one.alone for one in found]),
            "two ranks sharing it, s": Spread.of([one.shared for one in found]),
            "reckoned for two, s": Spread.of([step.seconds for step in steps]),
        },
        notes=[
            f"of what is reckoned, {steps[0].exchange:.4f} s are exchange",
            f"link here: {link.bandwidth / 1e9:.2f} GB/s, {1e6 * link.latency:.0f} us; a rank "
            f"computes {flops / 1e9:.1f} GFLOP/s; {machine.cores()} cores for both, "
            f"load average {os.getloadavg()[0]:.1f}",
        ],
        goals=[
            Goal(what="reckoned over measured, off by", value=100 * abs(ratio - 1), bound=GOAL,
                 at_least=False, unit="%")
        ],
    ), flops  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A number of devices, the seconds that a clip takes on them, how many times faster that is
    than on one, and what a second of video costs."""

    devices: int
    seconds: float
    speedup: float
    cost: float


Costs = Mapping[str, Sequence[Row]]
"""By link, for every number of devices that can share a clip."""


def costs_of(clip: Clip, *, flops: float, moved: float, price: float) -> Costs:
    """For devices that compute `flops`, and read and write `moved` bytes, a second, at a `price` an
    hour."""
    costs: dict[str, list[Row]] = {}
    for name, link in LINKS.items():
        costs[name] = []
        for devices in range(1, MAX_RANKS + 1):
            took = clip.on(devices, link, flops=flops, moved=moved)
            if took is not None:
                alone = costs[name][0].seconds if costs[name] else took
                cost = devices * took * price / 3600 / clip.seconds
                costs[name].append(Row(devices, took, alone / took, cost))
    return costs


def table(costs: Costs) -> str:
    """A line for each power of two, and for the most devices."""
    lines = [
        f"{'devices':>7}" + "".join(f"{name:>32}" for name in costs),
        " " * 7 + f"{'s a clip':>12}{'speed-up':>9}{'$ a s':>11}" * len(costs),
    ]
    rows = list(zip(*costs.values(), strict=True))
    for row in rows:
        devices = row[0].devices
        if devices & (devices - 1) == 0 or row is rows[-1]:
            each = (f"{one.seconds:12.3f}{one.speedup:9.2f}{one.cost:11.5f}" for one in row)
            lines.append(f"{devices:7}" + "".join(each))
    return "\n".join(lines)


def save_plot(path: Path, costs: Costs, title: str) -> None:
    """Write a PNG. Raises `ResourceError` where matplotlib is not installed, `InputError` for a
    place that cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("a plot needs matplotlib: pip install 'livereel[metrics]'") from error
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    speed, cost = figure.subplots(1, 2)
    for name, rows in costs.items():
        devices = [row.devices for row in rows]
        speed.plot(devices, [row.speedup for row in rows], marker=".", label=name)
        cost.plot(devices, [row.cost for row in rows], marker=".", label=name)
    most = max(row.devices for rows in costs.values() for row in rows)
    speed.plot([1, most], [1, most], color="gray", linestyle=":", label="as many times as devices")
    speed.set(title="speed-up", xlabel="devices", ylabel="times one device")
    cost.set(title="cost of a second of video", xlabel="devices", ylabel="$", ylim=(0, None))
    for panel in (speed, cost):
        panel.legend()
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=110)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _small_dit() -> tuple[WanTransformer, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    config = WanTransformerConfig(
        num_attention_heads=4, attention_head_dim=64, in_channels=16, out_channels=16,
        text_dim=128, freq_dim=256, ffn_dim=1024, num_layers=4,
    )  # fmt: skip
    inputs = torch.randn(1, 16, 7, 20, 20), torch.full((1,), 500.0), torch.randn(1, 16, 128)
    return WanTransformer(config).eval().requires_grad_(False), inputs


@torch.inference_mode()
def _measure(group: Group, rounds: int) -> list[Measured]:
    dit, inputs = _small_dit()
    spread = SpreadDenoiser(dit, group)

    def turn() -> Measured:
        return Measured(
            alone=_timed(group, lambda: dit(*inputs)),
            shared=_timed(group, lambda: spread(*inputs)),
            small=_timed(group, lambda: _swap(group, _SMALL)),
            large=_timed(group, lambda: _swap(group, _LARGE)),
        )

    return [turn() for _ in range(rounds + _WARM_UPS)][_WARM_UPS:]


def _timed(group: Group, job: Callable[[], object]) -> float:
    _swap(group, 1)  # so that all begin together
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def _swap(group: Group, size: int) -> None:
    """Send so many numbers to the other rank while it sends as many."""
    other = 1 - group.rank
    group.exchange({other: torch.empty(size)}, {other: torch.empty(size)}).wait()
