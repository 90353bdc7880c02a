"""Uploaded pictures: limits before decoding, and only pictures."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from livereel.engine.errors import InputError
from livereel.engine.serve import images
from livereel.engine.serve.images import Images, TooLarge
from livereel.engine.serve.limits import Limits

from .conftest import Live


def encoded(kind: str, size: tuple[int, int] = (64, 48), color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def part(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", head)
        + part(b"IDAT", zlib.compress(b""))
        + part(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_read(kind: str) -> None:
    image = images.read(encoded(kind), Limits())
    assert image.size == (64, 48)
    assert image.mode == "RGB"


def test_large_pictures_are_kept_small() -> None:
    assert max(images.read(encoded("JPEG", (3000, 1500)), Limits()).size) == 1280


@pytest.mark.parametrize("size", [(50_000, 50_000), (20_000, 1000), (65_535, 65_535)])
def test_bombs_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(TooLarge, match="pixels"):
        images.read(bomb(*size), Limits())


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a" + bytes(50), bytes(500), encoded("PNG")[:60], encoded("GIF"), encoded("TIFF")],
    ids=["nothing", "gif", "zeros", "cut short", "a real gif", "tiff"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no PNG, JPEG or WebP"):
        images.read(data, Limits())


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="at most 8"):
        images.read(bytes(9 << 20), Limits())


def test_a_picture_is_cut_to_the_streams_size() -> None:
    kept = Images(Limits())
    name = kept.add(images.read(encoded("PNG", (200, 100), "blue"), Limits()))
    pixels = np.frombuffer(kept.get(name).fit(48, 32), np.uint8).reshape(32, 48, 3)
    assert (pixels == (0, 0, 255)).all()


def test_pictures_are_forgotten() -> None:
    kept = Images(Limits(images=2))
    image = images.read(encoded("PNG"), Limits())
    names = [kept.add(image) for _ in range(3)]
    with pytest.raises(InputError, match="not any more"):
        kept.get(names[0])
    assert kept.get(names[2]).image is image
    kept = Images(Limits(image_s=-1))
    with pytest.raises(InputError, match="not any more"):
        kept.get(kept.add(image))


def test_uploads(live: Live) -> None:
    answer = live.http.post("/v1/images", content=encoded("PNG"))
    assert answer.status_code == 201
    assert (answer.json()["width"], answer.json()["height"]) == (64, 48)
    assert live.http.post("/v1/images", content=b"no").status_code == 400
    assert live.http.post("/v1/images", content=bomb(50_000, 50_000)).status_code == 413
