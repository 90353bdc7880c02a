"""Train the model that ships: first its VAE, then its text encoder and DiT on the VAE's latents.

    python -m livereel.engine.demo.train vae --run runs/demo --minutes 40
    python -m livereel.engine.demo.train latents --run runs/demo --clips 3000
    python -m livereel.engine.demo.train dit --run runs/demo --minutes 80
    python -m livereel.engine.demo.train pack --run runs/demo --out engine/demo/weights

Each stage saves its averaged weights every few minutes and goes on from them when called again;
`unpack` makes them from a packed model. Everything is drawn by `scenes`; nothing is downloaded. See
the README for what a run costs and reaches.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import StreamConfig
from ..layers.layout import channels_last
from ..models.wan.vae import WanVAE
from ..sampling.goal import places
from ..sampling.schedule import linspace
from . import scenes
from .clips import CHUNKS, draw_ahead, mosaics, near, pictures, stories, to_float, words
from .losses import decoder_loss, dit_loss, vae_loss
from .model import DIT_CONFIG, GOAL_CHANNELS, MAX_TEXT, TIME_SHIFT, VAE_CONFIG, TextToVideo
from .optimize import load_weights, run_loop, save_weights
from .pack import pack
from .steering import CONTROL_CHANNELS


@dataclass(frozen=True)
class Machine:
    """Where training runs, and how many processes draw for it."""

    device: torch.device
    workers: int


def read_vae(run: Path, machine: Machine) -> WanVAE:
    """The run's VAE as far as it is trained."""
    vae = WanVAE.from_config(VAE_CONFIG)
    if (path := run / "vae.safetensors").exists():
        load_weights(vae, path)
    vae.to(machine.device)
    channels_last(vae)
    return vae


def improve_vae(
    run: Path,
    loss_on: Callable[[WanVAE, Tensor], tuple[Tensor, dict[str, float]]],
    source: Callable[[int], Iterator[Tensor]],
    *, minutes: float, rate: float, seed: int, machine: Machine,
) -> None:  # fmt: skip
    """Train the run's VAE on what `source` draws."""
    torch.manual_seed(seed)
    vae = read_vae(run, machine)
    clips = draw_ahead(source, seed, machine.workers)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        clip = next(clips).to(machine.device)
        return loss_on(vae, clip.contiguous(memory_format=torch.channels_last_3d))

    run_loop(
        vae, loss_of, minutes=minutes, rate=rate, decay=0.998,
        save=lambda average: save_weights(average, run / "vae.safetensors"),
    )  # fmt: skip


def train_vae(
    run: Path, *, minutes: float, rate: float, seed: int, full_share: float, machine: Machine
) -> None:
    """Train on mosaics of tiles, then for the last `full_share` of the time on whole pictures."""
    for source, share, peak in ((mosaics, 1 - full_share, rate), (pictures, full_share, rate / 4)):
        improve_vae(
            run, vae_loss, source,
            minutes=minutes * share, rate=peak, seed=seed, machine=machine,
        )  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Drawn stories (`Stories`), encoded; latents are normalized."""

    latents: Tensor  # [stories, C, T, H, W]
    captions: Tensor  # [stories, chunks]
    control: Tensor  # [stories, CONTROL_CHANNELS, T, H, W]
    goal: Tensor  # [stories, C, 1, H, W]
    shares: Tensor  # [stories, CONTROL_CHANNELS, T]
    told: Tensor  # [stories]

    def channels(self, rows: Tensor) -> Tensor:
        """What the DiT is told of these stories behind its latents' channels, fp32."""
        shares, told = self.shares[rows], self.told[rows].view(-1, 1, 1, 1, 1)
        (_, count), (height, width) = shares.shape[1:], self.goal.shape[3:]
        parts = shares[..., None, None], self.goal[rows], places(height, width)
        size = len(rows), -1, count, height, width
        arrives = torch.cat([part.expand(size) for part in parts], dim=1)
        known = torch.arange(count).view(1, 1, -1, 1, 1) >= told
        return torch.cat([self.control[rows].float(), arrives * known], dim=1)


