"""A model whose parts are step graphs of a package, executed by whatever loaded them.

`livereel.export` documents the graphs. What executes them (onnxruntime, TensorRT, AOTInductor) is
behind `StepGraph`; which graph a chunk takes, and what state goes where, is said by `graph_dits`
and `graph_vae`.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.to_pixels import to_pixels_reference

from ..errors import CheckpointError, InputError
from ..sampling.stream import StreamSampler
from ..text.encoder import TextEncoder, load_tokenizer
from .graph_dits import load_dit, looks_at_latents
from .graph_vae import GraphVAE
from .makers import Maker

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..manifest import Manifest
    from ..package import Package
    from ..types import Frames, StreamDenoiser
    from .runner import Reader

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
GRAPHS = (
    "text_encode", "denoise_first", "denoise", "vae_decode_first", "vae_decode", "vae_encode_first",
    "vae_encode",
)  # fmt: skip
"""What every package has; with keys and values there is a `text_kv` as well."""


class StepGraph(Protocol):
    """A loaded graph."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, in memory of their own. Inputs have the manifest's shapes and dtypes,
        lie on the runner's device without gaps, and stay as they are."""


class _TextModel:
    """`text_encode` with the face of transformers' encoder; some take no mask."""

    def __init__(self, manifest: Manifest, graph: StepGraph, device: torch.device) -> None:
        self._graph, self.device = graph, device
        self._length = manifest.stream.max_sequence_length
        self.config = SimpleNamespace(d_model=manifest.latent.text_width)

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
        length = tokens.shape[1]
        if length > self._length:
            raise InputError(f"the text has {length} tokens; this package takes {self._length}")
        given = {"tokens": tokens} if mask is None else {"tokens": tokens, "mask": mask}
        padded = {name: F.pad(x, (0, self._length - length)) for name, x in given.items()}
        text = self._graph(padded)["text"]
        return SimpleNamespace(last_hidden_state=text[:, :length])


def text_encoder(
    folder: Path, manifest: Manifest, graph: StepGraph, device: torch.device
) -> TextEncoder:
    """The package's `text_encode` and tokenizer. Raises `CheckpointError` for a tokenizer that
    cannot be read."""
    model = _TextModel(manifest, graph, device)
    masked = any(x.name == "mask" for x in manifest.graphs["text_encode"].inputs)
    tokenizer = load_tokenizer(folder / "tokenizer")
    return TextEncoder(cast(Any, model), tokenizer, as_typed=not masked)


@dataclass(frozen=True)
class GraphRunner:
    """A loaded package; a `Runner`."""

    manifest: Manifest
    denoiser: StreamDenoiser
    transformer: Reader
    vae: GraphVAE
    text_encoder: TextEncoder
    device: torch.device

    @classmethod
    def of(
        cls, package: Package, graphs: Mapping[str, StepGraph], device: torch.device
    ) -> GraphRunner:
        """A package's graphs, loaded on `device`. Raises `CheckpointError` where one is missing or
        the tokenizer cannot be read."""
        manifest = package.manifest
        needed = GRAPHS if looks_at_latents(manifest) else (*GRAPHS, "text_kv")
        for name in needed:
            if name not in graphs:
                raise CheckpointError(f"{package.path} has no graph {name}: export it anew")
        denoiser, reader = load_dit(manifest, graphs)
        return cls(
            manifest=manifest,
            denoiser=denoiser,
            transformer=reader,
            vae=GraphVAE(manifest, graphs),
            text_encoder=text_encoder(package.path, manifest, graphs["text_encode"], device),
            device=device,
        )

    @property
    def layout(self) -> str:
        """How the ring and the caches of a stream lie in memory: caches of Triton's kernels have
        their channels last."""
        fused = self.manifest.format == "aoti" and self.manifest.on_gpu
        return "torch, fused" if fused and self.dtype != torch.float32 else "torch"

    @property
    def dtype(self) -> torch.dtype:
        """That of the state."""
        return DTYPES[self.manifest.dtype]

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """The streaming loop, for pictures of the package's own size."""
        latent = self.manifest.latent
        return StreamSampler(
            denoiser=self.denoiser,
            config=config,
            channels=latent.channels,
            size=(latent.height, latent.width),
            device=self.device,
            dtype=self.dtype,
            warm_up=latent.decoder_memory,
        )

    def maker(self, sampler: StreamSampler) -> Maker:
        """What makes a session's chunks."""
        return Maker(self, sampler)

    def encode_text(self, prompt: str, length: int) -> Tensor:
        """The prompt's embedding `[1, L, D]`, zero-padded to L = `length`."""
        return self.text_encoder.encode([prompt], length)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[1, 3, F, H, W]` in [-1, 1] to normalized fp32 latents, and the conv caches."""
        return self.vae.encode_normalized(self.ready(frames), caches)

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Normalized latents `[1, C, T, H, W]` to frames `[1, 3, F, H, W]` in [-1, 1]."""
        return self.vae.decode_normalized(self.ready(latents), caches)

    def to_bytes(self, decoded: Tensor) -> Tensor:
        """Floats `[B, 3, F, H, W]` to bytes `[B, F, H, W, 3]`."""
        return to_pixels_reference(decoded)

    def frames(self, decoded: Tensor) -> Frames:
        """What `decode` gave, as uint8 `[F, H, W, 3]` on the host."""
        pixels: Frames = self.to_bytes(decoded)[0].cpu().numpy()
        return pixels

    def cache_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches."""
        return self.vae.cache_shapes()

    def ready(self, x: Tensor) -> Tensor:
        """Frames or latents on the device, fp32.

        Raises `InputError` for a tensor of other than five dimensions.
        """
        if x.ndim != 5:
            raise InputError(f"frames or latents have five dimensions, got {tuple(x.shape)}")
        return x.to(self.device, torch.float32)
