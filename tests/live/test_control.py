"""`Control`, as users call it: whatever settings there are, wherever the app's store is, whatever came before."""

from __future__ import annotations

import datetime
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_app import Count, First, Seen, seen
from test_commands import Fed, stored

from secondpass import App, Task
from secondpass.control import Control
from secondpass.errors import ChangeRefused, StoreError


class Many(Task[Seen]):
    """Settings of kinds that JSON does not have, or that are called as an argument is."""

    since: datetime.datetime = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    day: datetime.date = datetime.date(2020, 1, 1)
    span: datetime.timedelta = datetime.timedelta(seconds=1)
    mark: bytes = b"m"
    days: tuple[datetime.date, ...] = ()
    text: str = "t"
    wait: float | None = None
    reason: str = ""

    def handle(self, event: Seen) -> Seen:
        told = f"{self.since:%Y} {self.day} {self.span} {self.mark!r} {self.days} {self.text} {self.wait} {self.reason}"
        return event.replace(by=told)


GIVEN: dict[str, Any] = {
    "since": datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC),
    "day": datetime.date(2022, 2, 2),
    "span": datetime.timedelta(days=3),
    "mark": b"\xff",
    "days": (datetime.date(2023, 3, 3),),
    "text": "2022-02-02",
    "wait": 1.5,
    "reason": "none",
}


def test_settings_of_every_kind_pass_by_another_process_and_stay_after_a_restart(tmp_path: Path) -> None:
    def run(upto: int) -> str:
        passed: list[Seen] = []
        app = App("many", source=seen(upto), tasks=[Many()], sink=passed.append)
        app.run(store=tmp_path / "store", workers=0)
        return passed[-1].by

    run(1)
    control = Control(tmp_path / "store")
    assert control.set("Many", GIVEN).waits
    told = run(2)
    assert told == f"2021 2022-02-02 3 days, 0:00:00 {GIVEN['mark']} {GIVEN['days']} 2022-02-02 1.5 none"
    assert [e["kind"] for e in control.history()] == ["start", "start", "command"]
    assert run(3) == told, "they stay"


def test_a_command_by_the_app_goes_to_the_store_of_the_run_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondpass.app._caller_directory", lambda: tmp_path)
    told: list[Any] = []

    def give() -> None:
        told.append(app.control.stop("Count"))
        told.append(app.control.history(1)[0]["asked"])

    source = Fed(1_000, {500: give})
    app = App("elsewhere", source=source, tasks=[Count()])
    app.run(store=tmp_path / "other", workers=0)
    assert (told[0].waits, told[1]) == (False, "stop")
    with pytest.raises(StoreError, match="there is no store in"):
        app.control.stop("Count")
    assert not (tmp_path / ".secondpass").exists()


def test_a_run_in_memory_takes_commands_and_keeps_no_history(tmp_path: Path) -> None:
    told: list[Any] = []

    def give() -> None:
        told.append(app.control.stop("Count").position)
        with pytest.raises(StoreError, match="runs in memory"):
            app.control.history()

    source = Fed(1_000, {500: give})
    app = App("memory", source=source, tasks=[Count()])
    summary = app.run(store=None, workers=0)
    assert summary.commands == 1
    assert 0 < told[0] < summary.position


class Known(Task[Seen]):
    """Refuses two events."""

    def handle(self, event: Seen) -> Seen:
        if event.n in (3, 4):
            raise LookupError(event.n)
        return event


@pytest.mark.parametrize("stored", [True, False])
def test_dead_letters_are_sent_again_and_dropped_from_python(tmp_path: Path, *, stored: bool) -> None:
    told: list[Any] = []
    passed: list[Seen] = []

    def give() -> None:
        told.append(app.control.retry_letter(0, {"n": 2_000}, reason="mended").position)
        told.append(app.control.drop_letter(1).position)
        with pytest.raises(ChangeRefused, match="dead letter 0 was sent already"):
            app.control.retry_letter(0)

    app = App("letters", source=Fed(1_000, {500: give}), tasks=[Known()], sink=passed.append)
    app.run(store=tmp_path / "store" if stored else None, workers=0)
    assert told[0] < told[1]
    assert [event.n for event in passed[told[0] - 3 :][:2]] == [told[0] - 1, 2_000]
    if stored:
        kinds = [
            (e["kind"], e["letter"], e["reason"])
            for e in Control(tmp_path / "store").history()
            if "letter" in e
        ]
        assert kinds[:2] == [("retry", 0, "mended"), ("drop", 1, "")]


