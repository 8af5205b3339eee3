"""Someone renames, truncates, replaces or edits an input file: nothing is skipped or read twice in silence."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Case, lines, real_command, until

from secondpass.errors import StoreError
from secondpass.store.database import Store

INPUT = 4


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    """An app that was killed in the middle of its input."""
    found = new_case(lines(rng, 900))
    assert found.run(expect=None, SECONDPASS_KILL_AT="commit.after:9") == -9
    found.check_after_kill()
    return found


def position(case: Case) -> int:
    store = Store.open_to_read(case.store)
    try:
        return store.progress.position
    finally:
        store.close()


def refused(case: Case, *options: str) -> str:
    before = position(case)
    with real_command(case.directory, "run", "crash_app.py", *options) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == INPUT, err
    assert "in.jsonl" in err
    assert "Traceback" not in err
    assert position(case) == before
    return err


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.jsonl"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    path.write_bytes(b"".join(lines(random.Random(99), 900)))


def replace_by_a_shorter_one(path: Path) -> None:
    path.write_bytes(b"".join(lines(random.Random(99), 20)))


def cut_the_head(path: Path) -> None:
    path.write_bytes(path.read_bytes().partition(b"\n")[2])


def edit_the_head(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"n": 0,', b'"n": 7,', 1))


def insert_a_line(path: Path) -> None:
    data = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*data[:5], data[7], *data[5:]]))


DISTURBANCES = (
    rename,
    truncate,
    empty,
    replace,
    replace_by_a_shorter_one,
    cut_the_head,
    edit_the_head,
    insert_a_line,
    Path.unlink,
)


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_a_disturbed_input_stops_the_next_run_and_restoring_it_lets_it_go_on(
    case: Case, disturb: Callable[[Path], None]
) -> None:
    path = case.directory / "in.jsonl"
    as_read = path.read_bytes()
    disturb(path)
    refused(case)
    if path.exists():
        # Accepting is for a file that was moved; other content is never accepted.
        refused(case, "--accept-input")
    path.write_bytes(as_read)
    case.run()
    case.check()


def test_an_input_that_was_copied_over_goes_on(case: Case) -> None:
    path = case.directory / "in.jsonl"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    case.run()
    case.check()


def test_an_input_under_another_name_is_accepted_when_asked_and_only_with_the_same_content(
    case: Case,
) -> None:
    path, app = case.directory / "in.jsonl", case.directory / "crash_app.py"
    path.rename(case.directory / "moved.jsonl")
    text = app.read_text()
    app.write_text(text.replace('"in.jsonl", Reading', '"moved.jsonl", Reading, name="in.jsonl"'))
    said = refused(case)
    assert "--accept-input" in said
    case.run("--accept-input")
    (case.directory / "moved.jsonl").rename(path)
    case.check()


@pytest.mark.parametrize("disturb", [truncate, empty, cut_the_head, edit_the_head])
def test_an_input_disturbed_while_it_is_followed_stops_the_run(
    case: Case, disturb: Callable[[Path], None], rng: random.Random
) -> None:
    path = case.directory / "in.jsonl"
    process = case.start("--follow")
    size = path.stat().st_size
    until(lambda: _read_until(case) == size)
    as_read = path.read_bytes()
    disturb(path)
    more = b"".join(lines(rng, 50, first=900))
    with path.open("ab") as file:
        file.write(more)
    assert process.wait(20) == INPUT, case.log()
    path.write_bytes(as_read + more)
    case.run()
    case.check()


def _read_until(case: Case) -> int:
    store = Store.open_to_read(case.store)
    try:
        return store.progress.sources[0]["offset"]["bytes"]
    finally:
        store.close()


def test_an_input_replaced_while_it_is_read_stops_the_run_before_the_next_commit(
    new_case: Callable[[list[bytes]], Case], rng: random.Random
) -> None:
    case = new_case(lines(rng, 3000))
    path = case.directory / "in.jsonl"
    process = case.start(SECONDPASS_TEST_STOP="take.after:5")
    until(lambda: position_or_none(case) is not None and _stopped(process.pid))
    data = path.read_bytes()
    path.rename(path.with_name("old.jsonl"))
    path.write_bytes(b"".join(lines(random.Random(98), 3000)))
    before = position(case)
    process.kill(signal.SIGCONT)
    assert process.wait(20) == INPUT, case.log()
    assert position(case) == before
    path.write_bytes(data)
    case.run()
    case.check()


def position_or_none(case: Case) -> int | None:
    try:
        return position(case)
    except StoreError:
        return None  # it is just being made


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
