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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UMT5Config, UMT5EncoderModel

from ..config import StreamConfig
from ..layers.layout import channels_last
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import WanVAE
from ..sampling.schedule import linspace
from ..text.vocabulary import build_tokenizer
from ..types import KV, LayerKV, Past
from . import scenes
from .clips import CHUNKS, draw_ahead, mosaics, near, pictures, stories, to_float, words
from .optimize import load_weights, run_loop, save_weights
from .pack import pack

VAE_CONFIG: dict[str, Any] = {
    "base_dim": 16,
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
    "num_layers": 4,
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


@dataclass(frozen=True)
class Machine:
    """Where training runs, and how many processes draw for it."""

    device: torch.device
    workers: int


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b).clamp_min(1e-12)))


def noised(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A latent with the encoder's own noise; half the samples carry more.

    For the DiT will never hit a latent exactly, and the decoder must forgive it.
    """
    extra = 0.15 * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
    extra = extra * (torch.rand_like(extra) < 0.5)
    spread = (log_variance.exp() + extra.square()).sqrt()
    return mean + spread * torch.randn_like(mean)


def encoded(vae: WanVAE, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of a clip's latent, fp32."""
    moments, _ = vae.moments(clip)
    mean, log_variance = moments.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-8.0, 4.0)


def vae_loss(vae: WanVAE, clip: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction through a noisy latent, and a light pull of the latent to a unit normal."""
    with torch.autocast(clip.device.type, torch.bfloat16):
        mean, log_variance = encoded(vae, clip)
        out, _ = vae.decode(noised(mean, log_variance))
    out = out.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    l1, mse = (out - clip).abs().mean(), F.mse_loss(out, clip)
    loss = l1 + 2 * mse + 5e-5 * kl
    parts = {"l1": float(l1.detach()), "kl": float(kl.detach()), "psnr": psnr(out.detach(), clip)}
    return loss, parts


def decoder_loss(vae: WanVAE, clip: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction alone, the encoder as it is; edges weigh more than in `vae_loss`."""
    with torch.autocast(clip.device.type, torch.bfloat16):
        with torch.no_grad():
            latent = noised(*encoded(vae, clip))
        out, _ = vae.decode(latent)
    out = out.float()
    loss = (out - clip).abs().mean() + 10 * F.mse_loss(out, clip)
    return loss, {"loss": float(loss.detach()), "psnr": psnr(out.detach(), clip)}


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
    """Normalized latents of clips and of single pictures, and captions: rows of all_captions()."""

    clips: Tensor  # [clips, C, T, H, W]
    clip_captions: Tensor  # [clips, chunks]
    pictures: Tensor  # [pictures, C, 1, H, W]
    picture_captions: Tensor  # [pictures, 1]


@torch.no_grad()
def encode_pool(run: Path, *, clips: int, seed: int, machine: Machine) -> None:
    """Draw clips, and four times as many pictures; encode them with the trained VAE for the DiT."""
    vae = read_vae(run, machine).to(torch.bfloat16)
    data: dict[str, Tensor] = {}
    for name, chunks, size, batches in (
        ("clip", CHUNKS, 4, clips // 4),
        ("picture", (1,), 32, clips // 8),
    ):
        latents, captions = [], []
        for frames, labels in islice(
            draw_ahead(partial(stories, chunks, size), seed + 1000, machine.workers), batches
        ):
            batch = to_float(frames).to(machine.device, torch.bfloat16)
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
            latents.append(vae.encode(batch)[0].cpu().contiguous())
            captions.append(labels)
            if len(latents) % 100 == 0:
                print(f"{len(latents) * size} of {batches * size} {name}s encoded", flush=True)
        data[f"{name}s"], data[f"{name}_captions"] = torch.cat(latents), torch.cat(captions)
    sample = data["clips"].float()
    data["mean"] = sample.mean(dim=(0, 2, 3, 4))
    # A channel that says little must not be blown up to the size of those that say much.
    data["std"] = sample.std(dim=(0, 2, 3, 4)).clamp_min(0.3)
    path = run / "pool.safetensors"
    save_file(data, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_pool(run: Path) -> Pool:
    """What `encode_pool` wrote, normalized."""
    data = load_file(run / "pool.safetensors")
    column = (1, -1, 1, 1, 1)
    for name in ("clips", "pictures"):
        data[name] = (data[name].float() - data["mean"].view(column)) / data["std"].view(column)
    return Pool(data["clips"], data["clip_captions"], data["pictures"], data["picture_captions"])


class TextToVideo(nn.Module):
    """What the DiT stage trains: a word-level UMT5 encoder and the transformer, together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(words())
        config = UMT5Config(vocab_size=len(self.tokenizer), **TEXT_CONFIG)
        self.text_encoder = UMT5EncoderModel(config)
        self.transformer = WanTransformer.from_config(DIT_CONFIG)
        for name, weight in self.transformer.named_parameters():
            # Small outputs at first, but not zero, so that the text is heard from the start.
            if name.endswith("attn1.to_out.0.weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("attn2.to_out.0.weight"):
                nn.init.normal_(weight, std=0.04)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions to zero-padded states `[B, MAX_TEXT, text_dim]`, as the engine pads them."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=MAX_TEXT, return_tensors="pt"
        ).to(self.transformer.proj_out.weight.device)
        states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        padded: Tensor = states * tokens.attention_mask.unsqueeze(-1)
        return padded


def flow_times(like: Tensor) -> Tensor:
    """A noise level for each sample: logit-normal, moved towards 1; a tenth are exactly 1."""
    sigma = torch.randn(len(like), device=like.device).sigmoid()
    sigma = TIME_SHIFT * sigma / (1 + (TIME_SHIFT - 1) * sigma)
    return torch.where(some(like, 0.1), 1.0, sigma)


def some(like: Tensor, share: float) -> Tensor:
    """True for a random `share` of the samples, `[B]`."""
    return torch.rand(len(like), device=like.device) < share


def column(values: Tensor) -> Tensor:
    """`[B]` to `[B, 1, 1, 1, 1]`."""
    return values.view(-1, 1, 1, 1, 1)


def add_noise(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """`(1 - sigma) x + sigma noise`, one sigma for each sample."""
    return torch.lerp(x, noise, column(sigma))


def dit_loss(
    model: TextToVideo, latents: Tensor, captions: Tensor, chunks: int, rollout: float
) -> tuple[Tensor, dict[str, float]]:
    """Teacher forcing with explicit caches: each noisy chunk sees the clean one before it.

    Clean and noisy copies of a chunk ride in one batch; the clean half's keys and values are what
    the next chunk attends to, as in a stream with a window of two chunks. For a share `rollout` of
    the samples the clean half is the model's own guess at it, now and then by the text of another
    sample, and in others it is blurred with a little noise: so a stream comes back from its own
    mistakes to what its prompt says, and takes up a new prompt. `latents` `[B, C, T, H, W]`,
    `captions` `[B, chunks]`. One text in ten is empty, for classifier-free guidance.
    """
    size, dit = len(latents), model.transformer
    names = scenes.all_captions()
    drop = some(latents, 0.1).tolist()
    texts = [
        "" if empty else names[caption].text
        for empty, row in zip(drop, captions[:, :chunks].tolist(), strict=True)
        for caption in row
    ]
    past, first, losses = None, 0, []
    with torch.autocast(latents.device.type, torch.bfloat16):
        text = model.text(texts).reshape(size, chunks, MAX_TEXT, -1)
        for index, length in enumerate(CHUNKS[:chunks]):
            clean = latents[:, :, first : first + length]
            noise, sigma = torch.randn_like(clean), flow_times(clean)
            noisy, kv = add_noise(clean, sigma, noise), dit.text_kv(text[:, index])
            if index == chunks - 1:  # nothing comes after it that would see its clean half
                flow, _ = dit.chunk(noisy, 1000 * sigma, kv, rows_of_past(past, size))
                losses.append((flow.float() - (noise - clean)).square().mean())
                break
            blur = 0.12 * torch.rand_like(sigma) * some(clean, 0.5)
            seen = add_noise(clean, blur, torch.randn_like(clean))
            if guessed := round(rollout * size):
                heard = rows_of(kv, misheard(guessed, clean.device))
                guess = own_guess(dit, clean[:guessed], heard, rows_of_past(past, guessed))
                seen = torch.cat([guess, seen[guessed:]])
            times = torch.cat([torch.zeros_like(sigma), 1000 * sigma])
            flow, own = dit.chunk(torch.cat([seen, noisy]), times, twice(kv, size), past)
            losses.append((flow[size:].float() - (noise - clean)).square().mean())
            past = dit.past(length, clean.shape[3], clean.shape[4], twice(own, size))
            first += length
    loss = torch.stack(losses).mean()
    return loss, {f"chunk{i}": float(x.detach()) for i, x in enumerate(losses)}


def twice(kv: KV, size: int) -> KV:
    """The first `size` samples' keys and values, for both halves of a batch."""
    return [LayerKV(torch.cat([x.k[:size]] * 2), torch.cat([x.v[:size]] * 2)) for x in kv]


def rows_of(kv: KV, rows: Tensor) -> KV:
    """The keys and values of these samples of a batch."""
    return [LayerKV(x.k[rows], x.v[rows]) for x in kv]


def rows_of_past(past: Past | None, size: int) -> Past | None:
    """What the first `size` samples of a batch see of the past."""
    if past is None:
        return None
    return Past(past.frames, [LayerKV(x.k[:size], x.v[:size]) for x in past.layers])


def misheard(size: int, device: torch.device) -> Tensor:
    """Whose text each of `size` samples listens to: three in ten to their neighbor's."""
    rows = torch.arange(size, device=device)
    return torch.where(torch.rand(size, device=device) < 0.3, (rows + 1) % size, rows)


@torch.no_grad()
def own_guess(dit: WanTransformer, clean: Tensor, kv: KV, past: Past | None) -> Tensor:
    """What two steps of the model make of a noised truth."""
    sigma = 0.3 + 0.65 * torch.rand(len(clean), device=clean.device)
    x = add_noise(clean, sigma, torch.randn_like(clean))
    for level in (sigma, sigma / 2):
        x = x - column(sigma / 2) * dit.chunk(x, 1000 * level, kv, past)[0].float()
    return x


def train_dit(
    run: Path, *, minutes: float, rate: float, seed: int, picture_share: float, machine: Machine
) -> None:
    """Train on pictures for a share of the time, then on whole clips with some pictures.

    A stream's first chunk is a picture: what it shows, the later ones carry on.
    """
    torch.manual_seed(seed)
    pool = load_pool(run)
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

    def loss_on(
        latents: Tensor, captions: Tensor, size: int, rollout: float
    ) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (scale * size,))
        picked = latents[rows].to(machine.device)
        return dit_loss(model, picked, captions[rows], captions.shape[1], rollout)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if time.monotonic() - start < 60 * minutes * picture_share:
            return loss_on(pool.pictures, pool.picture_captions, 32, 0.0)
        pictures, _ = loss_on(pool.pictures, pool.picture_captions, 16, 0.0)
        clips, parts = loss_on(pool.clips, pool.clip_captions, 8, 0.5)
        return clips + 0.3 * pictures, {**parts, "pictures": float(pictures.detach())}

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
