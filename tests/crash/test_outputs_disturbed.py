"""Someone truncates, appends to, edits or deletes an output file: the run stops, says so, and the way out works."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Case, lines, real_command, until

OUTPUT = 5


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    """An app that has run, and whose input has grown since."""
    found = new_case(lines(rng, 400))
    found.run()
    found.check()
    found.append(lines(rng, 400, first=400))
    return found


def whole(case: Case, rng: random.Random) -> bytes:
    """What the output would be if nobody had disturbed it."""
    twin = case.copy(case.directory.parent / "undisturbed")
    twin.run()
    twin.check()
    return (twin.directory / "out.jsonl").read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"note":"mine"}\n')


def append_half_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"no')


def edit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-50] + b"#" + data[-49:])


def replace(path: Path) -> None:
    path.write_bytes(b"something else entirely\n" * 3000)


DISTURBANCES = (truncate, empty, append, append_half_a_line, edit, replace, Path.unlink)


def refused(case: Case) -> str:
    """Run; it must stop with what it says, and change nothing."""
    before = {p.name: p.read_bytes() for p in case.directory.glob("*.jsonl")}
    with real_command(case.directory, "run", "crash_app.py") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == OUTPUT, err
    assert "out.jsonl" in err
    assert "--accept-output" in err
    assert {p.name: p.read_bytes() for p in case.directory.glob("*.jsonl")} == before, "the file was touched"
    return err


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_a_disturbed_output_stops_the_next_run_and_restoring_it_lets_it_go_on(
    case: Case, disturb: Callable[[Path], None]
) -> None:
    path = case.directory / "out.jsonl"
    as_left = path.read_bytes()
    disturb(path)
    refused(case)
    refused(case)  # asking again changes nothing
    path.write_bytes(as_left)
    case.run()
    case.check()


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_accepting_a_disturbed_output_appends_what_follows_and_nothing_twice(
    case: Case, disturb: Callable[[Path], None], rng: random.Random
) -> None:
    path = case.directory / "out.jsonl"
    as_left = path.read_bytes()
    follows = whole(case, rng)[len(as_left) :]
    assert follows
    disturb(path)
    disturbed = path.read_bytes() if path.exists() else b""
    refused(case)
    case.run("--accept-output")
    # A half line is ended, so that the first output does not become a part of it.
    ended = disturbed + b"\n" if disturbed and not disturbed.endswith(b"\n") else disturbed
    assert path.read_bytes() == ended + follows
    case.run()
    assert path.read_bytes() == ended + follows, "a run without news has written"


@pytest.mark.parametrize("point", ["deliver.before:12", "sys.sink.write.torn:11", "sink.sync.before:1"])
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_a_disturbance_after_a_crash_is_noticed_and_accepted_too(
    case: Case, point: str, disturb: Callable[[Path], None], rng: random.Random
) -> None:
    assert case.run(expect=None, SECONDPASS_KILL_AT=point) == -signal.SIGKILL
    case.check_after_kill()
    path = case.directory / "out.jsonl"
    as_left = path.read_bytes()
    disturb(path)
    code = case.run(expect=None)
    if code == 0:
        # Cutting off what the crash may have left unfinished, or deleting what was never vouched for.
        case.check()
        return
    assert code == OUTPUT, case.log()
    path.write_bytes(as_left)
    case.run()
    case.check()


def test_an_output_that_someone_writes_to_while_the_app_runs_stops_it(case: Case, rng: random.Random) -> None:
    path = case.directory / "out.jsonl"
    process = case.start("--follow")
    size = path.stat().st_size
    until(lambda: path.stat().st_size > size)
    with path.open("ab") as file:
        file.write(b'{"note":"mine"}\n')
    case.append(lines(rng, 300, first=800))
    assert process.wait(20) == OUTPUT, case.log()
    assert "out.jsonl" in case.log()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"note":"mine"}\n', b""))
    case.run()
    case.check()


def test_an_output_that_is_deleted_while_the_app_runs_stops_it(case: Case, rng: random.Random) -> None:
    path = case.directory / "out.jsonl"
    process = case.start("--follow")
    size = path.stat().st_size
    until(lambda: path.stat().st_size > size)
    moved = path.rename(case.directory / "moved")
    case.append(lines(rng, 300, first=800))
    assert process.wait(20) == OUTPUT, case.log()
    moved.rename(path)
    case.run()
    case.check()
