"""What the crash tests share: the modules beside this file, and a fork server per test process."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "store"))  # the log's tests are here and there

from harness import Case, Server, memory_group  # noqa: E402 - found through the line above


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Forks processes that run the real command line, some milliseconds each."""
    with Server() as found:
        yield found


@pytest.fixture
def new_case(server: Server, tmp_path: Path) -> Callable[[list[bytes]], Case]:
    """Makes a directory with the app and its input, ready to run."""
    made = iter(range(1_000_000))
    return lambda lines: Case.make(tmp_path / f"case-{next(made)}", server, lines)


@pytest.fixture
def little_memory() -> Iterator[Callable[[], None]]:
    """Puts the process that calls it, and its children, where there are 300 MiB for all of them together."""
    with memory_group(300 << 20) as enter:
        if enter is None:
            pytest.skip("no control group can be made here")
        yield enter


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many random kills there were, and how to repeat them."""
    passed = terminalreporter.stats.get("passed", [])
    kills = sum(dict(report.user_properties).get("kills", 0) for report in passed if report.when == "call")
    if kills:
        seed = os.environ.get("SECONDPASS_SEED") or terminalreporter.config.getoption("randomly_seed", None)
        terminalreporter.write_line(
            f"{kills} kills at random moments, nothing lost or repeated (SEED={seed})"
        )
