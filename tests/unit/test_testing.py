"""`secondpass.testing.run` gives what the plain loop means, and says what a test wrote wrongly."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from secondpass import Event, Task, UntypedEvent, output, table, value
from secondpass.errors import DefinitionError, InputError, SettingsError, TaskFault, TaskStopped
from secondpass.record import Tick
from secondpass.reference import run as reference_run
from secondpass.testing import run


class Seen(Event):
    cid: int
    time: float


class Once(Task[Seen]):
    window_s: float = 60.0
    last = table(int, float, ttl_s="window_s")
    total = value(int, 0)
    repeats = output(Seen)

    def handle(self, event: Seen) -> Seen | None:
        self.total += 1
        if event.cid in self.last:
            self.count("repeated")
            self.repeats.emit(event)
            return None
        self.last[event.cid] = event.time
        return event


class Fussy(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 1
        if event.cid < 0:
            raise ValueError(f"no camera {event.cid}")
        return event


def seen(*pairs: tuple[int, float]) -> list[Seen]:
    return [Seen(cid=cid, time=time) for cid, time in pairs]


# ---------------------------------------------------------------- what it gives


def test_the_result_holds_outputs_named_outputs_state_and_tallies() -> None:
    result = run(Once(), seen((1, 0.0), (1, 59.0), (2, 59.5), (1, 60.0)))
    assert result.outputs == seen((1, 0.0), (2, 59.5), (1, 60.0))
    assert result.output("repeats") == seen((1, 59.0))
    assert result.output("main") == result.outputs
    assert result.dead_letters == []
    assert result.now == 60.0
    assert result.state("Once") == {"last": {1: 60.0, 2: 59.5}, "total": 4}
    tally = result.tally("Once")
    assert (tally.events, tally.passed, tally.dropped, tally.errors, tally.counts) == (
        4,
        3,
        1,
        0,
        {"repeated": 1},
    )


def test_a_task_may_be_named_by_itself_or_by_its_name() -> None:
    task = Once().options(name="first")
    result = run(task, seen((1, 0.0)))
    assert result.state(task) == result.state("first") == {"last": {1: 0.0}, "total": 1}
    assert result.tally(task) is result.tally("first")


def test_a_chain_may_hold_tasks_and_functions() -> None:
    def odd(event: Seen) -> Seen | None:
        return event if event.cid % 2 else None

    result = run([odd, Once(), lambda event: [event, event]], seen((1, 0.0), (2, 1.0), (1, 2.0)))
    assert result.outputs == seen((1, 0.0), (1, 0.0))
    assert result.tally("odd").dropped == 1


def test_the_events_may_come_from_a_generator() -> None:
    def events() -> Iterator[Seen | float]:
        yield Seen(cid=1, time=0.0)
        yield 60.0
        yield Seen(cid=1, time=60.0)

    assert len(run(Once(), events()).outputs) == 2


def test_a_task_that_was_run_is_as_it_was_before() -> None:
    task = Once()
    assert run(task, seen((1, 0.0))).outputs == run(task, seen((1, 0.0))).outputs
    assert task.last == {}


# ---------------------------------------------------------------- events and times


def test_a_number_moves_time_forward_and_expires_cells() -> None:
    assert run(Once(), [*seen((1, 0.0)), 59.9]).state("Once")["last"] == {1: 0.0}
    assert run(Once(), [*seen((1, 0.0)), 60]).state("Once")["last"] == {}


def test_a_number_in_the_past_changes_nothing() -> None:
    result = run(Once(), [*seen((1, 50.0)), 10.0, Seen(cid=1, time=20.0)])
    assert (result.now, result.outputs) == (50.0, seen((1, 50.0)))


def test_later_events_see_the_time_that_a_number_set() -> None:
    times: list[float] = []

    class Clock(Task[Seen]):
        def handle(self, event: Seen) -> None:
            times.append(self.now)

    run(Clock(), [*seen((1, 1.0)), 7.5, *seen((1, 2.0), (1, 9.0))])
    assert times == [1.0, 7.5, 9.0]


def test_a_tick_reaches_no_task_but_takes_a_position() -> None:
    positions: list[int] = []

    class Where(Task):
        def handle(self, event: UntypedEvent) -> None:
            positions.append(self.position)

    result = run(Where(), [{"n": 1}, 5.0, {"n": 2}])
    assert (positions, result.tally("Where").events) == ([0, 2], 2)


def test_the_reference_takes_ticks_as_records() -> None:
    result = reference_run([Once()], [Seen(cid=1, time=0.0), Tick(100.0), Tick(50.0)])
    assert (result.now, result.state["Once"]["last"]) == (100.0, {})


def test_an_event_takes_its_declared_types_as_a_source_would_give_them() -> None:
    (event,) = run(Once(), [Seen(cid=1, time=3)]).outputs
    assert type(event.time) is float


@pytest.mark.parametrize("mapping", [{"n": [1]}, MappingProxyType({"n": [1]}), UntypedEvent(n=[1])])
def test_a_mapping_becomes_a_read_only_untyped_event(mapping) -> None:
    (event,) = run(lambda event: event, [mapping]).outputs
    assert type(event) is UntypedEvent
    assert event == {"n": (1,)}
    with pytest.raises(TypeError, match="read-only"):
        event["n"] = 2


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("one", "write an Event, a mapping"),
        (True, "write an Event, a mapping"),
        (None, "write an Event, a mapping"),
        (Seen, "write an Event, a mapping"),
        (Seen(cid="one", time=0.0), "cannot take its declared types: Expected `int`, got `str`"),
        ({"made": object()}, "cannot take its declared types"),
        (math.nan, "finite number of seconds"),
        (1.7e12, "looks like milliseconds"),
    ],
)
def test_what_is_no_event_is_refused_with_its_index(event, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"^events\[1\].*{said}"):
        run(lambda event: event, [{"n": 1}, event])


def test_a_mapping_that_every_task_would_let_pass_by_is_refused_with_the_type_to_use() -> None:
    with pytest.raises(
        SettingsError, match=r"events\[1\] is a mapping, and no task .* write an event of Seen"
    ):
        run([Once(), Fussy()], [Seen(cid=1, time=0.0), {"cid": 1, "time": 0.0}])


def test_an_event_that_no_source_would_let_in_is_said_or_collected() -> None:
    events = [Seen(cid=1, time=0.0), Seen(cid=1, time=math.inf)]
    with pytest.raises(InputError, match=r"events\[1\]: .*finite number of seconds"):
        run(Fussy(), events)
    (letter,) = run(Fussy(), events, errors="collect").dead_letters
    assert (letter.position, letter.task) == (1, "")


# ---------------------------------------------------------------- errors


def test_the_first_error_is_raised_as_it_is_with_its_place_as_a_note() -> None:
    with pytest.raises(ValueError, match="no camera -1") as caught:
        run(Fussy(), [*seen((1, 0.0), (-1, 1.0), (-2, 2.0))])
    assert str(caught.value) == "no camera -1"
    assert caught.value.__notes__ == ["at task Fussy, position 1, events[1] = Seen(cid=-1, time=1.0)"]


@pytest.mark.parametrize("on_error", ["dead_letter", "pass", "stop"])
def test_an_error_is_raised_whatever_the_task_says_about_errors(on_error) -> None:
    with pytest.raises(ValueError, match="no camera -1"):
        run(Fussy().options(on_error=on_error), seen((-1, 1.0)))


def test_collected_errors_are_dead_letters_and_undo_their_call() -> None:
    result = run([Fussy(), Once()], seen((1, 0.0), (-1, 1.0), (2, 2.0)), errors="collect")
    assert result.outputs == seen((1, 0.0), (2, 2.0))
    (letter,) = result.dead_letters
    assert (letter.position, letter.task, letter.error) == (1, "Fussy", "ValueError: no camera -1")
    assert letter.event == Seen(cid=-1, time=1.0)
    assert result.state("Fussy") == {"total": 2}


def test_what_a_task_may_not_do_is_told_with_a_way_out_and_its_own_line_last() -> None:
    class Calls(Task[Seen]):
        calls = output()

        def handle(self, event: Seen) -> None:
            if event.cid:
                self.call.emit(event)  # type: ignore[attr-defined]
            event.time = 3.0  # type: ignore[misc]

    misspelt, assigned = run(
        Calls(), [Seen(cid=1, time=1.0), Seen(cid=0, time=2.0)], errors="collect"
    ).dead_letters
    assert misspelt.error == "AttributeError: 'Calls' object has no attribute 'call'; its outputs: calls"
    assert [line for line in misspelt.traceback.splitlines() if "File" in line][1:] == []
    assert assigned.error == (
        "AttributeError: immutable type: 'Seen'; event.replace(field=value) gives a changed one"
    )


def test_the_traceback_of_a_dead_letter_begins_with_the_tasks_own_code(tmp_path: Path) -> None:
    # Also where a user's folder has our name: a frame is ours by the package's place alone.
    (tmp_path / "secondpass").mkdir()
    file = tmp_path / "secondpass" / "deep.py"
    file.write_text("def inner(event):\n    raise ValueError('deep')\ndef outer(event):\n    inner(event)\n")
    scope: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    (letter,) = run(scope["outer"], [{"n": 1}], errors="collect").dead_letters
    assert re.findall(r'deep\.py", line (\d), in (\w+)', letter.traceback) == [("4", "outer"), ("2", "inner")]
    assert letter.traceback.count("File ") == 2


def test_collecting_leaves_a_task_that_passes_errors_on_in_peace() -> None:
    result = run(Fussy().options(on_error="pass"), seen((-1, 1.0)), errors="collect")
    assert (result.outputs, result.dead_letters, result.tally("Fussy").errors) == (seen((-1, 1.0)), [], 1)


def test_collecting_still_raises_what_would_stop_the_app() -> None:
    with pytest.raises(TaskStopped, match="no camera -1") as caught:
        run(Fussy().options(on_error="stop"), seen((1, 0.0), (-1, 1.0)), errors="collect")
    assert caught.value.details["position"] == 1


@pytest.mark.parametrize("errors", ["raise", "collect"])
def test_touching_a_cell_that_keys_did_not_declare_raises(errors) -> None:
    class Neighbour(Task[Seen]):
        last = table(int, float)

        def keys(self, event: Seen) -> tuple[int]:
            return (event.cid,)

        def handle(self, event: Seen) -> Seen:
            self.last[event.cid + 1] = event.time
            return event

    with pytest.raises(TaskFault, match=r"(?s)key 2 is not among those that keys\(\) declared.*position 0"):
        run(Neighbour(), seen((1, 0.0)), errors=errors)


@pytest.mark.parametrize("errors", ["raise", "collect"])
def test_a_wrong_type_in_a_cell_raises(errors) -> None:
    class Wrong(Task[Seen]):
        last = table(int, float)

        def handle(self, event: Seen) -> Seen:
            self.last[event.cid] = 0
            return event

    with pytest.raises(TaskFault, match=r"write 0\.0"):
        run(Wrong(), seen((1, 0.0)), errors=errors)


def test_the_error_of_the_first_event_wins_over_a_refusal_after_it() -> None:
    with pytest.raises(ValueError, match="no camera"):
        run(Fussy(), seen((-1, 0.0), (1, math.inf)))


# ---------------------------------------------------------------- what a test wrote wrongly


def test_what_is_not_there_is_answered_with_what_is() -> None:
    result = run(Once(), [])
    with pytest.raises(SettingsError, match="no output is called 'pages'; there are: main, repeats"):
        result.output("pages")
    with pytest.raises(SettingsError, match="no task is called 'Twice'; there are: Once"):
        result.state("Twice")
    with pytest.raises(SettingsError, match="no task is called 'Twice'; there are: Once"):
        result.tally("Twice")


def test_a_class_or_a_twin_among_the_tasks_is_refused_as_an_app_refuses_it() -> None:
    with pytest.raises(DefinitionError, match=r"pass an object, Once\(\)"):
        run(Once, [])
    with pytest.raises(DefinitionError, match="two tasks are called 'Once'"):
        run([Once(), Once()], [])


def test_an_unknown_way_with_errors_is_refused() -> None:
    with pytest.raises(SettingsError, match="write 'raise' or 'collect'"):
        run(Once(), [], errors="ignore")


def test_a_function_task_keeps_its_event_type_when_errors_are_raised() -> None:
    class Other(Event):
        time: float

    def only_seen(event: Seen) -> None:
        """Drop what is of its type; anything else passes by."""

    assert run(only_seen, [Seen(cid=1, time=0.0), Other(time=1.0)]).outputs == [Other(time=1.0)]
