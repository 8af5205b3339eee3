"""Makes `engine_runs`, the ways to run the engine, importable; it lies with the differential tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for folder in (Path(__file__).resolve().parents[1] / "differential", Path(__file__).resolve().parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, for stores that need not outlive the machine."""
    import engine_runs

    with engine_runs.memory_folder() as found:
        yield found


@pytest.fixture
def agree(folder: Path) -> Callable[..., Any]:
    """Runs the engine in every way over a log, compares with the reference, and gives what that means."""
    import engine_runs

    return lambda tasks, log, **more: engine_runs.agree(tasks, log, folder, **more)
