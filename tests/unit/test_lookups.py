"""Lookups: what they hold, who may change it, and what a reload means to the plain loop."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from secondpass import App, Event, Loaded, SecondpassError, Task, lookup, testing
from secondpass.connectors import Csv, JsonLines
from secondpass.errors import DefinitionError, InputError, SettingsError, TaskFault
from secondpass.lookups import Contents
from secondpass.testing import Change


class Camera(Event):
    cid: int
    road: str
    weight: float = 1.0


class Seen(Event):
    cid: int
    time: float


class Placed(Event):
    cid: int
    time: float
    road: str


class Place(Task[Seen]):
    cameras = lookup(int, Camera)

    def handle(self, event: Seen) -> Placed | None:
        camera = self.cameras.get(event.cid)
        return None if camera is None else event.to(Placed, road=camera.road)


SOUTH, NORTH = Camera(cid=7, road="south"), Camera(cid=9, road="north")


def test_a_task_reads_what_was_loaded_before_the_first_event() -> None:
    events = [Seen(cid=7, time=0.0), Seen(cid=8, time=1.0), Seen(cid=9, time=2.0)]
    result = testing.run(Place(), events, lookups={"cameras": {7: SOUTH, 9: NORTH}})
    assert [(e.cid, e.road) for e in result.outputs] == [(7, "south"), (9, "north")]


def test_a_reload_holds_from_its_position_on_and_takes_one() -> None:
    class Tell(Place):
        def handle(self, event: Seen) -> Any:
            found = super().handle(event)
            return None if found is None else found.replace(time=float(self.position))

    log = [
        Seen(cid=7, time=0.0),
        Change("reload", "cameras", {7: Camera(cid=7, road="west")}),
        Seen(cid=7, time=1.0),
        Seen(cid=9, time=1.0),
    ]
    result = testing.run(Tell(), log, lookups={"cameras": {7: SOUTH, 9: NORTH}})
    assert [(e.time, e.road) for e in result.outputs] == [(0.0, "south"), (2.0, "west")]


def test_two_tasks_look_into_the_same() -> None:
    class Again(Task[Placed]):
        cameras = lookup(int, Camera)

        def handle(self, event: Placed) -> Placed:
            return event.replace(road=event.road + "/" + self.cameras[event.cid].road)

    log = [Seen(cid=7, time=0.0), Change("reload", "cameras", {7: NORTH}), Seen(cid=7, time=1.0)]
    result = testing.run([Place(), Again()], log, lookups={"cameras": {7: SOUTH}})
    assert [e.road for e in result.outputs] == ["south/south", "north/north"]


def test_keys_may_look_into_lookups() -> None:
    class Near(Task[Seen]):
        near = lookup(int, tuple[int, ...])

        def keys(self, event: Seen) -> tuple[int, ...]:
            return self.near[event.cid]

        def handle(self, event: Seen) -> Seen:
            return event

    found = testing.run(Near(), [Seen(cid=7, time=0.0)], lookups={"near": {7: (7, 8)}})
    assert len(found.outputs) == 1


def test_it_is_in_key_order_and_read_only() -> None:
    found = Contents({9: "b", 7: "a", 8: "c"})
    assert list(found) == list(found.keys()) == [7, 8, 9]
    assert list(found.items()) == [(7, "a"), (8, "c"), (9, "b")]
    assert list(found.values()) == ["a", "c", "b"]
    assert list(reversed(found)) == [9, 8, 7]
    assert list({**found}) == list(dict(found)) == list(found.copy()) == [7, 8, 9]
    assert repr(found) == "{7: 'a', 8: 'c', 9: 'b'}"
    changes: list[Any] = [
        lambda: found.__setitem__(1, "x"),
        lambda: found.__delitem__(7),
        lambda: found.pop(7),
        found.popitem,
        found.clear,
        lambda: found.update({1: "x"}),
        lambda: found.setdefault(1, "x"),
        lambda: found.__ior__({1: "x"}),
    ]
    for change in changes:
        with pytest.raises(TaskFault, match="read-only"):
            change()
    assert dict(found) == {7: "a", 8: "c", 9: "b"}
    assert type(copy.copy(found)) is type(pickle.loads(pickle.dumps(found))) is dict


def test_what_is_loaded_takes_its_place_in_the_order() -> None:
    found = Contents({9: "b", 7: "a"})
    assert list(found) == [7, 9]
    found.take({8: "c"}, [9])
    assert list(found.items()) == [(7, "a"), (8, "c")]
    found.become({1: "x"})
    assert dict(found) == {1: "x"}


def test_a_task_called_by_hand_is_given_its_lookups() -> None:
    task = Place().with_lookups(cameras={7: SOUTH})
    assert task.handle(Seen(cid=7, time=0.0)) == Placed(cid=7, time=0.0, road="south")
    twin: Any = task.options(name="other")
    assert twin.handle(Seen(cid=7, time=0.0)) is not None
    with pytest.raises(TaskFault, match=r"Place.cameras holds nothing yet: give it with App\(lookups="):
        Place().handle(Seen(cid=7, time=0.0))
    with pytest.raises(SettingsError, match="Place has no lookup 'camera'; its lookups: cameras"):
        Place().with_lookups(camera={})


def test_a_task_cannot_assign_a_lookup() -> None:
    class Assign(Task[Seen]):
        cameras = lookup(int, Camera)

        def handle(self, event: Seen) -> Seen:
            self.cameras = {}
            return event

    with pytest.raises(TaskFault, match="is a lookup, which the run loads"):
        testing.run(Assign(), [Seen(cid=7, time=0.0)], lookups={"cameras": {}})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({7: "south"}, "Place.cameras\\[7\\]: .south. \\(str\\) is not exactly"),
        ({"7": SOUTH}, "as a key"),
        ({True: SOUTH}, "as a key"),
    ],
)
def test_what_is_not_of_the_declared_types_is_refused(given: dict[Any, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        testing.run(Place(), [], lookups={"cameras": given})


def test_a_lookup_that_is_missing_is_named() -> None:
    with pytest.raises(
        SettingsError, match=r"Place looks into 'cameras'; give it: lookups=\{'cameras': ...\}"
    ):
        testing.run(Place(), [Seen(cid=7, time=0.0)])


def test_values_are_immutable() -> None:
    with pytest.raises(DefinitionError, match=r"all calls share its values.*use tuple"):
        lookup(int, list[int])


def test_one_name_is_one_lookup() -> None:
    class Other(Task[Seen]):
        cameras = lookup(int, str)

        def handle(self, event: Seen) -> Seen:
            return event

    with pytest.raises(DefinitionError, match="one name is one lookup"):
        testing.run([Place(), Other()], [], lookups={"cameras": {}})


def test_a_subclass_has_the_lookups_of_its_base() -> None:
    class Sub(Place):
        pass

    found = testing.run(Sub(), [Seen(cid=7, time=0.0)], lookups={"cameras": {7: SOUTH}})
    assert found.outputs[0].road == "south"


@pytest.mark.parametrize("reload_s", [0, -1.0, float("nan"), "60", True])
def test_a_reload_needs_a_number_of_seconds(reload_s: Any) -> None:
    with pytest.raises(SecondpassError, match="write a positive number of seconds"):
        Loaded(dict, reload_s=reload_s)


def test_a_lookup_that_nobody_declares_is_named() -> None:
    for lookups, log in (
        ({"cameras": {}, "camera": {}}, []),
        ({"cameras": {}}, [Change("reload", "camera", {})]),
    ):
        with pytest.raises(
            SettingsError, match="no task here declares a lookup 'camera'; declared are: cameras"
        ):
            testing.run(Place(), log, lookups=lookups)


def test_an_app_says_which_lookup_is_missing_or_unknown() -> None:
    with pytest.raises(DefinitionError, match=r"Place looks into 'cameras': give it, App\(..., lookups="):
        App("a", tasks=[Place()])
    with pytest.raises(
        DefinitionError, match="no task declares a lookup of that name; declared are: cameras"
    ):
        App("a", tasks=[Place()], lookups={"cameras": {}, "roads": {}})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (Csv("cameras.csv", Camera), r"say which field is the key: Csv\(..., key='...'\)"),
        (JsonLines("cameras.jsonl", Camera, key="cid", follow=True), "a lookup is read to its end"),
        (JsonLines("-", Camera, key="cid"), "a lookup is read to its end"),
        ("cameras.csv", "give a mapping, a connector with a key"),
    ],
)
def test_what_cannot_be_a_lookup_is_refused(given: Any, why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        App("a", tasks=[Place()], lookups={"cameras": given})


@pytest.mark.parametrize("key", ["", (), ("cid", ""), 7])
def test_a_key_names_fields(key: Any) -> None:
    with pytest.raises(SettingsError, match="write a field's name, or a tuple of names"):
        Csv("cameras.csv", Camera, key=key)


def test_several_fields_are_one_key(tmp_path: Path) -> None:
    class ByRoad(Task[Seen]):
        cameras = lookup(tuple[str, int], Camera)

        def handle(self, event: Seen) -> Seen | None:
            return event if ("south", event.cid) in self.cameras else None

    file = tmp_path / "cameras.csv"
    file.write_text("cid,road\n7,south\n8,north\n")
    source = [Seen(cid=7, time=0.0), Seen(cid=8, time=1.0)]
    lookups = {"cameras": Csv(file, Camera, key=("road", "cid"))}
    summary = App("a", source=source, tasks=[ByRoad()], lookups=lookups).run(store=None, workers=0)
    assert summary.outputs == {"main": 1}
