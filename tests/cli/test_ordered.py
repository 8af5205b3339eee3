"""An app whose source is put in order: `check`, `explain` and `rehearse` see every event of it, and the late ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from secondpass.cli.shapes import StatusReport
from secondpass.connectors import ordered as ordered_module
from secondpass.engine import run as run_module
from secondpass.loading import load

APP = """
from secondpass import timer
from secondpass.connectors import Ordered


class Count(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 1
        return event.replace(cid=self.total)


class Due(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        self.gone.at(event.time + 5.0, event.cid)
        return event

    @timer
    def gone(self, cid: int) -> None:
        return None


app = App("sorted", source=Ordered(JsonLines(HERE / "in.jsonl", Seen, FOLLOW), lateness_s=2.0), tasks=[TASKS],
          sink=JsonLines(HERE / "out.jsonl"), sinks={SINKS})
"""
TIMES = (100.0, 110.0, 109.0, 101.0, 120.0, 121.0, 119.5)
IN_ORDER = [100.0, 109.0, 110.0, 119.5, 120.0, 121.0]


@pytest.fixture(
    params=["", '"late": JsonLines(HERE / "late.jsonl")'], ids=["no sink for late ones", "a sink"]
)
def ordered(request, project):
    """The app, which has run; the fourth event is late."""

    def make(tasks: str = "Count()", follow: str = "follow=False"):
        project.write(
            "sorted.py", APP.replace("SINKS", request.param).replace("TASKS", tasks).replace("FOLLOW", follow)
        )
        project.events([{"cid": i, "time": time} for i, time in enumerate(TIMES)])
        return project

    return make


@pytest.mark.parametrize("tasks", ["Count()", "Count(), Due()"])
def test_it_is_explained_and_rehearsed_at_every_position(ordered, command, tasks: str) -> None:
    made = ordered(tasks)
    assert command("run", "sorted.py", "-q").code == 0
    assert [event["time"] for event in made.output()] == IN_ORDER
    for position in range(len(TIMES)):
        done = command("explain", "sorted.py", str(position))
        assert done.code == 0, done.err
    done = command("rehearse", "sorted.py")
    assert (done.code, done.err) == (0, "")
    assert "no difference" in done.out


@pytest.mark.parametrize("follow", ["follow=False", "follow=True"])
def test_check_takes_all_of_its_events(ordered, command, follow: str) -> None:
    ordered(follow=follow)
    done = command("check", "sorted.py")
    assert done.code == 0, done.err
    # What is followed has no end at which the last ones would be let go.
    assert f"{7 if follow == 'follow=False' else 4} events" in done.out


LATER = (119.0, 122.0, 130.0, 121.0, 140.0)
AFTER_STANDING_STILL = [122.0, 130.0, 140.0]


def test_status_shows_the_file_and_how_far_it_was_read(ordered, command) -> None:
    made = ordered()
    for limit in (1, 3, 100):
        assert command("run", "sorted.py", "-q", "--limit", str(limit)).code in (0, 3)
        (source,) = command("status", "--json").document(StatusReport).stores[0].sources
        assert source.name == str(made.folder / "in.jsonl")
    assert source.done == source.total == (made.folder / "in.jsonl").stat().st_size
    assert "memory" not in command("status").out


def run_until(made: Any, position: int) -> None:
    """Run the app on an input that stands still, with a clock that goes on, until so many records were given."""
    app = load(str(made.folder / "sorted.py"))
    (source,) = app.sources
    now = iter(range(10**9))
    source.clock = lambda: next(now)

    def look(hub: Any) -> None:
        hub.stopping = hub.store.progress.position == position

    app.run(on_epoch=look, on_start=lambda hub: setattr(hub, "sleep", lambda _seconds: None), workers=0)


@pytest.fixture
def stood_still(ordered):
    """A followed source that stood still twice: what came behind it is late, also after the restart."""

    def make():
        made = ordered(follow="follow=True")
        run_until(made, len(TIMES))
        made.events([{"cid": i, "time": time} for i, time in enumerate([*TIMES, *LATER])])
        run_until(made, len(TIMES) + len(LATER))
        assert [event["time"] for event in made.output()] == [*IN_ORDER, *AFTER_STANDING_STILL]
        return made

    return make


def test_what_stood_still_is_explained_and_rehearsed(
    stood_still, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood_still()

    def unasked() -> float:
        raise AssertionError("read again, it looks at no clock")

    monkeypatch.setattr(ordered_module, "time", SimpleNamespace(monotonic=unasked, time=unasked))
    for position in range(len(TIMES) + len(LATER)):
        done = command("explain", "sorted.py", str(position))
        assert done.code == 0, done.err
    done = command("rehearse", "sorted.py")
    assert (done.code, done.err) == (0, "")
    assert "no difference" in done.out
    assert "ordered" not in command("history").out


def test_a_store_that_does_not_tell_when_it_stood_still_is_named_as_the_cause(
    stood_still, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("secondpass.engine.intake.Intake._note", lambda *_: None)
        older.setattr(run_module, "LATE", "none")  # a start that promises no such entries
        stood_still()
    cause = (
        f"to position {len(TIMES) + len(LATER)} the app ran with a secondpass that did not record when a source in "
        f"order (`Ordered`) stood still and let go of what it held"
    )
    for asked in (["rehearse", "sorted.py"], ["explain", "sorted.py", str(len(TIMES))]):
        done = command(*asked)
        assert done.code != 0
        assert cause in done.err
