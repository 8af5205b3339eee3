"""While workers start, the stream goes on: in the hub at first, with the old code before a command's position."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass import App, Loaded
from secondpass.control import Control
from secondpass.engine.placement import cores
from secondpass.errors import ChangeRefused

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Loads the app's module anew; `gate` is closed, for loading or for setting up."""

    def load(when: str) -> Any:
        monkeypatch.setenv("GATED_HUB", str(os.getpid()))
        monkeypatch.setenv("GATED_GATE", str(tmp_path / "gate"))
        monkeypatch.setenv("GATED_WHEN", when)
        monkeypatch.delitem(sys.modules, "gated_app", raising=False)
        return importlib.import_module("gated_app")

    return load


class Live:
    """Events for as long as they are wanted."""

    def __init__(self, app: Any, wanted: Callable[[int], bool], most: int = 100_000) -> None:
        self._app, self._wanted, self._most = app, wanted, most
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        while self._wanted(self.given):
            assert self.given < self._most
            yield self._app.Tick(n=self.given)
            self.given += 1


def test_until_the_workers_have_started_events_run_in_the_hub(gated: Callable[[str], Any]) -> None:
    module, hubs, passed = gated("loading"), list[Any](), list[Any]()
    source = Live(module, lambda _: not hubs[0].chain.placement.gauges[0].shipped)
    app = App("gated", source=source, tasks=[module.Slow()], sink=passed.append)
    summary = app.run(store=None, workers=2, on_start=hubs.append)
    assert [event.n for event in passed] == list(range(source.given))
    placed = summary.placed["Slow"]
    assert placed.where == "both"
    assert 0 < placed.shipped < source.given - 100, (
        "the first hundred ran here, or the gate would not be open"
    )


def test_a_task_that_is_set_up_beforehand_sees_its_lookups(gated: Callable[[str], Any]) -> None:
    module, hubs, passed = gated("setting up"), list[Any](), list[Any]()
    source = Live(module, lambda _: not hubs[0].chain.placement.gauges[0].shipped)
    lookups = {"names": Loaded(lambda: {7: "seven"})}
    app = App("gated", source=source, tasks=[module.Indexed()], sink=passed.append, lookups=lookups)
    summary = app.run(store=None, workers=2, on_start=hubs.append)
    assert summary.placed["Indexed"].where == "both"
    assert {event.by for event in passed} == {"7"}


@pytest.mark.parametrize("place", ["auto", "workers"])
def test_a_task_that_can_only_run_on_workers_is_set_up_there_before_it_comes_in(
    gated: Callable[[str], Any], tmp_path: Path, place: str
) -> None:
    module, hubs, told = gated("setting up"), list[Any](), list[str]()
    options: Any = {"place": "workers"} if place == "workers" else {"limit_s": 60.0}

    def give() -> None:
        for name in ("First", "Second"):
            with pytest.raises(ChangeRefused) as found:
                control.add(module.Broken().options(name=name, **options))
            told.append(str(found.value))

    thread = threading.Thread(target=give)

    def wanted(given: int) -> bool:
        if given == 100:
            thread.start()
        if given >= 100:
            time.sleep(0.0002)
        return given < 100 or thread.is_alive()

    app = App("gated", source=Live(module, wanted), tasks=[module.Quick()])
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", workers=2, on_start=hubs.append)
    assert len(told) == 2
    assert all("no licence on this machine" in why for why in told)


@pytest.mark.parametrize("cls", ["Gated", "Late", "Broken", "Fatal"])
def test_a_command_has_its_position_once_its_workers_are_ready(
    gated: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: str
) -> None:
    module, hubs, passed = gated("setting up"), list[Any](), list[Any]()
    told: list[Any] = []

    def give() -> None:
        try:
            new = getattr(module, "Gated" if cls == "Late" else cls)().options(name="Quick", place="workers")
            told.append(control.replace(new, trial=0).position)
        except ChangeRefused as error:
            told.append(str(error))

    thread = threading.Thread(target=give)
    begun: list[int] = []

    def wanted(given: int) -> bool:
        hub = hubs[0]
        if given == 100:
            thread.start()
        made = hub.commands._waiting and hub.commands._waiting[0].preparation
        if made and made.crew is not None and made.crew.started:  # its workers have been told to set it up
            begun.append(hub.store.progress.position)
            if cls == "Late":
                monkeypatch.setattr("secondpass.engine.changes.PREPARATION_LIMIT_S", 0.5)
            elif begun[-1] > begun[0] + 200:
                module.GATE.touch()
        if given >= 100:
            time.sleep(0.0002)  # a stream that lasts until then, without filling the memory
        return given < 100 or thread.is_alive()

    control = Control(
        tmp_path / "store",
        app := App(
            "gated",
            source=Live(module, wanted),
            tasks=[module.Quick().options(place="workers")],
            sink=passed.append,
        ),
    )
    app.run(store=tmp_path / "store", workers=2, on_start=hubs.append)
    thread.join(60)
    assert [event.n for event in passed] == list(range(len(passed)))
    kinds = [entry["kind"] for entry in control.history()]
    if cls == "Gated":
        (position,) = told
        assert position > begun[0] + 200, "the stream went on meanwhile"
        assert {e.by for e in passed[:position]} == {""}
        assert kinds == ["start", "command"]
        return
    why = {
        "Late": "set the task up and try it took longer than 0.5 s",
        "Broken": "setup() failed on a worker: RuntimeError: no licence on this machine",
        "Fatal": "setup() ended its worker: ended with exit code 3",
    }
    assert why[cls] in told[0]
    assert {e.by for e in passed} == {""}
    assert kinds == ["start", "left out"]


@pytest.mark.skipif(cores() < 2, reason="by default an app has workers where there are cores for them")
def test_a_task_that_no_worker_can_load_runs_in_the_hub_from_its_position_on(
    gated: Callable[[str], Any], tmp_path: Path
) -> None:
    module, hubs, passed, told = gated("setting up"), list[Any](), list[Any](), list[Any]()

    class Local(module.Slow):  # type: ignore[misc, name-defined]
        def handle(self, event: Any) -> Any:
            return super().handle(event).replace(by="local")

    thread = threading.Thread(
        target=lambda: told.append(control.replace(Local().options(name="Slow")).position)
    )

    def wanted(given: int) -> bool:
        if hubs[0].chain.placement.gauges[0].shipped and thread.ident is None:
            thread.start()
        return thread.ident is None or thread.is_alive() or given < told[0] + 4000

    app = App("gated", source=Live(module, wanted), tasks=[module.Slow()], sink=passed.append)
    control = Control(tmp_path / "store", app)
    app.run(store=tmp_path / "store", on_start=hubs.append)
    (position,) = told
    assert [event.by for event in passed] == [""] * position + ["local"] * (len(passed) - position)
    assert len(passed) > position
