"""The fork server of the crash tests, for runs that last."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "crash")]

from harness import Server  # noqa: E402 - found through the line above


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Forks processes that run the real command line."""
    with Server() as found:
        yield found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was done and what was seen."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "soak":
                terminalreporter.write_line(f"{report.nodeid}\n{text}\n")
