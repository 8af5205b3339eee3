"""Rule 11 at start: the chain in the file against the stored one; what could lose state is never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_runs import Scripted, in_store, steady, stored

from secondpass import App, Event, Task, table, value
from secondpass.engine.summary import Summary
from secondpass.errors import ChainChanged


class Seen(Event):
    cid: int
    time: float


LOG = [Seen(cid=n % 3, time=float(n)) for n in range(6)]


class Count(Task[Seen]):
    factor: float = 1.0
    seen = table(int, int, default=0)
    total = value(int, 0)

    def handle(self, event):
        self.seen[event.cid] += 1
        self.total += 1
        return event


class Other(Task[Seen]):
    names = table(int, list[int], factory=list)

    def handle(self, event):
        self.names[event.cid].append(1)
        return event


def run(tasks: Any, store: Path, *, count: int = 6, **more: Any) -> Summary:
    app = App("changes", source=Scripted(LOG[:count]), tasks=tasks)
    return app.run(store=store, on_start=lambda hub: setattr(hub, "pacer", steady(2)), **more)


def state(tasks: Any, store: Path) -> dict[str, Any]:
    return stored(tasks, store).state


@pytest.fixture
def store(folder: Path) -> Path:
    run([Count(), Other()], folder / "store", count=3)
    return folder / "store"


def test_rule_11_the_same_chain_goes_on_without_a_word(store: Path) -> None:
    assert run([Count(), Other()], store).changes == []
    assert state([Count()], store)["Count"] == {"seen": {0: 2, 1: 2, 2: 2}, "total": 6}


def test_rule_11_changed_settings_options_and_order_are_told_and_taken(store: Path) -> None:
    found = run([Other(), Count(factor=2.5).options(on_error="pass")], store).changes
    assert found == [
        "Count.factor: 1.0 -> 2.5",
        "Count: on_error dead_letter -> pass",
        "order of tasks changed: Other -> Count",
    ]


def test_rule_11_changed_code_is_told(folder: Path) -> None:
    def make(text: str) -> Any:
        path = folder / "app.py"
        path.write_text(
            f"from secondpass import App, Task\nclass One(Task):\n    def handle(self, event):\n        {text}\n"
        )
        import importlib.util

        spec = importlib.util.spec_from_file_location(f"app_{len(text)}", path)
        module = importlib.util.module_from_spec(spec)
        import sys

        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module.One()

    run([make("return event")], folder / "store", count=1)
    import linecache

    linecache.clearcache()
    assert run([make("return None  # now")], folder / "store").changes == ["One: new code"]


def test_rule_11_an_added_task_begins_empty_and_a_removed_one_is_kept_for_its_return(store: Path) -> None:
    assert run([Other()], store, count=4).changes == ["task Count removed (its state is kept for its return)"]
    assert run([Other(), Count()], store).changes == ["task Count added"]
    assert state([Count(), Other()], store) == {
        "Count": {"seen": {0: 1, 1: 2, 2: 2}, "total": 5},
        "Other": {"names": {0: [1, 1], 1: [1, 1], 2: [1, 1]}},
    }


def test_rule_11_state_removed_while_other_is_added_is_never_guessed(store: Path) -> None:
    with pytest.raises(
        ChainChanged, match=r"--rename Count=Counted; if the old one is not needed: --drop Count"
    ):
        run([Count().options(name="Counted"), Other()], store)
    # Nothing was changed by asking.
    assert run([Count(), Other()], store).changes == []


def test_rule_11_a_renamed_task_goes_on_with_its_state(store: Path) -> None:
    renamed = [Count().options(name="Counted"), Other()]
    told = run(renamed, store, rename={"Count": "Counted"}).changes
    assert told == ["state of Count goes on as Counted", "task Count is called Counted now"]
    assert state(renamed, store)["Counted"] == {"seen": {0: 2, 1: 2, 2: 2}, "total": 6}
    assert run(renamed, store).changes == []


def test_rule_11_two_tasks_may_swap_their_names(folder: Path) -> None:
    store = folder / "store"
    one, two = Count().options(name="one"), Count(factor=2.0).options(name="two")
    run([one], store, count=2)
    run([one, two], store, count=5)
    before = state([one, two], store)
    run([one, two], store, count=5, rename={"one": "two", "two": "one"})
    after = state([one, two], store)
    assert (after["one"], after["two"]) == (before["two"], before["one"])
    assert before["one"] != before["two"]


def test_rule_11_two_states_cannot_go_on_as_one(folder: Path) -> None:
    store = folder / "store"
    run([Count().options(name="old"), Count().options(name="new")], store, count=2)
    with pytest.raises(ChainChanged, match=r"new\.\w+ has state already; if it is not needed: --drop new"):
        run([Count().options(name="new")], store, rename={"old": "new"})
    run([Count().options(name="new")], store, rename={"old": "new"}, drop=["new"])
    assert state([Count().options(name="new")], store)["new"]["total"] == 6


def test_rule_11_dropped_state_is_gone_for_good(store: Path) -> None:
    assert "state of Count is dropped" in run([Other()], store, count=4, drop=["Count"]).changes
    run([Other(), Count()], store)
    assert state([Count()], store)["Count"]["total"] == 2


def test_rule_11_dropping_or_renaming_what_is_not_there_is_refused(store: Path) -> None:
    with pytest.raises(ChainChanged, match=r"--drop Nobody: the store has no such state; it has Count\.seen"):
        run([Count(), Other()], store, drop=["Nobody"])
    with pytest.raises(ChainChanged, match=r"--rename Count=Nobody: the app has no state Nobody\.seen"):
        run([Count(), Other()], store, rename={"Count": "Nobody"})


class CountFloats(Task[Seen]):
    factor: float = 1.0
    seen = table(int, float, default=0.0)
    total = value(int, 0)

    def handle(self, event):
        self.seen[event.cid] += 1
        return event


class CountNames(Task[Seen]):
    factor: float = 1.0
    seen = table(str, int, default=0)
    total = value(int, 0)

    def handle(self, event):
        return event


class CountFading(Task[Seen]):
    factor: float = 1.0
    seen = table(int, int, default=0, ttl_s=5.0)
    total = value(int, 0)

    def handle(self, event):
        return event


def test_rule_11_a_type_that_can_hold_the_stored_cells_is_taken_and_told(store: Path) -> None:
    changed = [CountFloats().options(name="Count"), Other()]
    assert "Count.seen: was table(int, int), is now table(int, float)" in run(changed, store).changes
    found = state(changed, store)["Count"]["seen"]
    assert found == {0: 2.0, 1: 2.0, 2: 2.0}
    assert {type(v) for v in found.values()} == {float}


@pytest.mark.parametrize("changed", [CountNames, CountFading])
def test_rule_11_a_type_that_cannot_is_refused_with_the_ways_out(store: Path, changed: Any) -> None:
    with pytest.raises(
        ChainChanged, match=r"the stored state of Count\.seen does not fit its new declaration"
    ):
        run([changed().options(name="Count"), Other()], store)
    run([changed().options(name="Count"), Other()], store, drop=["Count.seen"])
    assert state([changed().options(name="Count")], store)["Count"]["total"] == 3


def test_rule_11_every_start_is_recorded_with_what_changed(store: Path) -> None:
    from secondpass.store.database import Store

    run([Count(factor=3.0), Other()], store)
    opened = Store.open_to_read(store)
    starts = [(position, note["changes"]) for position, kind, note in opened.history() if kind == "start"]
    chain = {t["name"]: t for t in opened.meta("chain")}
    opened.close()
    assert starts == [(0, []), (3, ["Count.factor: 1.0 -> 3.0"])]
    assert chain["Count"]["settings"] == {"factor": 3.0}
    assert len(chain["Count"]["code"]) == 16


def test_a_store_of_the_same_events_by_other_cuts_holds_the_same(folder: Path) -> None:
    left = []
    for n, size in enumerate((1, 4, 100)):
        in_store([Count(), Other()], LOG, folder / str(n), steady(size))
        left.append(stored([Count(), Other()], folder / str(n)))
    assert left[0] == left[1] == left[2]


def test_a_longer_time_to_live_brings_back_nothing_that_had_expired(tmp_path: Path) -> None:
    class Once(Task[Any]):
        ttl: float = 10.0
        last = table(int, float, ttl_s="ttl")

        def handle(self, event: Any) -> Any:
            known = event["n"] in self.last
            self.last[event["n"]] = float(event["time"])
            return None if known else event

    times = [0.0, 5.0, 20.0]
    events = [{"n": n, "time": time} for n, time in enumerate(times)]
    App("ttl", source=events, tasks=[Once()]).run(store=tmp_path)
    passed: list[Any] = []
    again = [*events, {"n": 0, "time": 21.0}, {"n": 2, "time": 22.0}]
    App("ttl", source=again, tasks=[Once(ttl=1000.0)], sink=passed.append).run(store=tmp_path)
    # Of the three only the last was alive when the setting changed.
    assert [event["n"] for event in passed if event["time"] > 20] == [0]
    passed.clear()
    third = [*again, {"n": 1, "time": 23.0}]
    App("ttl", source=third, tasks=[Once(ttl=1000.0)], sink=passed.append).run(store=tmp_path)
    assert [event["n"] for event in passed if event["time"] > 22] == [1]
