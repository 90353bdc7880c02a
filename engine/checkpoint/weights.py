"""Safetensors into a module: mapped from disk, checked whole, then moved tensor by tensor.

Nothing is read before every name and shape has been compared with the module, and nothing is held
twice: a tensor on the CPU whose dtype stays as it is remains a view of the mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError, ResourceError
from .folder import read_json

KeyMap = Callable[[Collection[str]], Mapping[str, str]]
"""Names as they stand in a file -> {name in the file: name in the module}."""

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' file names
_INDEX_BYTES = 32 << 20
_NAMED = 3  # how many keys an error lists


class Weights:
    """The tensors of one component, from one file or several; a context manager.

    `shapes` has every tensor's shape before any of them is read. Raises `CheckpointError` when a
    file is missing, truncated or no safetensors file, or when two hold the same name, and
    `ResourceError` for one that is larger than this machine can map.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._home: dict[str, tuple[Path, Any]] = {}
        self._stack = ExitStack()
        try:
            for path in files:
                self._open(path)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        try:
            handle = self._stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
            for name in handle.keys():
                if name in self._home:
                    raise CheckpointError(f"{path} repeats {name!r}, which another file holds too")
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())
                self._home[name] = (path, handle)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
        except RuntimeError as error:  # one file that is larger than the machine's memory
            raise ResourceError(f"{path} cannot be mapped: {error}") from error

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` on the CPU, a view of the mapped file."""
        path, handle = self._home[name]
        try:
            found: Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read at {name!r}: {error}") from error
        return found

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a component: `path` itself, or what its folder or index lists.

    Raises `CheckpointError` when there are none or an index names a file outside its folder.
    """
    if path.name.endswith(".index.json"):
        return _indexed(path)
    if path.is_file():
        return [path]
    for stem in STEMS:
        index = path / f"{stem}.safetensors.index.json"
        if index.exists():
            return _indexed(index)
        single = path / f"{stem}.safetensors"
        if single.exists():
            return [single]
    raise CheckpointError(f"{path} holds no {STEMS[0]}.safetensors (nor {STEMS[1]}.safetensors)")


def _indexed(index: Path) -> list[Path]:
    weight_map = read_json(index, limit=_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    names = list(dict.fromkeys(weight_map.values()))
    for name in names:
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r:.80}, which is no safetensors file there")
    return [index.parent / name for name in names]


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    key_map: KeyMap | None = None,
    tied: Mapping[str, str] | None = None,
    keep_in_fp32: Collection[str] | None = None,
) -> None:
    """Fill `module`, built on the meta device, from safetensors; leave it frozen and in eval mode.

    Floating-point tensors become `dtype` (None keeps the file's), but those stay float32 of which a
    part of the dotted name stands in `keep_in_fp32`, by default the module's attribute of that
    name. `key_map` renames a file's names to the module's. `tied` maps a name that a file may leave
    out to the one whose tensor it shares.

    Raises `CheckpointError` when names are missing or unknown or a shape differs, before any tensor
    is read, and when a file is missing, truncated or corrupt.
    """
    if keep_in_fp32 is None:
        keep_in_fp32 = getattr(module, "keep_in_fp32", ())
    keep = frozenset(keep_in_fp32)
    with Weights(weight_files(path)) as weights:
        source = _sources(weights, key_map, tied or {}, path)
        check_shapes(module, {name: weights.shapes[key] for name, key in source.items()}, path)
        read: dict[str, Tensor] = {}
        for name, key in source.items():
            if key not in read:
                fp32 = dtype is not None and not keep.isdisjoint(name.split("."))
                read[key] = _place(weights.tensor(key), device, torch.float32 if fp32 else dtype)
    state = {name: read[key] for name, key in source.items()}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
    _refuse_meta(module)


def _place(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """Move first, then cast, so that the cast runs where it is fast."""
    tensor = tensor.to(device)
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def _sources(
    weights: Weights, key_map: KeyMap | None, tied: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Name in the module -> name in the files."""
    keys = list(weights.shapes)
    renamed = key_map(keys) if key_map else {key: key for key in keys}
    source: dict[str, str] = {}
    for key in keys:
        if source.setdefault(renamed[key], key) != key:
            raise CheckpointError(f"{path} holds both {source[renamed[key]]!r} and {key!r}")
    for name, other in tied.items():
        if name not in source and other in source:
            source[name] = source[other]
    return source


def check_shapes(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str | Path
) -> None:
    """Compare names and shapes of tensors with what `module` takes.

    Raises `CheckpointError`, in one sentence that names the first few, when they differ.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    kind = type(module).__name__
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted]
    complaints = []
    if missing:
        complaints.append(f"lacks {_listed(missing)}")
    if extra:
        complaints.append(f"holds {_listed(extra)} that it does not know")
    if complaints:
        raise CheckpointError(f"{source} does not fit {kind}: it {' and '.join(complaints)}")
    wrong = [
        f"{name} is {list(shapes[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if shapes[name] != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit {kind} as its config has it: {'; '.join(wrong[:_NAMED])}"
            + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:120]) for name in names[:_NAMED])
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} key{'s' if len(names) > 1 else ''} ({shown}{rest})"


def _refuse_meta(module: nn.Module) -> None:
    """A buffer that no file fills must not be built under the meta device: a mistake in a model."""
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__}: buffers without values: {', '.join(left)}")
