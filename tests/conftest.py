"""Options that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--wheel",
        type=Path,
        metavar="FOLDER",
        help="the folder of a freshly built wheel, for the tests of what users install",
    )


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest) -> Path:
    """The wheel under test; without `--wheel` such tests are skipped."""
    folder = request.config.getoption("--wheel")
    if folder is None:
        pytest.skip("needs --wheel FOLDER (make test passes it)")
    (path,) = Path(folder).resolve().glob("livereel-*.whl")
    return path
