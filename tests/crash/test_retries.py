"""Dead letters sent again: each exactly once, whatever is killed on the way."""

import random
import signal
import subprocess
from collections.abc import Callable

import pytest
from harness import MALFORMED, Case, lines, real_command, until

from secondpass.store.spool import Command, Spool


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    """An app that has read its input; some dead letters are open."""
    found = new_case(lines(rng, 500))
    found.run()
    found.check()
    return found


def first_of(case: Case, task: str) -> int:
    return next(number for number, name in case.letters() if name == task)


def retried(case: Case, number: int, *options: str) -> subprocess.CompletedProcess[str]:
    """The real command, `secondpass dead-letters retry`; what it leaves in the spool is expected to be done."""
    with real_command(
        case.directory, "dead-letters", "retry", "crash_app.py", str(number), *options
    ) as process:
        out, err = process.communicate(timeout=30)
    known = set(case.wants)
    case.wants.update({n: c for n, c in Spool(case.store).waiting() if n not in known})
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_retry_waits_for_the_next_run_and_is_done_once(case: Case) -> None:
    number = first_of(case, "Recent")
    done = retried(case, number, "--event", '{"value": 12.5}')
    assert done.returncode == 0, done.stderr
    assert len(case.wants) == 1
    case.run()
    case.check()
    case.run()
    case.check()


@pytest.mark.parametrize("point", ["spool.put.before", "spool.put.after"])
def test_a_retry_that_is_killed_while_it_is_asked_for_is_done_once_or_never(case: Case, point: str) -> None:
    number = first_of(case, "Recent")
    done = retried(case, number, "--event", '{"value": 12.5}') if not point else None
    asked = case.server.start(
        case.directory,
        case.log_file,
        ["dead-letters", "retry", "crash_app.py", str(number), "--event", '{"value": 12.5}'],
        {"SECONDPASS_KILL_AT": point},
    )
    assert asked.wait() == -signal.SIGKILL, done
    case.wants = dict(Spool(case.store).waiting())
    assert len(case.wants) == (0 if point.endswith("before") else 1)
    case.run()
    case.check()


POINTS = [
    "take.before:1",
    "commit.before:1",
    "commit.sync.before:2",
    "sys.wal.sync.before:3",
    "commit.after:1",
    "commit.after:3",
    "spool.remove.before:1",
    "spool.remove.after:1",
    "spool.remove.before:3",
    "deliver.before:1",
    "sys.sink.write.torn:1",
    "finish.before:1",
]


@pytest.mark.parametrize("point", POINTS)
def test_retries_are_done_once_across_kills(case: Case, point: str, rng: random.Random) -> None:
    for task, event in (
        ("Recent", {"value": 1.0}),
        ("Split", None),
        (MALFORMED, {"n": 3, "cid": 4, "time": 5.0, "value": 6.0}),
    ):
        case.ask(Command("retry", first_of(case, task), event))
    case.append(lines(rng, 100, first=500))
    for _ in range(3):
        if case.run(expect=None, SECONDPASS_KILL_AT=point) == 0:
            break
        case.check_after_kill()
    case.run()
    case.check()


def test_a_running_app_does_a_retry_within_moments_and_once_across_kills(
    case: Case, rng: random.Random
) -> None:
    numbers = [number for number, task in case.letters() if task == "Recent"][:9]
    for number in numbers[:-1]:
        process = case.start("--follow")
        process.ended(rng.uniform(0, 0.1))
        case.ask(Command("retry", number, {"value": float(number)}))
        process.ended(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        case.check_after_kill()
    process = case.start("--follow")
    case.ask(Command("retry", numbers[-1], {"value": 8.5}))
    until(lambda: Spool(case.store).waiting() == [])
    process.kill(signal.SIGTERM)
    assert process.wait() == 0, case.log()
    case.check()


def test_the_same_letter_asked_for_twice_is_sent_once(case: Case) -> None:
    number = first_of(case, "Recent")
    for _ in range(3):
        case.ask(Command("retry", number, {"value": 2.0}))
    case.ask(Command("drop", number))
    case.run()
    assert "was sent already" in case.log()
    case.check()


@pytest.mark.parametrize("event", [{"value": "high"}, {"cid": None}, {"n": 2**70}])
def test_a_mended_event_that_does_not_fit_its_type_is_left_out_and_the_app_goes_on(
    case: Case, event: dict[str, object], rng: random.Random
) -> None:
    case.ask(Command("retry", first_of(case, "Recent"), event))
    case.append(lines(rng, 50, first=500))
    case.run()
    assert "left out" in case.log()
    case.check()


def test_a_malformed_line_that_is_sent_again_as_it_was_is_left_out(case: Case) -> None:
    case.ask(Command("retry", first_of(case, MALFORMED)))
    case.run()
    assert "left out" in case.log()
    case.check()
