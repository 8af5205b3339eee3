"""One process at a time: a second run is refused, a dead holder is no obstacle, a stopped one can be replaced."""

import json
import os
import random
import signal
from collections.abc import Callable

import psutil
import pytest
from harness import Case, lines, real_command, until

from secondpass.store.lock import holder_of

STORE = 6


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    return new_case(lines(rng, 800))


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_a_second_run_is_refused_at_once_and_names_the_holder(case: Case) -> None:
    with real_command(case.directory, "run", "crash_app.py", "--follow") as first:
        until(lambda: holder_of(case.store) is not None)
        second = real_command(case.directory, "run", "crash_app.py")
        _, said = second.communicate(timeout=20)
        assert second.returncode == STORE, said
        assert f"process {first.pid} on" in said
        assert "--take-over" in said
        # The first goes on, and is still the one that is named.
        until(lambda: (case.directory / "pages.jsonl").exists())
        holder = holder_of(case.store)
        assert holder is not None
        assert holder["pid"] == first.pid
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=20)
    case.run()
    case.check()


def test_a_second_run_with_fresh_throws_nothing_away(case: Case) -> None:
    with real_command(case.directory, "run", "crash_app.py", "--follow") as first:
        until(
            lambda: (
                (case.directory / "out.jsonl").exists() and (case.directory / "out.jsonl").stat().st_size > 0
            )
        )
        second = real_command(case.directory, "run", "crash_app.py", "--fresh", "--yes")
        _, said = second.communicate(timeout=20)
        assert second.returncode == STORE, said
        assert (case.directory / "out.jsonl").exists()
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=20)
    case.run()
    case.check()


def test_a_dead_holders_lock_is_no_obstacle(case: Case) -> None:
    assert case.run(expect=None, SECONDPASS_KILL_AT="commit.after:3") == -signal.SIGKILL
    dead = json.loads((case.store / "hub.lock").read_text())
    assert not psutil.pid_exists(dead["pid"])
    case.run()
    case.check()


def test_looking_at_a_store_never_refuses_a_run(case: Case) -> None:
    case.run()
    for _ in range(10):
        process = case.start()
        while not process.ended(0):
            holder_of(case.store)
        assert process.wait() == 0, case.log()


@pytest.mark.parametrize(
    "point",
    [
        "take.after:4",
        "commit.before:4",
        "commit.sync.before:4",
        "sys.wal.sync.before:6",
        "sys.wal.write.torn:20",
        "commit.after:4",
        "deliver.before:4",
        "sys.sink.write.torn:4",
        "deliver.after:4",
        "recover.after:1",
        # Stopped before its name stood there: the kernel knows it.
        "lock.name.before:1",
        "lock.name.empty:1",
    ],
)
def test_a_stopped_holder_is_ended_by_a_take_over_and_nothing_is_written_twice(
    case: Case, point: str
) -> None:
    first = case.start(SECONDPASS_TEST_STOP=point)
    until(lambda: stopped(first.pid))
    assert case.run(expect=None) == STORE, case.log()
    assert f"process {first.pid} on" in case.log()
    case.run("--take-over")
    assert first.wait(5) in (-signal.SIGKILL, -signal.SIGTERM)
    case.check()


def test_a_stopped_holder_that_is_woken_during_the_take_over_writes_nothing_more(
    case: Case, rng: random.Random
) -> None:
    first = case.start(SECONDPASS_TEST_STOP="commit.sync.before:4")
    until(lambda: stopped(first.pid))
    second = case.start("--take-over")
    second.ended(rng.uniform(0, 0.2))
    os.kill(first.pid, signal.SIGCONT)
    first.wait(10)
    # Either it ended in good order after its epoch, as SIGTERM asks, or it was killed.
    assert second.wait() == 0, case.log()
    case.check()


def test_a_holder_that_is_running_is_asked_to_end_before_it_is_killed(case: Case) -> None:
    first = case.start("--follow")
    until(lambda: (case.directory / "pages.jsonl").exists())
    case.run("--take-over")
    assert first.wait(5) == 0, case.log()
    case.check()


def test_two_take_overs_at_once_leave_one_writer(case: Case) -> None:
    first = case.start(SECONDPASS_TEST_STOP="commit.sync.before:4")
    until(lambda: stopped(first.pid))
    rivals = [case.start("--take-over") for _ in range(2)]
    codes = {rival.wait() for rival in rivals}
    assert codes & {0, -signal.SIGTERM, STORE}, case.log()
    first.wait(5)
    case.run()
    case.check()
