"""What tests of the split VAEs have ranks do. Ranks import this by its file's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livereel.engine.errors import InputError
from livereel.engine.layers.causal_conv import CausalConv3d
from livereel.engine.layers.layout import channels_last
from livereel.engine.models.cogvideox.config import CogVideoXVAEConfig
from livereel.engine.models.cogvideox.vae import CogVideoXVAE
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_blocks import FrameAttention
from livereel.engine.models.wan.vae_config import WanVAEConfig
from livereel.engine.parallel.group import Group
from livereel.engine.parallel.space_split import decode_space_split, encode_space_split
from livereel.engine.parallel.time_split import decode_time_split, encode_time_split

COMMON: dict[str, Any] = dict(
    base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4
)
CONFIGS: dict[str, WanVAEConfig | CogVideoXVAEConfig] = {
    "wan": WanVAEConfig(dim_mult=(1, 1, 2), temperal_downsample=(True, True), **COMMON),
    "wan late": WanVAEConfig(dim_mult=(1, 1, 2), temperal_downsample=(False, True), **COMMON),
    "wan 2.2": WanVAEConfig(
        dim_mult=(1, 2, 2), temperal_downsample=(True, True), in_channels=12, out_channels=12,
        patch_size=2, is_residual=True, decoder_base_dim=16, **COMMON,
    ),
    "cogvideox": CogVideoXVAEConfig(
        block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
    ),
}  # fmt: skip
KERNELS = "causal_conv3d", "upsample2x_conv", "rms_norm_silu", "group_norm_silu", "spatial_norm"


@lru_cache
def make(name: str, road: str = "") -> Any:
    """A VAE with the same weights in each process, on a road: in torch's layout by default, with
    channels last, or fused with each kernel's reference in place."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    vae: Any = WanVAE(config) if isinstance(config, WanVAEConfig) else CogVideoXVAE(config)
    for key, p in vae.eval().requires_grad_(False).named_parameters():
        if key.endswith(("gamma", "norm1.weight", "norm2.weight", "norm_layer.weight")):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("bias"):
            torch.nn.init.normal_(p, std=0.2)
    if road == "channels last":
        channels_last(vae)
    elif road == "fused":
        fused = import_module(type(vae).__module__.replace(".vae", ".fused_vae"))
        for op in KERNELS:
            if hasattr(fused, op):
                kernel = import_module(f"livereel.kernels.{op}")
                setattr(fused, op, getattr(kernel, f"{op}_reference"))
        return vae.fused()
    return vae


class Watch(TorchDispatchMode):
    """What a rank sent, in bytes, message by message, and the most that its tensors held at once.

    Counted are tensors that ops make while this is on: not weights nor inputs, and not what a
    library holds inside an op.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.other: Counter[str] = Counter()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            if name == "send":
                self.sent += [t.numel() * t.element_size() for t in args[0]]
            else:
                self.other[name] += 1
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if torch.is_tensor(made):
                storage = made.untyped_storage()
                if storage.data_ptr() not in inputs:
                    self._held[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {at: held for at, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return out


@torch.inference_mode()
def split(
    group: Group, *, ranks: int, vae: str, way: str, cuts: Sequence[int], size: tuple[int, int],
    batch: int = 1, counts: Sequence[Sequence[int]] | None = None, road: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Encode or decode noise, so many latent frames at a time, on some ranks; on the first alone
    too."""
    part = group.part(*range(ranks))
    if part is None:
        return {}
    model = make(vae, road)
    x, pieces = noise(model, way, cuts, size, batch)
    over_ranks = decode_time_split if way == "decode" else encode_time_split
    if road == "channels last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    result: dict[str, Any] = {"peak": 0, "alone": 0, "apart": 0.0}
    caches, kept = None, None
    for piece, given in zip(x.split(pieces, dim=2), counts or [None] * len(cuts), strict=True):
        with Watch() as watch:
            got, caches = over_ranks(model, piece, part, caches, given)
        result |= {"sent": watch.sent, "other": dict(watch.other)}
        result["peak"] = max(result["peak"], watch.peak)
        if got is not None:
            with Watch() as watch:
                one, kept = getattr(model, way)(piece, kept)
            result["alone"] = max(result["alone"], watch.peak)
            result["caches"] = [tuple(cache.shape) for cache in kept]
            result["shapes"] = tuple(got.shape), tuple(one.shape)
            result["apart"] = max(result["apart"], float((got - one).abs().max()))
    return result


