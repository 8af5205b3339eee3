"""What all tests share: the repository's root, the real event data, Hypothesis profiles, the seed."""

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Examples are drawn anew in every run, so that runs add up; a failure prints the blob that repeats
# it. No deadline: a deadline measures the machine, and pytest-timeout ends what hangs.
settings.register_profile("dev", deadline=None, derandomize=False, print_blob=True)
settings.register_profile(
    "ci",
    settings.get_profile("dev"),
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],  # a loaded machine is slow to generate, not wrong
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real event data: SECONDPASS_DATA, or ../shared/data beside the repository."""
    named = os.environ.get("SECONDPASS_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if named:
            pytest.fail(f"SECONDPASS_DATA names {folder}, which is not a folder")
        pytest.skip("no real event data beside the repository; name its folder with SECONDPASS_DATA")
    return folder


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed, for tests that generate their own cases; `make test SEED=` sets it."""
    named = os.environ.get("SECONDPASS_SEED")
    return int(named) if named else request.config.getoption("randomly_seed")


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """A random generator of the test's own, repeated by the seed and the test's name."""
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture
def memory_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The machine counts what it kills for want of memory: of this run's tests only one at a time adds or reads."""
    with (tmp_path_factory.getbasetemp().parent / "memory-kills.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests that wait for others their time."""
    for item in items if config.getoption("timeout") != 0 else ():
        if "memory_kills" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say how to repeat a failed run: quiet output hides the header that names the seed."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        seed = os.environ.get("SECONDPASS_SEED") or terminalreporter.config.getoption("randomly_seed", None)
        terminalreporter.write_line(f"repeat this run's random choices with SEED={seed}")
