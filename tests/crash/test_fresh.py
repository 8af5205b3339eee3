"""`run --fresh` throws the store and its outputs away, and a kill in the middle leaves nothing half done."""

import random
import signal
from collections.abc import Callable

import pytest
from harness import STREAMS, Case, lines, points

FRESH = [name for name in points() if name.startswith("fresh.")]
OUTPUT = 5


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    """An app that has run over an input that is another now."""
    found = new_case(lines(rng, 400))
    found.run()
    found.check()
    (found.directory / "in.jsonl").write_bytes(b"".join(lines(rng, 500)))
    found._states.clear()
    return found


def test_starting_over_gives_what_a_first_run_gives(case: Case) -> None:
    case.run("--fresh", "--yes")
    case.check()


@pytest.mark.parametrize("point", [f"{name}:{n}" for name in FRESH for n in (1, 2, 3)])
def test_starting_over_again_after_a_kill_gives_what_a_first_run_gives(case: Case, point: str) -> None:
    code = case.run("--fresh", "--yes", expect=None, SECONDPASS_KILL_AT=point)
    assert code == -signal.SIGKILL or not point.endswith(":1"), case.log()
    case.run("--fresh", "--yes")
    case.check()


def test_a_plain_run_after_a_kill_between_two_files_of_the_store_is_a_first_run(case: Case) -> None:
    for number in (1, 2, 3):
        twin = case.copy(case.directory.with_name(f"twin-{number}"))
        code = twin.run("--fresh", "--yes", expect=None, SECONDPASS_KILL_AT=f"fresh.file.after:{number}")
        assert code == -signal.SIGKILL, twin.log()
        twin.run()
        twin.check()


@pytest.mark.parametrize(
    "point", ["commit.after:1", "deliver.before:3", "sys.sink.write.torn:3", "commit.after:6"]
)
def test_starting_over_after_an_early_kill_gives_what_a_first_run_gives(
    new_case: Callable[[list[bytes]], Case], rng: random.Random, point: str
) -> None:
    case = new_case(lines(rng, 600))
    assert case.run(expect=None, SECONDPASS_KILL_AT=point) == -signal.SIGKILL
    case.run("--fresh", "--yes")
    case.check()


def test_starting_over_never_deletes_what_others_have_written(case: Case) -> None:
    path = case.directory / STREAMS["main"]
    path.write_bytes(b"somebody's notes\n" * 5000)
    assert case.run("--fresh", "--yes", expect=None) == OUTPUT, case.log()
    assert path.read_bytes() == b"somebody's notes\n" * 5000
