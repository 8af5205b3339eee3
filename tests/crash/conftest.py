"""What the crash tests share: the modules beside this file, and a fork server per test process."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LITTLE = 300 << 20
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "store"))  # the log's tests are here and there

from harness import Case, Server  # noqa: E402 - found through the line above


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


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


@pytest.fixture
def little_memory() -> Iterator[Callable[[], None]]:
    """Puts the process that calls it, and its children, where there are 300 MiB for all of them together."""
    name = f"secondpass-test-{os.getpid()}"
    for root, limit in ((V1, "memory.limit_in_bytes"), (V2, "memory.max")):
        group = root / name
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(LITTLE))
                yield partial(_enter, group)
            finally:
                group.rmdir()
            return
    pytest.skip("no control group can be made here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many random kills there were, and how to repeat them."""
    passed = terminalreporter.stats.get("passed", [])
    kills = sum(dict(report.user_properties).get("kills", 0) for report in passed if report.when == "call")
    if kills:
        seed = os.environ.get("SECONDPASS_SEED") or terminalreporter.config.getoption("randomly_seed", None)
        terminalreporter.write_line(
            f"{kills} kills at random moments, nothing lost or repeated (SEED={seed})"
        )
