"""Train the model that ships: first its VAE, then its text encoder and DiT on the VAE's latents.

    python -m livereel.engine.demo.train vae --run runs/demo --minutes 40
    python -m livereel.engine.demo.train dit --run runs/demo --minutes 80
    python -m livereel.engine.demo.train pack --run runs/demo --out engine/demo/weights

Each stage saves its averaged weights every few minutes and goes on from them when called again.
Everything is drawn by `scenes`; nothing is downloaded. See the README for what a run costs and
reaches.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

import argparse
import copy
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.layout import channels_last
from ..models.wan.vae import WanVAE
from . import scenes

VAE_CONFIG: dict[str, Any] = {
    "base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}


def to_float(frames: np.ndarray[Any, Any]) -> Tensor:
    """uint8 `[B, F, H, W, 3]` to float `[B, 3, F, H, W]` in [-1, 1], channels last in memory."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def random_caption(rng: np.random.Generator) -> scenes.Caption:
    """A caption that training may see; a third have no size word, a third each are large, small."""
    captions = scenes.training_captions()
    return captions[int(rng.integers(len(captions)))]


def render_clip(
    rng: np.random.Generator, frames: int, crop: tuple[int, int, int, int], cut_share: float
) -> np.ndarray[Any, Any]:
    """Frames of a random scene with its object near the window; some change caption on the way."""
    scene = scenes.Scene.sample(random_caption(rng), rng)
    first = int(rng.integers(0, 64))
    if rng.random() >= cut_share:
        return scene.render(first, frames, crop=crop)
    cut = int(rng.integers(1, frames))
    other = scene.switch(random_caption(rng), first + cut)
    return np.concatenate(
        [scene.render(first, cut, crop=crop), other.render(first + cut, frames - cut, crop=crop)]
    )


def vae_batches(seed: int, batch: int, frames: int, side: int) -> Iterator[Tensor]:
    """Endless batches of clips, `[B, 3, F, side, side]`, as random windows of 128x128 scenes."""
    rng = np.random.default_rng(seed)
    while True:
        clips = []
        for _ in range(batch):
            top, left = (int(v) for v in rng.integers(0, scenes.GRID - side + 1, 2))
            while True:
                clip = render_clip(rng, frames, (top, left, side, side), cut_share=0.2)
                # Windows without an edge of the object teach little; keep one in five of them.
                if float(clip.std(axis=(0, 1, 2)).max()) > 12 or rng.random() < 0.2:
                    break
            clips.append(clip)
        yield to_float(np.stack(clips))


def prefetch(source: Iterator[Any], depth: int = 4) -> Iterator[Any]:
    """Draw from `source` in a thread, so that drawing overlaps with training."""
    items: queue.Queue[Any] = queue.Queue(depth)

    def fill() -> None:
        for item in source:
            items.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield items.get()


class Average:
    """An exponential moving average of a module's weights, short at first."""

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        pairs = zip(self.module.parameters(), module.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value.detach(), 1 - decay)


def run_loop(
    modules: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    minutes: float,
    rate: float,
    save: Callable[[nn.Module], None],
    decay: float,
    warmup: int = 100,
) -> None:
    """Adam with warm-up and a cosine over the time allowed, clipping at 1, weights averaged.

    The schedule runs on the clock, so that a machine of any speed ends on small steps.
    """
    optimizer = torch.optim.AdamW(modules.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = Average(modules, decay)
    start = last_save = last_print = time.monotonic()
    totals: dict[str, float] = {}
    step = since = 0
    while (spent := (time.monotonic() - start) / 60) < minutes:
        cosine = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * spent / minutes))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * cosine
        loss, parts = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parts["grad"] = float(nn.utils.clip_grad_norm_(modules.parameters(), 1.0))
        optimizer.step()
        average.update(modules)
        step, since = step + 1, since + 1
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
        if time.monotonic() - last_print > 20:
            report = " ".join(f"{k} {v / since:.4f}" for k, v in totals.items())
            pace = (time.monotonic() - last_print) / since
            print(f"{spent:6.1f} min step {step:6d} {report} ({pace:.2f} s)", flush=True)
            totals, since, last_print = {}, 0, time.monotonic()
        if time.monotonic() - last_save > 180:
            save(average.module)
            last_save = time.monotonic()
    save(average.module)


def save_weights(module: nn.Module, path: Path) -> None:
    """bf16 weights under a temporary name, then renamed."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in module.state_dict().items()}
    save_file(tensors, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module in its own dtype."""
    from safetensors.torch import load_file

    module.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b).clamp_min(1e-12)))


def vae_loss(vae: WanVAE, clip: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction through a noisy latent, and a light pull of the latent to a unit normal."""
    with torch.autocast(clip.device.type, torch.bfloat16):
        moments, _ = vae.moments(clip)
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-8.0, 4.0)
        # The DiT will never hit the latent exactly: half the clips carry more noise than theirs.
        extra = 0.15 * torch.rand(len(clip), 1, 1, 1, 1, device=clip.device)
        extra = extra * (torch.rand_like(extra) < 0.5)
        spread = ((0.5 * log_variance).exp().square() + extra.square()).sqrt()
        out, _ = vae.decode(mean + spread * torch.randn_like(mean))
    out = out.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    l1, mse = (out - clip).abs().mean(), F.mse_loss(out, clip)
    loss = l1 + 2 * mse + 2e-4 * kl
    parts = {"l1": float(l1), "kl": float(kl), "psnr": float(10 * torch.log10(4 / mse.detach()))}
    return loss, parts


def train_vae(run: Path, *, minutes: float, rate: float, seed: int, full_share: float) -> None:
    """Train on 64x64 windows, then for the last `full_share` of the time on whole pictures."""
    torch.manual_seed(seed)
    vae = WanVAE.from_config(VAE_CONFIG)
    path = run / "vae.safetensors"
    if path.exists():
        load_weights(vae, path)
    channels_last(vae)
    stages = [(64, 4, minutes * (1 - full_share), rate), (128, 2, minutes * full_share, rate / 4)]
    for side, batch, share, stage_rate in stages:
        if share <= 0:
            continue
        clips = prefetch(vae_batches(seed + side, batch, 9, side))

        def loss_of(step: int, clips: Iterator[Any] = clips) -> tuple[Tensor, dict[str, float]]:
            clip = next(clips).contiguous(memory_format=torch.channels_last_3d)
            return vae_loss(vae, clip)

        run_loop(
            vae, loss_of, minutes=share, rate=stage_rate, decay=0.998,
            save=lambda average: save_weights(average, path),
        )  # fmt: skip
        load_weights(vae, path)


def main(argv: list[str] | None = None) -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("stage", choices=["vae"])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="where checkpoints live")
    parser.add_argument("--minutes", type=float, default=40.0, help="how long the stage may take")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-share", type=float, default=0.2, help="VAE: share on 128x128")
    args = parser.parse_args(argv)
    train_vae(
        args.run, minutes=args.minutes, rate=args.rate, seed=args.seed, full_share=args.full_share
    )


if __name__ == "__main__":
    main()
