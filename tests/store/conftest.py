"""What the tests of the store share: the module beside this file, and an open store."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from store_kit import Kept  # noqa: E402 - found through the line above


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def opened(directory: Path) -> Iterator[Callable[..., Kept]]:
    """Opens the store of the test's directory, ready to commit; all are closed in the end."""
    found: list[Kept] = []

    def open_(**options: Any) -> Kept:
        found.append(Kept.open(directory, **options))
        return found[-1]

    yield open_
    for kept in found:
        kept.close()


@pytest.fixture
def kept(opened: Callable[..., Kept]) -> Kept:
    """A new store that is open."""
    return opened()
