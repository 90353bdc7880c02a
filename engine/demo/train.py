"""Train the model that ships: first its VAE, then its text encoder and DiT on the VAE's latents.

    python -m livereel.engine.demo.train vae --run runs/demo --minutes 40
    python -m livereel.engine.demo.train latents --run runs/demo --clips 3000
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.layout import channels_last
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import WanVAE
from ..text.vocabulary import build_tokenizer
from ..types import KV, LayerKV, Past
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
DIT_CONFIG: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 5,
    "cross_attn_norm": True,
}
TEXT_CONFIG: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
MAX_TEXT = 16
"""Tokens that every caption is zero-padded to; the longest has 12 with its end mark."""

TIME_SHIFT = 3.0
"""Warp of the noise levels, in training and in the steps of sampling."""


def to_float(frames: np.ndarray[Any, Any]) -> Tensor:
    """uint8 `[B, F, H, W, 3]` to float `[B, 3, F, H, W]` in [-1, 1], channels last in memory."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def random_caption(rng: np.random.Generator) -> scenes.Caption:
    """A caption that training may see; a third have no size word, a third each are large, small."""
    captions = scenes.training_captions()
    return captions[int(rng.integers(len(captions)))]


def words() -> list[str]:
    """Every word of the captions, in a fixed order."""
    return sorted({word for caption in scenes.all_captions() for word in caption.text.split()})


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


@dataclass(frozen=True)
class Pool:
    """Normalized latents of many clips, `[clips, C, T, H, W]`, and a caption for each chunk."""

    latents: Tensor
    captions: Tensor  # [clips, chunks], rows of scenes.all_captions()
    mean: Tensor  # [C]
    std: Tensor  # [C]


CHUNKS = (1, 3, 3, 3)
"""Latent frames of the chunks that the DiT is trained on; the first is one picture."""


def render_story(rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], list[int]]:
    """A clip of `CHUNKS` and its captions; in four of ten the caption changes at a chunk's edge."""
    index = {caption: i for i, caption in enumerate(scenes.all_captions())}
    scene = scenes.Scene.sample(random_caption(rng), rng)
    edges = [0, *(1 + 4 * (sum(CHUNKS[:i]) - 1) for i in range(1, len(CHUNKS) + 1))]
    cut = int(rng.integers(2, len(CHUNKS))) if rng.random() < 0.4 else None
    frames, captions = [], []
    for chunk, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if chunk == cut:
            scene = scene.switch(random_caption(rng), start)
        frames.append(scene.render(start, stop - start))
        captions.append(index[scene.caption])
    return np.concatenate(frames), captions


@torch.no_grad()
def encode_pool(run: Path, *, clips: int, seed: int) -> None:
    """Draw clips, encode them with the trained VAE and keep the latents for the DiT."""
    from safetensors.torch import save_file

    vae = WanVAE.from_config(VAE_CONFIG).eval()
    load_weights(vae, run / "vae.safetensors")
    vae = vae.to(torch.bfloat16)
    channels_last(vae)
    rng = np.random.default_rng(seed + 1000)
    latents = torch.empty(clips, VAE_CONFIG["z_dim"], sum(CHUNKS), 16, 16, dtype=torch.bfloat16)
    captions = torch.empty(clips, len(CHUNKS), dtype=torch.int64)
    stories = prefetch(iter(lambda: render_story(rng), None))
    for i in range(clips):
        frames, labels = next(stories)
        clip = to_float(frames[None]).to(torch.bfloat16)
        latents[i] = vae.encode(clip.contiguous(memory_format=torch.channels_last_3d))[0][0]
        captions[i] = torch.tensor(labels)
        if i % 200 == 199:
            print(f"{i + 1} of {clips} clips encoded", flush=True)
    sample = latents.float()
    mean, std = sample.mean(dim=(0, 2, 3, 4)), sample.std(dim=(0, 2, 3, 4))
    path = run / "pool.safetensors"
    tensors = {"latents": latents, "captions": captions, "mean": mean, "std": std}
    save_file(tensors, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_pool(run: Path) -> Pool:
    """What `encode_pool` wrote, normalized."""
    from safetensors.torch import load_file

    data = load_file(run / "pool.safetensors")
    column = (1, -1, 1, 1, 1)
    latents = (data["latents"].float() - data["mean"].view(column)) / data["std"].view(column)
    return Pool(latents, data["captions"], data["mean"], data["std"])


class TextToVideo(nn.Module):
    """What the DiT stage trains: a word-level UMT5 encoder and the transformer, together."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import UMT5Config, UMT5EncoderModel

        self.tokenizer = build_tokenizer(words())
        self.text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(self.tokenizer), **TEXT_CONFIG))
        self.transformer = WanTransformer.from_config(DIT_CONFIG)
        for block in self.transformer.blocks:
            # Small outputs at first, but not zero, so that the text is heard from the start.
            nn.init.normal_(block.attn1.to_out[0].weight, std=0.02)
            nn.init.normal_(block.attn2.to_out[0].weight, std=0.04)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions to zero-padded states `[B, MAX_TEXT, text_dim]`, as the engine pads them."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=MAX_TEXT, return_tensors="pt"
        )
        states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states * tokens.attention_mask.unsqueeze(-1)


def flow_times(count: int) -> Tensor:
    """Noise levels: logit-normal, moved towards 1 as sampling's are; a tenth are exactly 1."""
    sigma = torch.randn(count).sigmoid()
    sigma = TIME_SHIFT * sigma / (1 + (TIME_SHIFT - 1) * sigma)
    return torch.where(torch.rand(count) < 0.1, torch.ones(count), sigma)


def add_noise(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """`(1 - sigma) x + sigma noise`, one sigma for each sample."""
    return torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1))


