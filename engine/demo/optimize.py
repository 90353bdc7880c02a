"""The optimizer's loop: on the clock, with averaged weights, from checkpoint to checkpoint.

Matrices and convolution kernels move by Muon (Jordan et al., "Muon: An optimizer for hidden layers
in neural networks", 2024), scaled to Adam's step as in Liu et al., "Muon is Scalable for LLM
Training" (2025); all else by AdamW. With Muon the demo's VAE knew colors after 200 steps.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layers.layout import channels_last


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


class MuonAndAdam:
    """Muon for the matrices inside a module, AdamW for its gains, biases and small kernels."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        self.rate = rate
        self._kernels = [weight for weight in module.parameters() if _is_matrix(weight)]
        # Muon takes matrices: those of convolutions are views [out, taps * in] of the same memory.
        channels_last(module)
        self._matrices = [nn.Parameter(_as_matrix(weight.detach())) for weight in self._kernels]
        others = [weight for weight in module.parameters() if not _is_matrix(weight)]
        self._optimizers: list[torch.optim.Optimizer] = []
        if self._matrices:
            muon = torch.optim.Muon(
                self._matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
            self._optimizers.append(muon)
        if others:
            adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
            self._optimizers.append(adam)

    def step(self, share: float) -> None:
        """One step along the gradients at `share` of the peak rate; drops the gradients."""
        for matrix, kernel in zip(self._matrices, self._kernels, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
            kernel.grad = None
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) >= 16


def _as_matrix(weight: Tensor) -> Tensor:
    """`[out, ...]` as `[out, n]`; of kernels that lie channels-last in memory, a view."""
    if weight.ndim > 2:
        weight = weight.movedim(1, -1)
    return weight.reshape(len(weight), -1)


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
    """Muon with warm-up and a cosine over the time allowed, clipping at 1, weights averaged.

    The schedule runs on the clock, so that a machine of any speed ends on small steps.
    """
    weights = list(modules.parameters())
    optimizer = MuonAndAdam(modules, rate)
    average = Average(modules, decay)
    start = last_save = last_print = time.monotonic()
    totals: dict[str, float] = {}
    step = since = 0
    while (spent := (time.monotonic() - start) / 60) < minutes:
        cosine = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * spent / minutes))
        loss, parts = loss_of(step)
        loss.backward()
        parts["grad"] = float(nn.utils.clip_grad_norm_(weights, 1.0))
        optimizer.step(min(1.0, (step + 1) / warmup) * cosine)
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
    tensors = {k: v.to("cpu", torch.bfloat16).contiguous() for k, v in module.state_dict().items()}
    save_file(tensors, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module in its own dtype."""
    from safetensors.torch import load_file

    module.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
