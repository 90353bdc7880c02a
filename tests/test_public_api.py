"""The public face: its names, and that it costs nothing to import."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import livereel.engine
from livereel.engine import errors

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "av")


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    report = "\nimport sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_names() -> None:
    assert sorted(livereel.engine.__all__) == [
        "CheckpointError",
        "Chunk",
        "ChunkStats",
        "Engine",
        "InputError",
        "LiveReelError",
        "ResourceError",
        "Session",
        "Shot",
        "Storyboard",
        "Video",
        "__version__",
    ]
    for name in livereel.engine.__all__:
        assert getattr(livereel.engine, name) is not None
        assert name in dir(livereel.engine)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        livereel.engine.Nonsense  # noqa: B018


def test_version_is_the_installed_one() -> None:
    assert livereel.engine.__version__ == importlib.metadata.version("livereel")


def test_errors_have_one_base() -> None:
    for error in (errors.InputError, errors.CheckpointError, errors.ResourceError):
        assert issubclass(error, errors.LiveReelError)
    assert issubclass(errors.InputError, ValueError)


def test_import_is_light() -> None:
    assert not modules_after("import livereel.engine").intersection(HEAVY)


def test_help_is_light() -> None:
    code = (
        "from livereel.engine.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert not modules_after(code).intersection(HEAVY)
