"""How much memory a model needs at a picture size, told before anything is loaded.

Nothing here imports torch unless a GPU is asked about: sizes come from the headers of the
safetensors files and from the folder's `config.json` files. All amounts are bytes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import registry
from .checkpoint.folder import ModelFolder
from .config import CLIP_PART, TILE_HEIGHT, TILE_WIDTH
from .errors import CheckpointError, ResourceError
from .machine import available_ram
from .package import read_manifest

if TYPE_CHECKING:
    from .manifest import Manifest

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_STORED_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
_READ = re.compile(rb"\x0a\x06length\x12[\x01-\x0d]([0-9]{1,13})")
"""How long a tensor in another file is, as ONNX's TensorProto tells it (`external_data`)."""
_RUNTIME = 400 * 1024 * 1024
_CLIP_SECONDS = 5.0
_DECODER_COPIES = 5
_PASS_COPIES = 10


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Where memory goes while a session runs, in bytes.

    `runtime` is Python with its libraries, `weights` all components, `kv_ring` keys and values of
    past and prompt, `conv_caches` the VAE decoder's past, `activations` the larger of a DiT pass
    and a decoder call over one chunk.
    """

    runtime: int
    weights: int
    kv_ring: int
    conv_caches: int
    activations: int

    @property
    def device(self) -> int:
        """What the accelerator holds: all but the runtime."""
        return self.weights + self.kv_ring + self.conv_caches + self.activations

    @property
    def total(self) -> int:
        """What one machine without an accelerator holds."""
        return self.runtime + self.device


def count_parameters(folder: ModelFolder) -> dict[str, int]:
    """Numbers stored per component, from the headers of its weight files."""
    counts = {name: sum(n for n, _ in _tensors(folder.path / name)) for name in folder.classes}
    return {name: count for name, count in counts.items() if count}


def estimate(
    folder: ModelFolder,
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    dtype: str = "auto",
    graphs: bool = False,
    tile: bool = False,
) -> MemoryEstimate:
    """What a session takes at a picture size (default: the model's own).

    A model that makes whole clips takes more the more `frames` a clip has (default: 5 seconds);
    a stream's length makes no difference, but whether it replays CUDA `graphs`: their ring has room
    for one chunk more, and the decoder's caches are held three times. With `tile` the decoder works
    on a tile at a time, and all frames are held as floats. `dtype` is that of weights
    and state; "auto" means as stored. Raises `CheckpointError` for a folder whose configs are
    missing or lack a field.
    """
    if folder.exported:
        return _of_package(folder)
    stream = folder.stream
    width, height = width or stream.width, height or stream.height
    dit, vae = _read_shapes(folder)
    sizes = {
        name: [(n, DTYPE_BYTES.get(dtype, stored)) for n, stored in _tensors(folder.path / name)]
        for name in folder.classes
    }
    item = max((size for _, size in sizes["transformer"]), default=DTYPE_BYTES.get(dtype, 4))
    tokens = dit.tokens(width // vae.spatial, height // vae.spatial)
    windowed = folder.classes.get("transformer") in registry.WINDOWED
    if folder.has_recipe and windowed:
        # A window at a time, past and chunk as one clip, with the prompt and then without.
        slots = seen = 0
        prompts = batch = 1
        latents = stream.sinks + stream.anchors + stream.window
        decoded = vae.part(stream.chunk_latents)
    elif folder.has_recipe:
        seen = stream.sinks + stream.anchors + stream.window - stream.chunk_latents
        slots = seen + stream.chunk_latents
        # Anchors and other frames have slots of their own (csrc/window.h).
        slots += stream.anchors > 0 and stream.window % stream.anchor_every > 0
        slots += stream.chunk_latents if graphs else 0
        prompts = 2 if stream.guidance_scale > 1.0 else 1
        latents = decoded = stream.chunk_latents
        batch = 1
    else:
        # The whole clip at once, with and without the prompt; decoded in parts.
        slots = seen = 0
        prompts = batch = 2
        latents = vae.latents(round(_CLIP_SECONDS * stream.fps) if frames is None else frames)
        decoded = vae.part(latents)
    length = stream.max_sequence_length
    queries = tokens * latents + (length if windowed else 0)
    across, down = (min(width, TILE_WIDTH), min(height, TILE_HEIGHT)) if tile else (width, height)
    pixels = width * height * latents * vae.temporal * 3 * (item + 4) if tile else 0
    return MemoryEstimate(
        runtime=_RUNTIME,
        weights=sum(n * size for component in sizes.values() for n, size in component),
        kv_ring=0 if windowed else dit.kv(tokens * slots + prompts * length, item),
        conv_caches=vae.conv_caches(across, down) * item * (3 if graphs else 1),
        activations=max(
            dit.pass_(
                batch * queries, tokens * seen, item, keeps=folder.has_recipe and not windowed
            ),
            vae.call(across, down, decoded, item) + pixels,
        ),
    )


def size_step(folder: ModelFolder) -> int:
    """Pixels that width and height must be multiples of: a VAE pixel times a DiT patch."""
    if folder.exported:
        latent = read_manifest(folder.path).latent
        return latent.spatial_factor * latent.patch
    dit, vae = _read_shapes(folder)
    return vae.spatial * max(dit.patch)


def temporal_factor(folder: ModelFolder) -> int:
    """Frames that a latent frame stands for."""
    if folder.exported:
        return read_manifest(folder.path).latent.temporal_factor
    return _read_shapes(folder)[1].temporal


def takes_pictures(folder: ModelFolder) -> bool:
    """Whether a model can be given a picture to start from: a stream, a DiT with channels or tokens
    for it, or one that takes it in place of the first latents."""
    if folder.has_recipe or folder.clean_start or "image_encoder" in folder.classes:
        return True
    config = folder.component("transformer").config
    return bool(config.get("in_channels") != config.get("out_channels"))


def available(device: str = "cpu") -> int | None:
    """Bytes still free on "cpu" or a CUDA device; None when the machine doesn't tell."""
    if device == "cpu":
        return available_ram()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def check(
    folder: ModelFolder,
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    tile: bool = False,
) -> MemoryEstimate:
    """The estimate, once it fits. Raises `ResourceError` with both amounts when it doesn't."""
    graphs = device != "cpu" and folder.has_recipe and dtype != "float32"
    need = estimate(
        folder, width=width, height=height, frames=frames, dtype=dtype, graphs=graphs, tile=tile
    )
    wanted = need.total if device == "cpu" else need.device
    free = available(device)
    if free is not None and wanted > free:
        size = "its own size" if width is None or height is None else f"{width}x{height}"
        shorter = "" if folder.has_recipe else ", a shorter clip"
        raise ResourceError(
            f"too little memory: the model needs about {gigabytes(wanted)} at {size} and "
            f"{gigabytes(free)} are free; try a smaller size{shorter}, another dtype or a smaller "
            "model"
        )
    return need


@contextlib.contextmanager
def shortage_told() -> Iterator[None]:
    """Raise `ResourceError`, in one sentence, where memory runs out inside the block.

    For want of RAM torch raises a plain `RuntimeError` that names its allocator.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        ours = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not ours and "DefaultCPUAllocator" not in str(error):
            raise
        raise ResourceError(
            "memory ran out; try a smaller size, a shorter clip, another dtype or a smaller model"
        ) from error


def gigabytes(amount: int) -> str:
    """An amount as a person reads it: "1.9 GB" or "812 MB" (powers of ten)."""
    if amount < 999.5e6:
        return f"{amount / 1e6:.0f} MB"
    return f"{amount / 1e9:,.1f} GB"


def millions(count: int) -> str:
    """A number of parameters as a person reads it: "4.10 M" or "1.42 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


@dataclass(frozen=True)
class _Transformer:
    """The few numbers of a DiT that its memory hangs on."""

    layers: int
    width: int
    ffn: int
    patch: tuple[int, int]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Transformer:
        width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        patch = config.get("patch_size", [1, 2, 2])
        patch = patch if isinstance(patch, (list, tuple)) else [patch, patch]
        return cls(
            layers=int(config["num_layers"]),
            width=width,
            ffn=int(config.get("ffn_dim", 4 * width)),
            patch=(int(patch[-2]), int(patch[-1])),
        )

    def tokens(self, latent_width: int, latent_height: int) -> int:
        """Tokens of one latent frame."""
        return (latent_height // self.patch[0]) * (latent_width // self.patch[1])

    def kv(self, tokens: int, item: int) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * tokens * self.width * item

    def pass_(self, queries: int, ring: int, item: int, *, keeps: bool) -> int:
        """A pass at its peak: one layer's buffers, the ring's copy in the order of time and its
        keys once more, rotated, and all layers' own keys and values if the pass keeps them."""
        layer = queries * (2 * self.ffn + _PASS_COPIES * self.width) * item
        return layer + keeps * self.kv(queries, item) + self.kv(ring, item) * 3 // 2


@dataclass(frozen=True)
class _Decoder:
    """The few numbers of a Wan VAE decoder that its memory hangs on."""

    base: int
    latent: int
    multiples: tuple[int, ...]
    blocks: int
    time_up: tuple[bool, ...]
    patch: int
    residual: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Decoder:
        down = config.get("temperal_downsample", [False, True, True])
        return cls(
            base=int(config.get("decoder_base_dim") or config.get("base_dim", 96)),
            latent=int(config.get("z_dim", 16)),
            multiples=tuple(int(m) for m in config.get("dim_mult", [1, 2, 4, 4])),
            blocks=int(config.get("num_res_blocks", 2)) + 1,
            time_up=tuple(bool(d) for d in reversed(down)),
            patch=int(config.get("patch_size") or 1),
            residual=bool(config.get("is_residual", False)),
        )

    @property
    def spatial(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self.patch * int(2 ** len(self.time_up))

    @property
    def temporal(self) -> int:
        """Frames that a latent frame stands for."""
        return int(2 ** sum(self.time_up))

    def conv_caches(self, width: int, height: int) -> int:
        """Numbers in the decoder's caches: two past input frames of each causal convolution."""
        area = (width // self.spatial) * (height // self.spatial)
        dims = [self.base * m for m in (self.multiples[-1], *reversed(self.multiples))]
        numbers = area * (self.latent + 4 * dims[0])
        for level, out in enumerate(dims[1:]):
            incoming = dims[level] // 2 if level and not self.residual else dims[level]
            numbers += area * (incoming + (2 * self.blocks - 1) * out)
            if level < len(self.time_up):
                numbers += area * out * self.time_up[level]
                area *= 4
        return 2 * (numbers + area * dims[-1])

    def latents(self, frames: int) -> int:
        """Latent frames of a clip: its first stands for one frame, each later one for several."""
        return 1 + math.ceil((frames - 1) / self.temporal)

    def part(self, latents: int) -> int:
        """Latent frames of a clip that go through the decoder together, at the most."""
        return min(latents, CLIP_PART)

    def call(self, width: int, height: int, latents: int, item: int) -> int:
        """The last level's buffers at their peak, and the frames as floats."""
        frames = latents * self.temporal
        area = math.ceil(width / self.patch) * math.ceil(height / self.patch)
        widest = self.base * max(self.multiples[0], self.multiples[min(1, len(self.multiples) - 1)])
        return frames * (area * widest * _DECODER_COPIES * item + width * height * 3 * 8)


class _DecoderSize(Protocol):
    """What is asked of a family's decoder; see `_Decoder`."""

    @property
    def spatial(self) -> int: ...

    @property
    def temporal(self) -> int: ...

    def conv_caches(self, width: int, height: int) -> int: ...

    def latents(self, frames: int) -> int: ...

    def part(self, latents: int) -> int: ...

    def call(self, width: int, height: int, latents: int, item: int) -> int: ...


def _of_package(folder: ModelFolder) -> MemoryEstimate:
    """Its weights as its graphs hold them, its state by the manifest, and the inputs and outputs of
    its largest graph once more for what is between them."""
    manifest = read_manifest(folder.path)
    stream, graphs = manifest.stream, manifest.graphs
    kv = sum(x.bytes for x in graphs["denoise"].outputs if x.name in ("k", "v"))
    slots = 2 * manifest.latent.past + stream.chunk_latents  # the ring, and what a chunk sees of it
    decoder = graphs["vae_decode"]
    return MemoryEstimate(
        runtime=_RUNTIME,
        weights=_held(folder.path, manifest),
        kv_ring=kv * slots // stream.chunk_latents,
        conv_caches=sum(x.bytes for x in decoder.inputs if x.name in decoder.state.values()),
        activations=max(
            sum(x.bytes for x in (*graph.inputs, *graph.outputs)) for graph in graphs.values()
        ),
    )


def _held(package: Path, manifest: Manifest) -> int:
    """Bytes of weights in memory: onnxruntime lays them out anew in each graph that reads them;
    graphs of other formats have them as the files do."""
    held = sum(info.bytes for info in manifest.files.values())
    if manifest.format != "onnx":
        return held
    held -= sum(info.bytes for name, info in manifest.files.items() if name.endswith(".weights"))
    for graph in manifest.graphs.values():
        try:
            content = (package / graph.file).read_bytes()
        except OSError as error:
            message = f"{package / graph.file} cannot be read: {error.strerror or error}"
            raise CheckpointError(message) from error
        held += sum(int(length) for length in _READ.findall(content))
    return held


def _read_shapes(folder: ModelFolder) -> tuple[_Transformer, _DecoderSize]:
    vae = folder.component("vae")
    family: type[Any] = registry.decoder_size(vae.class_name) or _Decoder
    try:
        decoder: _DecoderSize = family.read(vae.config)
        return _Transformer.read(folder.component("transformer").config), decoder
    except KeyError as error:
        raise CheckpointError(f"{folder.path}: a config.json lacks the key {error}") from None
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder.path}: a config.json has a wrong value: {error}") from None


def _tensors(component: Path) -> Iterator[tuple[int, int]]:
    """(numbers, bytes of each as stored) for all tensors of a component."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(component.glob("*.safetensors")):
        if "." in path.stem:  # a variant, such as model.fp16.safetensors, which nobody asked for
            continue
        try:
            with safe_open(str(path), framework="np") as file:
                parts = [file.get_slice(name) for name in file.keys()]
                found = [
                    (math.prod(part.get_shape()), _STORED_BYTES.get(str(part.get_dtype()), 1))
                    for part in parts
                ]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
        yield from found
