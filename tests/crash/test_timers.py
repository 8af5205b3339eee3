"""Chains with timers and timetables are killed: at named points, and while time passes on a stream that stands still."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import pytest
from harness import Case, lines, points, until

from secondpass.store.reader import StoreReader

POINTS = [
    p
    for p in points()
    if p.startswith(("take.", "commit.", "deliver.", "sink.", "fold.", "finish.", "store."))
]


def test_a_run_with_timers_killed_anywhere_goes_on_as_if_it_had_not_been(
    new_case: Callable[[list[bytes]], Case], rng: random.Random
) -> None:
    case = new_case(lines(rng, 300)).clocked()
    counts = case.count()
    case.check()
    assert switches_of(case), "no timetable has switched anything"
    new = new_case(lines(rng, 300)).clocked()
    passed = [p for p in POINTS if p in counts]
    for point in passed:
        twin = new.copy(new.directory.with_name(f"at-{point}"))
        number = rng.randint(1, max(1, counts[point] // 2))
        assert twin.run(expect=None, SECONDPASS_KILL_AT=f"{point}:{number}") in (-9, 0)
        twin.check_after_kill()
        twin.weigh()
        twin.run()
        twin.check()
        twin.remove()


def history_of(case: Case) -> list[tuple[int, str, Any]]:
    if not (case.store / "store.db").exists():
        return []
    store = StoreReader.open_to_read(case.store)
    try:
        return list(store.history())
    finally:
        store.close()


def switches_of(case: Case) -> int:
    """How many switches of timetables are recorded."""
    return sum(details.get("by", "").startswith("timetable ") for _, _, details in history_of(case))


def ticks_of(case: Case) -> int:
    """How many ticks are recorded."""
    return sum(kind == "tick" for _, kind, _ in history_of(case))


@pytest.mark.parametrize("point", ["commit.before", "commit.after", "deliver.before", "sys.wal.sync.before"])
def test_ticks_are_records_that_a_kill_neither_loses_nor_repeats(
    point: str, new_case: Callable[[list[bytes]], Case], rng: random.Random
) -> None:
    case = new_case(lines(rng, 120)).timed()
    case.run()
    first = 120
    for _ in range(3):
        before = ticks_of(case)
        code = case.run("--follow", expect=None, SECONDPASS_KILL_AT=f"{point}:{rng.randint(1, 6)}")
        assert code == -9, case.log()
        case.check_after_kill()
        assert ticks_of(case) >= before
        case.append(lines(rng, 10, first=first))
        first += 10
    before = ticks_of(case)
    running = case.start("--follow")
    until(lambda: ticks_of(case) >= before + 3)
    running.kill(signal.SIGTERM)
    assert running.wait() == 0
    case.check()
