"""Unusual keys, counts, errors and log lines: on workers and in the hub they mean what the plain loop makes of them."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from odd_tasks import KEYS, Counts, Equal, Last, Named, Odd, Seen, Seldom, Undeclared

from secondpass import App, Task, reference
from secondpass.errors import TaskFault
from secondpass.store.database import Store

EVENTS = [Seen(n=n, time=float(n)) for n in range(40)]
PLACES = pytest.mark.parametrize("place", ["inline", "workers"])


def run(
    store: Path, task: Task[Any], place: Any
) -> tuple[list[Any], list[tuple[int, str, str]], dict[str, int]]:
    """What one run puts out and sets aside, and what the next one, which finds nothing new, knows of its counts."""
    found: list[Any] = []
    app = App("odd", source=EVENTS, tasks=[task.options(place=place)], sink=found.append)
    app.run(store=store, workers=2)
    app.run(store=store, workers=2)
    with contextlib.closing(Store.open_to_read(store)) as read:
        letters = [(x.position, x.error, x.traceback) for _, _, x in read.letters()]
        counts = read.progress.tallies[task.name]["counts"]
    return found, letters, counts


def expected(task: Task[Any]) -> tuple[list[Any], list[tuple[int, str, str]], dict[str, int]]:
    result = reference.run([task], EVENTS)
    return (
        result.outputs,
        [(x.position, x.error, x.traceback) for x in result.dead_letters],
        dict(result.tallies[task.name].counts),
    )


@PLACES
@pytest.mark.parametrize(
    "task", [*(Counts(kind=kind) for kind in KEYS), Named(), Last(), Equal(), Seldom()], ids=str
)
def test_keys_may_name_too_much_whatever_they_are(tmp_path: Path, task: Task[Any], place: str) -> None:
    assert run(tmp_path / "store", task, place) == expected(task)


def test_one_event_after_the_other_finds_what_the_last_one_with_all_cells_left(tmp_path: Path) -> None:
    """On one worker, which is given those without keys in between."""
    found: list[Any] = []
    app = App("odd", source=EVENTS, tasks=[Seldom().options(place="workers")], sink=found.append)

    def ending_with_one_that_has_all(hub: Any) -> None:
        hub.pacer.limit = lambda: 2 if hub.store.progress.position else 1

    app.run(store=tmp_path / "store", workers=1, on_start=ending_with_one_that_has_all)
    assert found == expected(Seldom())[0]


@PLACES
@pytest.mark.parametrize("colour", [True, False])
def test_a_key_is_what_it_is_and_not_how_it_is_written(tmp_path: Path, place: str, *, colour: bool) -> None:
    with pytest.raises(TaskFault, match=r"not among those that keys\(\) declared"):
        run(tmp_path / "store", Undeclared(colour=colour), place)


@PLACES
@pytest.mark.parametrize("what", ["wordless_error", "surrogate_error", "large_count", "surrogate_count"])
def test_what_it_says_of_itself_is_no_reason_to_stop(tmp_path: Path, what: str, place: str) -> None:
    found = run(tmp_path / "store", Odd(what=what), place)
    assert found == expected(Odd(what=what))
    assert [(position, "killed" in error) for position, error, _ in found[1]] == [(5, False)]


@PLACES
@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("wrong_format", "'%d events' cannot be formatted: TypeError: %d format"),
        ("surrogate_line", "no file \\udcff.txt"),
        ("surrogate_trace", "no file"),
    ],
)
def test_a_line_of_the_log_loses_no_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, line: str, place: str
) -> None:
    with caplog.at_level(logging.WARNING, "secondpass.task"):
        assert run(tmp_path / "store", Odd(what=what), place) == expected(Odd(what=what))
    assert any(line in record.getMessage() for record in caplog.records)


@PLACES
@pytest.mark.parametrize(("what", "counted"), [("numpy_count", 10), ("named_count", 1)])
def test_a_number_that_stands_for_a_whole_one_is_counted_as_it(
    tmp_path: Path, what: str, counted: int, place: str
) -> None:
    found = run(tmp_path / "store", Odd(what=what), place)
    assert found == expected(Odd(what=what))
    assert found[2] == {"pixels": counted}


@PLACES
@pytest.mark.parametrize("what", ["half_count", "nameless_count"])
def test_what_is_no_count_is_a_fault_of_the_task(tmp_path: Path, what: str, place: str) -> None:
    with pytest.raises(TaskFault, match="a counter has a name, and a whole number is added"):
        run(tmp_path / "store", Odd(what=what), place)
    assert run(tmp_path / "store", Odd(what="numpy_count"), place)[0] == EVENTS[5:], "what precedes is kept"