@torch.inference_mode()
def split_rows(
    group: Group, *, ranks: int, vae: str, way: str, cuts: Sequence[int], size: tuple[int, int],
    batch: int = 1, road: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The same with bands of rows, chunk by chunk of so many latent frames."""
    part = group.part(*range(ranks))
    if part is None:
        return {}
    model = make(vae, road)
    x, pieces = noise(model, way, cuts, size, batch)
    over_ranks = decode_space_split if way == "decode" else encode_space_split
    result: dict[str, Any] = {"sent": [], "peak": 0, "alone": 0, "apart": 0.0}
    caches, kept = None, None
    for piece in x.split(pieces, dim=2):
        with Watch() as watch:
            got, caches = over_ranks(model, piece, part, caches)
        result["sent"].append(watch.sent)
        result["peak"] = max(result["peak"], watch.peak)
        if got is not None:
            result["borders"] = []
            with Watch() as watch, borders_told(model, result["borders"]):
                one, kept = getattr(model, way)(piece, kept)
            result["alone"] = max(result["alone"], watch.peak)
            result["shapes"] = tuple(got.shape), tuple(one.shape)
            result["apart"] = max(result["apart"], float((got - one).abs().max()))
    assert caches is not None
    result["caches"] = [tuple(cache.shape) for cache in caches]
    return result


@contextmanager
def borders_told(model: Any, told: list[tuple[int, int]]) -> Iterator[None]:
    """For each layer of a Wan VAE that sees rows beside its own, in turn: how many numbers a row of
    its new frames has, and of a layer with attention its keys and values; and the layer's stride,
    or 0 of attention."""

    def tell(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (x, *_) = inputs
        if isinstance(layer, FrameAttention):
            told.append((2 * x.shape[1] * x.shape[2] * x.shape[4], 0))
        elif isinstance(layer, CausalConv3d):
            if layer.kernel_size[1] > 1:
                told.append((x.shape[1] * (x.shape[2] - layer.history) * x.shape[4], 1))
        elif isinstance(layer, torch.nn.Conv2d) and layer.kernel_size[0] > 1:
            stride = int(layer.stride[0])
            told.append((len(x) * x.shape[1] * (x.shape[3] - (stride > 1)), stride))

    hooks = [layer.register_forward_pre_hook(tell) for layer in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def noise(
    model: Any, way: str, cuts: Sequence[int], size: tuple[int, int], batch: int
) -> tuple[torch.Tensor, list[int]]:
    """What `way` takes, of chunks of so many latent frames, and how many of its own these are."""
    generator = torch.Generator().manual_seed(sum(cuts))
    height, width = size
    if way == "decode":
        return torch.randn(batch, 4, sum(cuts), height, width, generator=generator), list(cuts)
    pieces = [model.temporal_factor * cut for cut in cuts]
    pieces[0] -= model.temporal_factor - 1
    down = model.spatial_factor
    shape = batch, 3, sum(pieces), height * down, width * down
    return torch.rand(shape, generator=generator) * 2 - 1, pieces


def refused(group: Group, **case: Any) -> str:
    """What is said of a clip that cannot be split."""
    try:
        split(group, **case)
    except InputError as error:
        return str(error)
    return ""


def refused_rows(group: Group, road: str) -> str:
    """What is said of frames whose rows cannot be split, or not on this road."""
    try:
        encode_space_split(make("wan", road), torch.zeros(1, 3, 1, 6, 8), group)
    except InputError as error:
        return str(error)
    return ""