@torch.no_grad()
def encode_pool(run: Path, *, clips: int, seed: int, machine: Machine) -> None:
    """Draw clips, and four times as many pictures; encode them with the trained VAE for the DiT."""
    vae = read_vae(run, machine).to(torch.bfloat16)
    data: dict[str, Tensor] = {}

    def encode(frames: scenes.Frames) -> Tensor:
        batch = to_float(frames).to(machine.device, torch.bfloat16)
        batch = batch.contiguous(memory_format=torch.channels_last_3d)
        return vae.encode(batch)[0].cpu().contiguous()

    for name, chunks, size, batches in (
        ("clip", CHUNKS, 4, clips // 4),
        ("picture", (1,), 32, clips // 8),
    ):
        encoded: dict[str, list[Tensor]] = defaultdict(list)
        drawn = draw_ahead(partial(stories, chunks, size), seed + 1000, machine.workers)
        for number, batch in enumerate(islice(drawn, batches), 1):
            encoded[f"{name}s"].append(encode(batch.frames))
            encoded[f"{name}_captions"].append(batch.captions)
            encoded[f"{name}_control"].append(batch.control.to(torch.bfloat16))
            encoded[f"{name}_goal"].append(encode(batch.goal))
            encoded[f"{name}_shares"].append(batch.shares)
            encoded[f"{name}_told"].append(batch.told)
            if number % 100 == 0:
                print(f"{number * size} of {batches * size} {name}s encoded", flush=True)
        data |= {key: torch.cat(parts) for key, parts in encoded.items()}
    sample = data["clips"].float()
    data["mean"] = sample.mean(dim=(0, 2, 3, 4))
    # A channel that says little must not be blown up to the size of those that say much.
    data["std"] = sample.std(dim=(0, 2, 3, 4)).clamp_min(0.3)
    path = run / "pool.safetensors"
    save_file(data, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_pool(run: Path) -> tuple[Pool, Pool]:
    """What `encode_pool` wrote, normalized: clips, and single pictures."""
    data = load_file(run / "pool.safetensors")
    mean, std = (data[name].view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    clips, pictures = (
        Pool((data[f"{name}s"].float() - mean) / std, data[f"{name}_captions"],
             data[f"{name}_control"], (data[f"{name}_goal"].float() - mean) / std,
             data[f"{name}_shares"], data[f"{name}_told"])
        for name in ("clip", "picture")
    )  # fmt: skip
    return clips, pictures


def train_dit(
    run: Path, *, minutes: float, rate: float, seed: int, picture_share: float, machine: Machine
) -> None:
    """Train on pictures for a share of the time, then on whole clips with some pictures.

    A stream's first chunk is a picture: what it shows, the later ones carry on.
    """
    torch.manual_seed(seed)
    clips, pictures = load_pool(run)
    model = TextToVideo()
    path = run / "dit.safetensors"
    if path.exists():
        load_weights(model, path)
    model.to(machine.device)
    torch._dynamo.config.recompile_limit = 64  # one graph for each length of chunk and past
    for block in model.transformer.blocks:
        block.compile(dynamic=False)
    scale = 8 if machine.device.type == "cuda" else 1
    start = time.monotonic()

    def loss_on(pool: Pool, size: int, rollout: float) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(pool.latents), (scale * size,))
        latents, told = (x.to(machine.device) for x in (pool.latents[rows], pool.channels(rows)))
        return dit_loss(model, latents, pool.captions[rows], told, rollout)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if time.monotonic() - start < 60 * minutes * picture_share:
            return loss_on(pictures, 32, 0.0)
        single, _ = loss_on(pictures, 16, 0.0)
        loss, parts = loss_on(clips, 8, 0.5)
        return loss + 0.3 * single, {**parts, "pictures": float(single.detach())}

    run_loop(
        model, loss_of, minutes=minutes, rate=rate, decay=0.998,
        save=lambda average: save_weights(average, path),
    )  # fmt: skip


def write_model(run: Path, out: Path, *, steps: int, guidance: float) -> None:
    """Put the trained parts together as the folder that ships."""
    trained = load_file(run / "dit.safetensors")
    pool = load_file(run / "pool.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}

    text = part("text_encoder.")
    text.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    scale = {"latents_mean": pool["mean"].tolist(), "latents_std": pool["std"].tolist()}
    stream = StreamConfig(
        chunk_latents=CHUNKS[1],
        first_chunk_latents=CHUNKS[0],
        window=2 * CHUNKS[1],
        timesteps=linspace(steps, shift_by=TIME_SHIFT).timesteps,
        solver="euler",
        shift=TIME_SHIFT,
        guidance_scale=guidance,
        fps=16.0,
        max_sequence_length=MAX_TEXT,
        width=scenes.GRID,
        height=scenes.GRID,
        control_channels=CONTROL_CHANNELS,
        control_wraps=True,
        goal_channels=GOAL_CHANNELS,
    )
    pack(
        out,
        words=words(),
        transformer=(DIT_CONFIG, part("transformer.")),
        vae=(VAE_CONFIG | scale, load_file(run / "vae.safetensors")),
        text=(TextToVideo().text_encoder.config.to_diff_dict(), text),
        stream=stream,
        shift=TIME_SHIFT,
    )


def read_model(run: Path, folder: Path) -> None:
    """Take a packed model apart into a run's checkpoints, so that training goes on from it."""
    parts = {"transformer.": "transformer", "text_encoder.": "text_encoder"}
    trained: dict[str, Tensor] = {}
    for prefix, name in parts.items():
        (path,) = (folder / name).glob("*.safetensors")
        trained |= {prefix + key: tensor for key, tensor in load_file(path).items()}
    trained["text_encoder.encoder.embed_tokens.weight"] = trained["text_encoder.shared.weight"]
    (vae,) = (folder / "vae").glob("*.safetensors")
    run.mkdir(parents=True, exist_ok=True)
    (run / "vae.safetensors").write_bytes(vae.read_bytes())
    save_file({k: v.clone() for k, v in trained.items()}, run / "dit.safetensors")


def main(argv: list[str] | None = None) -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("stage", choices=["vae", "decoder", "latents", "dit", "pack", "unpack"])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="checkpoints' folder")
    parser.add_argument("--minutes", type=float, default=40.0, help="how long the stage may take")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw clips")
    parser.add_argument("--full-share", type=float, default=0.2, help="vae: share on 128x128")
    parser.add_argument(
        "--picture-share", type=float, default=0.5, help="dit: share on single pictures"
    )
    parser.add_argument("--clips", type=int, default=3000, help="latents: how many clips")
    parser.add_argument("--steps", type=int, default=6, help="pack: steps a chunk")
    parser.add_argument("--guidance", type=float, default=2.0, help="pack: guidance scale")
    parser.add_argument(
        "--out", type=Path, default=Path("engine/demo/weights"), help="(un)pack: the model"
    )
    args = parser.parse_args(argv)
    machine = Machine(torch.device(args.device), args.workers)
    common = {"seed": args.seed, "machine": machine}
    if args.stage == "vae":
        train_vae(
            args.run, minutes=args.minutes, rate=args.rate, full_share=args.full_share, **common
        )
    elif args.stage == "decoder":
        improve_vae(args.run, decoder_loss, near, minutes=args.minutes, rate=args.rate, **common)
    elif args.stage == "latents":
        encode_pool(args.run, clips=args.clips, **common)
    elif args.stage == "dit":
        train_dit(
            args.run, minutes=args.minutes, rate=args.rate, picture_share=args.picture_share,
            **common,
        )  # fmt: skip
    elif args.stage == "pack":
        write_model(args.run, args.out, steps=args.steps, guidance=args.guidance)
    else:
        read_model(args.run, args.out)


if __name__ == "__main__":
    main()
