"""What the demo's training minimizes: reconstruction by the VAE, flow by the DiT on its own past.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import WanVAE
from ..types import KV, LayerKV, Past
from . import scenes
from .clips import CHUNKS
from .model import MAX_TEXT, TIME_SHIFT, TextToVideo


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
    model: TextToVideo, latents: Tensor, captions: Tensor, control: Tensor, rollout: float
) -> tuple[Tensor, dict[str, float]]:
    """Teacher forcing with explicit caches: each noisy chunk sees the clean one before it.

    Clean and noisy copies of a chunk ride in one batch; the clean half's keys and values are what
    the next chunk attends to, as in a stream with a window of two chunks. For a share `rollout` of
    the samples the clean half is the model's own guess at it, now and then by the text of another
    sample, and in others it is blurred with a little noise: so a stream comes back from its own
    mistakes to what its prompt says, and takes up a new prompt. `latents` and `control` `[B, C, T,
    H, W]`, `captions` `[B, chunks]`. One text in ten is empty, for classifier-free guidance.
    """
    (size, chunks), dit = captions.shape, model.transformer
    names = scenes.all_captions()
    drop = some(latents, 0.1).tolist()
    texts = [
        "" if empty else names[caption].text
        for empty, row in zip(drop, captions.tolist(), strict=True)
        for caption in row
    ]
    past, first, losses = None, 0, []
    with torch.autocast(latents.device.type, torch.bfloat16):
        text = model.text(texts).reshape(size, chunks, MAX_TEXT, -1)
        for index, length in enumerate(CHUNKS[:chunks]):
            clean = latents[:, :, first : first + length]
            told = control[:, :, first : first + length]
            noise, sigma = torch.randn_like(clean), flow_times(clean)
            noisy, kv = add_noise(clean, sigma, noise), dit.text_kv(text[:, index])
            if index == chunks - 1:  # nothing comes after it that would see its clean half
                seen = torch.cat([noisy, told], dim=1)
                flow, _ = dit.chunk(seen, 1000 * sigma, kv, rows_of_past(past, size))
                losses.append((flow.float() - (noise - clean)).square().mean())
                break
            blur = 0.12 * torch.rand_like(sigma) * some(clean, 0.5)
            seen = add_noise(clean, blur, torch.randn_like(clean))
            if guessed := round(rollout * size):
                heard = rows_of(kv, misheard(guessed, clean.device))
                own_past = rows_of_past(past, guessed)
                guess = own_guess(dit, clean[:guessed], told[:guessed], heard, own_past)
                seen = torch.cat([guess, seen[guessed:]])
            times = torch.cat([torch.zeros_like(sigma), 1000 * sigma])
            both = torch.cat([torch.cat([seen, noisy]), told.repeat(2, 1, 1, 1, 1)], dim=1)
            flow, own = dit.chunk(both, times, twice(kv, size), past)
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
def own_guess(
    dit: WanTransformer, clean: Tensor, control: Tensor, kv: KV, past: Past | None
) -> Tensor:
    """What two steps of the model make of a noised truth."""
    sigma = 0.3 + 0.65 * torch.rand(len(clean), device=clean.device)
    x = add_noise(clean, sigma, torch.randn_like(clean))
    for level in (sigma, sigma / 2):
        flow, _ = dit.chunk(torch.cat([x, control], dim=1), 1000 * level, kv, past)
        x = x - column(sigma / 2) * flow.float()
    return x