def dit_loss(
    model: TextToVideo, latents: Tensor, captions: Tensor, chunks: int, rollout: float
) -> tuple[Tensor, dict[str, float]]:
    """Teacher forcing with explicit caches: each noisy chunk sees the clean one before it.

    Clean and noisy copies of a chunk ride in one batch; the clean half's keys and values are what
    the next chunk attends to, as in a stream with a window of two chunks. A share `rollout` of the
    pasts is replaced by the model's own guess at them, and others are blurred with a little noise,
    so that a stream does not drift on its own mistakes. `latents` `[B, C, T, H, W]`, `captions`
    `[B, chunks]`. One text in ten is empty, for classifier-free guidance.
    """
    size, dit = len(latents), model.transformer
    names = scenes.all_captions()
    flat = captions[:, :chunks].reshape(-1).tolist()
    drop = torch.rand(size) < 0.1
    texts = ["" if drop[i // chunks] else names[c].text for i, c in enumerate(flat)]
    with torch.autocast(latents.device.type, torch.bfloat16):
        text = model.text(texts).unflatten(0, (size, chunks))
        past, first, losses = None, 0, []
        for index, length in enumerate(CHUNKS[:chunks]):
            clean = latents[:, :, first : first + length]
            noise, sigma = torch.randn_like(clean), flow_times(size)
            noisy = add_noise(clean, sigma, noise)
            blur = torch.rand(size) * 0.12 * (torch.rand(size) < 0.5)
            seen = add_noise(clean, blur, torch.randn_like(clean))
            kv = dit.text_kv(text[:, index])
            if rollout and index + 1 < chunks and index > 0:
                seen = own_guess(model, clean, seen, kv, past, rollout)
            both = [LayerKV(torch.cat([x.k, x.k]), torch.cat([x.v, x.v])) for x in kv]
            times = torch.cat([torch.zeros(size), 1000 * sigma])
            flow, own = dit.chunk(torch.cat([seen, noisy]), times, both, past)
            error = (flow[size:].float() - (noise - clean)).square().mean(dim=(1, 2, 3, 4))
            losses.append(error.mean())
            kept = [LayerKV(torch.cat([x.k[:size]] * 2), torch.cat([x.v[:size]] * 2)) for x in own]
            past = dit.past(length, *clean.shape[-2:], kept)
            first += length
    weights = torch.tensor([float(n) for n in CHUNKS[:chunks]])
    loss = (torch.stack(losses) * weights).sum() / weights.sum()
    return loss, {f"chunk{i}": float(x.detach()) for i, x in enumerate(losses)}


@torch.no_grad()
def own_guess(
    model: TextToVideo, clean: Tensor, seen: Tensor, kv: KV, past: Past | None, share: float
) -> Tensor:
    """`seen`, a share of it replaced by two steps of the model from a noised truth."""
    size = len(clean)
    half = None
    if past is not None:
        half = Past(past.frames, [LayerKV(x.k[:size], x.v[:size]) for x in past.layers])
    sigma = 0.3 + 0.65 * torch.rand(size)
    x = add_noise(clean, sigma, torch.randn_like(clean))
    for level in (sigma, sigma / 2):
        flow, _ = model.transformer.chunk(x, 1000 * level, kv, half)
        x = x - (sigma / 2).view(-1, 1, 1, 1, 1) * flow.float()
    replace = (torch.rand(size) < share).view(-1, 1, 1, 1, 1)
    return torch.where(replace, x, seen)


def train_dit(run: Path, *, minutes: float, rate: float, seed: int) -> None:
    """Short sequences first, then all chunks, then on the model's own past."""
    torch.manual_seed(seed)
    pool = load_pool(run)
    model = TextToVideo()
    path = run / "dit.safetensors"
    if path.exists():
        load_weights(model, path)
    start = time.monotonic()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        share = (time.monotonic() - start) / 60 / minutes
        chunks, size = (2, 24) if share < 0.25 else (4, 8)
        rows = torch.randint(len(pool.latents), (size,))
        rollout = 0.5 if share > 0.6 else 0.0
        return dit_loss(model, pool.latents[rows], pool.captions[rows], chunks, rollout)

    run_loop(
        model, loss_of, minutes=minutes, rate=rate, decay=0.998,
        save=lambda average: save_weights(average, path),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("stage", choices=["vae", "latents", "dit"])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="where checkpoints live")
    parser.add_argument("--minutes", type=float, default=40.0, help="how long the stage may take")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-share", type=float, default=0.2, help="VAE: share on 128x128")
    parser.add_argument("--clips", type=int, default=3000, help="latents: how many clips")
    args = parser.parse_args(argv)
    if args.stage == "vae":
        train_vae(
            args.run, minutes=args.minutes, rate=args.rate, seed=args.seed,
            full_share=args.full_share,
        )  # fmt: skip
    elif args.stage == "latents":
        encode_pool(args.run, clips=args.clips, seed=args.seed)
    else:
        train_dit(args.run, minutes=args.minutes, rate=args.rate, seed=args.seed)


if __name__ == "__main__":
    main()
