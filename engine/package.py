"""Packages: the folders that `livereel export` writes and the runners read.

A package holds step graphs, their weights, the tokenizer, and a manifest
(`livereel.engine.manifest`) with the size and sha256 of every file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from .checkpoint.folder import MODEL_INDEX, ModelFolder, read_json
from .errors import CheckpointError
from .manifest import MANIFEST, FileInfo, Manifest

NEGATIVE = "negative.safetensors"
"""In aoti packages that are guided: the empty prompt's embedding, `text`, fp32 `[L, D]`."""

_MANIFEST_BYTES = 4 << 20
_BLOCK = 1 << 22
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Package:
    """An opened package, its files checked."""

    path: Path
    manifest: Manifest

    @property
    def folder(self) -> ModelFolder:
        """The package as a model's folder: without components."""
        return ModelFolder(
            path=self.path, classes={}, stream=self.manifest.stream, has_recipe=True, exported=True
        )


def is_package(path: str | Path) -> bool:
    """Whether a folder looks like a package rather than a model in diffusers' layout."""
    path = Path(path)
    return (path / MANIFEST).is_file() and not (path / MODEL_INDEX).exists()


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the package at `path`; no other file is read. Raises `CheckpointError`."""
    file = Path(path) / MANIFEST
    return Manifest.from_dict(read_json(file, limit=_MANIFEST_BYTES), source=str(file))


def open_package(path: str | Path) -> Package:
    """Open a package and check all its files.

    Raises `CheckpointError`, in one sentence that names the file, where one is missing, or of
    another size or content than the manifest says.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, info in manifest.files.items():
        file = path / name
        try:
            found = file.stat().st_size
            if found != info.bytes:
                raise CheckpointError(
                    f"{file} has {found} bytes; the manifest says {info.bytes}: export it anew"
                )
            if _sha256(file) != info.sha256:
                raise CheckpointError(f"{file} was changed after the export: export it anew")
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    return Package(path=path, manifest=manifest)


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest, last of all, with what lies in `folder` as its files; gives it."""
    from .checkpoint.save import write_json

    files = {
        file.relative_to(folder).as_posix(): FileInfo(
            bytes=file.stat().st_size, sha256=_sha256(file)
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = replace(manifest, files=files)
    write_json(folder / MANIFEST, manifest.to_dict())
    return read_manifest(folder)


def fingerprint(model: Path) -> str:
    """Names a model folder's weights well enough to keep snapshots of different models apart: by
    all that is small in it, and by the size and the last bytes of what is large. Its own name does
    not count."""
    names = hashlib.sha256()
    for path in sorted(model.rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            size = path.stat().st_size
            names.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                file.seek(max(0, size - _FINGERPRINT_BYTES))
                names.update(file.read())
    return names.hexdigest()[:16]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
