"""The fork server of the crash tests, for runs that last."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "crash"))

from harness import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Forks processes that run the real command line."""
    with Server() as found:
        yield found
