"""Ctrl-C and SIGTERM end a run after its epoch; running again goes on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Case, lines, real_command, until

INTERRUPTED = 130


@pytest.fixture
def case(new_case: Callable[[list[bytes]], Case], rng: random.Random) -> Case:
    return new_case(lines(rng, 3000))


def begun(case: Case) -> Callable[[], bool]:
    path = case.directory / "out.jsonl"
    return lambda: path.exists() and path.stat().st_size > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_run_after_the_current_epoch(case: Case, number: int, code: int) -> None:
    with real_command(case.directory, "run", "crash_app.py", "--follow") as process:
        until(begun(case))
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "stopped" in out
    standing = case.check(complete=False)
    # What was committed is delivered and recorded: the end was an orderly one.
    assert standing.position > 0
    case.run()
    case.check()


def test_ctrl_c_at_any_moment_is_an_orderly_end(case: Case, rng: random.Random) -> None:
    for _ in range(25):
        process = case.start()
        process.ended(rng.uniform(0.03, 0.15))
        process.kill(signal.SIGINT)
        assert process.wait(20) in (0, INTERRUPTED, 70), case.log()
        case.check_after_kill(state=False)
    case.run()
    case.check()


SLOW = """
import time
from pathlib import Path
from secondpass import App, Event
from secondpass.connectors import JsonLines

class Reading(Event):
    n: int

def slow(event):
    if event.n == 500:
        Path("asleep").touch()
        time.sleep(60)
    return event

app = App("slow", source=JsonLines("in.jsonl", Reading), tasks=[slow], sink=JsonLines("out.jsonl"))
"""


def test_a_second_ctrl_c_ends_a_task_that_takes_too_long(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(1000)))
    out = tmp_path / "out.jsonl"
    with real_command(tmp_path, "run", "slow.py") as process:
        until((tmp_path / "asleep").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # the first one has been taken, and waits for the epoch
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED, err
    # Whole epochs only, each delivered once.
    found = out.read_text().splitlines()
    assert found == [f'{{"n":{n}}}' for n in range(len(found))]
    assert 0 < len(found) < 500
    (tmp_path / "slow.py").write_text(SLOW.replace("time.sleep(60)", "pass"))
    with real_command(tmp_path, "run", "slow.py") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out.read_text().splitlines() == [f'{{"n":{n}}}' for n in range(1000)]