def test_the_last_events_are_at_hand_for_a_trial_also_after_other_settings_and_other_code(
    tmp_path: Path,
) -> None:
    def give() -> None:
        while not stored(tmp_path / "store"):
            time.sleep(0.01)  # no event has come to the task yet
        control.set("Count", step=2)
        control.replace(Count(step=3))

    source = Fed(1_000, {500: give})
    app = App("tried", source=source, tasks=[First(), Count()])
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=0)
    changed, replaced = [e for e in control.history() if e["kind"] == "command"]
    assert changed["was"] == {"step": 1}
    assert replaced["tried"] > 0


def test_the_history_leaves_out_what_was_taken_from_live_sources(tmp_path: Path) -> None:
    app = App("live", source=[{"n": n} for n in range(10)], tasks=[])
    app.run(store=tmp_path / "store", workers=0)  # events without a time: each epoch notes the time of intake
    assert [e["kind"] for e in Control(tmp_path / "store").history()] == ["start"]
    assert Control(tmp_path / "store").history(5)[0]["position"] == 0


SETUP: list[Any] = [lambda: None]


class Model(Task[Seen]):
    """Has a resource to make."""

    size: int = 1

    def setup(self) -> None:
        SETUP[0]()

    def handle(self, event: Seen) -> Seen:
        return event.replace(by=f"model {self.size}")


@pytest.fixture
def stopped_model(tmp_path: Path) -> Iterator[Path]:
    """A store of an app whose task was stopped before this run begins: it is not set up."""
    SETUP[0] = lambda: None
    App("model", source=seen(10), tasks=[Model()]).run(store=tmp_path / "store", workers=0)
    Control(tmp_path / "store").stop("Model")
    App("model", source=seen(20), tasks=[Model()]).run(store=tmp_path / "store", workers=0)
    yield tmp_path / "store"
    SETUP[0] = lambda: None


def test_a_task_whose_setup_fails_is_not_started_and_the_app_runs_on(stopped_model: Path) -> None:
    def no_model() -> None:
        raise OSError("no model")

    def give() -> None:
        SETUP[0] = no_model
        with pytest.raises(ChangeRefused, match="OSError: no model"):
            control.start("Model")
        SETUP[0] = lambda: None
        assert not control.start("Model").waits

    source = Fed(1_000, {500: give})
    app = App("model", source=source, tasks=[Model()])
    control = Control(stopped_model, app)
    app.run(store=stopped_model, workers=0)
    assert [e["kind"] for e in control.history(3)] == ["start", "left out", "command"]


def test_code_that_hangs_is_refused_after_a_while_and_other_commands_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondpass.engine.changes.PREPARATION_LIMIT_S", 0.3)
    go_on = threading.Event()

    def give() -> None:
        SETUP[0] = go_on.wait
        with pytest.raises(ChangeRefused, match=r"took longer than 0\.3 s"):
            control.set("Model", size=2)
        SETUP[0] = lambda: None
        assert control.set("Model", size=3).position is not None
        go_on.set()

    source = Fed(1_000, {500: give})
    app = App("model", source=source, tasks=[Model()])
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=0)
    refused, done = control.history(2)
    assert (refused["kind"], done["was"], done["to"]["settings"]) == ("left out", {"size": 1}, {"size": 3})


def test_a_run_that_is_still_starting_can_be_ended(tmp_path: Path) -> None:
    store = tmp_path / "store"
    SETUP[0] = lambda: Control(store).end(wait=False)
    app = App("model", source=_endless, tasks=[Model()])
    try:
        assert app.run(store=store, workers=0).ended == "stopped"
    finally:
        SETUP[0] = lambda: None


def _endless() -> Iterator[Seen]:
    return (Seen(n=n, time=float(n)) for n in itertools.count())
