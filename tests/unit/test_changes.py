"""What commands mean: the chain changes at one place, and what a task remembers is never lost by a guess."""

from __future__ import annotations

import types
from typing import Any

import pytest

from secondpass import Event, Task, output, table, value
from secondpass.change import Aside, Link, changed
from secondpass.errors import ChangeRefused
from secondpass.testing import Change, run


class Seen(Event):
    n: int
    time: float
    by: str = ""


def seen(*numbers: int) -> list[Seen]:
    return [Seen(n=n, time=float(n)) for n in numbers]


class Count(Task[Seen]):
    """Marks each event with how many it has seen."""

    step: int = 1
    total = value(int, 0)
    last = table(int, float, ttl_s=10.0)

    def handle(self, event: Seen) -> Seen:
        self.total += self.step
        self.last[event.n] = event.time
        return event.replace(by=f"{event.by}{self.name}{self.total} ")


class Other(Task[Seen]):
    """Other code for the same state."""

    total = value(int, 0)
    last = table(int, float, ttl_s=10.0)

    def handle(self, event: Seen) -> Seen:
        self.total += 100
        return event.replace(by=f"{event.by}other{self.total} ")


class Poorer(Task[Seen]):
    """Has one of two states, of another type."""

    total = value(float, 0.0)

    def handle(self, event: Seen) -> Seen:
        return event.replace(by=f"{self.total} ")


class Upgraded(Poorer):
    def upgrade(self, old: dict[str, Any]) -> None:
        self.total = old["total"] + len(old["last"]) / 10


class BadUpgrade(Poorer):
    def upgrade(self, old: dict[str, Any]) -> None:
        self.total = old["total"] / 0


class Pages(Task[Seen]):
    pages = output(Seen)

    def handle(self, event: Seen) -> Seen:
        self.pages.emit(event)
        return event


def by(result: Any) -> list[str]:
    return [event.by.strip() for event in result.outputs]


def named(task: Task[Any], name: str) -> Task[Any]:
    return task.options(name=name)


def test_a_stopped_task_lets_events_pass_and_goes_on_with_what_it_knew() -> None:
    log = [*seen(1, 2), Change("stop", "Count"), *seen(3, 4), Change("start", "Count"), *seen(5)]
    result = run(Count(), log)
    assert by(result) == ["Count1", "Count2", "", "", "Count3"]
    assert result.tally("Count").events == 3


def test_a_task_started_afresh_has_forgotten() -> None:
    log = [*seen(1, 2), Change("stop", "Count"), Change("start", "Count", fresh=True), *seen(3)]
    result = run(Count(), log)
    assert by(result)[-1] == "Count1"
    assert result.state("Count") == {"total": 1, "last": {3: 3.0}}


def test_a_command_takes_a_position_and_moves_no_time() -> None:
    class Places(Task[Seen]):
        def handle(self, event: Seen) -> Seen:
            return event.replace(by=f"{self.position} {self.now}")

    assert by(run([Places(), Count()], [*seen(1), Change("stop", "Count"), *seen(2)])) == [
        "0 1.0Count1",
        "2 2.0",
    ]


def test_settings_change_from_one_event_to_the_next() -> None:
    assert by(run(Count(), [*seen(1), Change("set", "Count", Count(step=5)), *seen(2)])) == [
        "Count1",
        "Count6",
    ]


class Lasting(Task[Seen]):
    ttl_s: float = 1.0
    last = table(int, float, ttl_s="ttl_s")

    def handle(self, event: Seen) -> None:
        self.last[event.n] = event.time


LONGER = Lasting(ttl_s=100.0)


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ([Change("set", "Lasting", LONGER)], {4: 4.0}),
        ([Change("replace", "Lasting", LONGER)], {4: 4.0}),
        ([Change("remove", "Lasting"), Change("add", "Lasting", LONGER)], {4: 4.0}),
        ([Change("set", "Lasting", Lasting(ttl_s=0.5)), Change("set", "Lasting", LONGER)], {}),
    ],
)
def test_a_longer_time_to_live_brings_nothing_back(changes: list[Change], stays: dict[int, float]) -> None:
    result = run(Lasting(), [*seen(1, 4), 4.75, *changes, *seen(6)])
    assert result.state("Lasting") == {"last": {**stays, 6: 6.0}}


class Twofold(Lasting):
    more = table(int, float, ttl_s="ttl_s")


def test_a_task_returns_with_what_is_left_of_its_state_after_a_part_was_dropped() -> None:
    drop = Change("drop", "Twofold", state="more")
    log = [
        *seen(1, 4),
        4.75,
        Change("remove", "Twofold"),
        drop,
        Change("add", "Twofold", Twofold(ttl_s=100.0)),
        5.0,
    ]
    assert run(Twofold(), log).state("Twofold") == {"last": {4: 4.0}, "more": {}}


class Unseen(dict[Any, Any]):
    """Cells at which nobody may look."""

    def _looked(self, *_: Any) -> Any:
        raise AssertionError("a command looked at the cells")

    __iter__ = __getitem__ = get = items = keys = values = copy = _looked


@pytest.mark.parametrize("kind", ["set", "replace", "add"])
def test_a_command_looks_at_no_cell_to_make_a_time_to_live_longer(kind: Any) -> None:
    cells, put_aside = Unseen({1: (1.0, 1.0)}), dict[str, Aside]()
    chain = [Link(Lasting(), {"last": cells})]
    if kind == "add":
        chain = changed(chain, put_aside, Change("remove", "Lasting"), 0, 9.0)
    (after,) = changed(chain, put_aside, Change(kind, "Lasting", LONGER), 1, 9.0)
    assert after.cells["last"] is cells
    assert after.outlived == {"last": 1.0}


def test_a_task_comes_in_where_it_is_told_and_leaves_with_its_state() -> None:
    log = [
        *seen(1),
        Change("add", "B", named(Count(), "B"), before="A"),
        *seen(2),
        Change("remove", "B"),
        *seen(3),
        Change("add", "B", named(Count(), "B")),
        *seen(4),
    ]
    assert by(run(named(Count(), "A"), log)) == ["A1", "B1 A2", "A3", "A4 B2"]


def test_a_task_that_comes_in_stopped_lets_events_pass_until_it_is_started() -> None:
    log = [
        *seen(1),
        Change("add", "B", named(Count(), "B"), before="A", stopped=True),
        *seen(2),
        Change("start", "B"),
        *seen(3),
    ]
    assert by(run(named(Count(), "A"), log)) == ["A1", "A2", "B1 A3"]


def test_a_task_that_comes_in_may_have_outputs_of_its_own() -> None:
    assert run(Count(), [*seen(1), Change("add", "Pages", Pages()), *seen(2)]).output("pages")[0].n == 2


def test_other_code_takes_over_the_state_of_the_same_declaration() -> None:
    log = [*seen(1), Change("replace", "Count", named(Other(), "Count")), *seen(2)]
    result = run(Count(), log)
    assert by(result) == ["Count1", "other101"]
    assert result.state("Count") == {"total": 101, "last": {1: 1.0}}


def test_other_code_that_would_lose_state_says_what_becomes_of_it() -> None:
    with pytest.raises(ChangeRefused, match=r"no longer has last and total .* upgrade"):
        run(Count(), [*seen(1), Change("replace", "Count", named(Poorer(), "Count"))])
    log = [*seen(1, 2), Change("replace", "Count", named(Upgraded(), "Count")), *seen(3)]
    assert by(run(Count(), log))[-1] == "2.2"


def test_an_upgrade_that_raises_changes_nothing() -> None:
    with pytest.raises(ChangeRefused, match="ZeroDivisionError"):
        run(Count(), [*seen(1), Change("replace", "Count", named(BadUpgrade(), "Count"))])


def test_state_is_dropped_whole_or_in_part_also_of_a_task_that_left() -> None:
    assert run(Count(), [*seen(1), Change("drop", "Count"), *seen(2)]).state("Count") == {
        "total": 1,
        "last": {2: 2.0},
    }
    part = run(Count(), [*seen(1), Change("drop", "Count", state="last")]).state("Count")
    assert part == {"total": 1, "last": {}}
    gone = [
        *seen(1),
        Change("remove", "Count"),
        Change("drop", "Count"),
        Change("add", "Count", Count()),
        *seen(2),
    ]
    assert by(run(Count(), gone)) == ["Count1", "Count1"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change("stop", "Nobody"), "no task Nobody; it has: Count"),
        (Change("start", "Count"), "runs already"),
        (Change("add", "Count", Count()), "has a task Count already"),
        (Change("add", "B", named(Count(), "B"), before="C"), "no task C to come before"),
        (Change("drop", "Nobody"), "no state of Nobody"),
        (Change("drop", "Count", state="nothing"), "has no state nothing; it has: last, total"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: Change, why: str) -> None:
    with pytest.raises(ChangeRefused, match=why):
        run(Count(), [*seen(1), change])


def test_an_upgrade_is_called_once_and_again_only_where_it_or_the_state_is_another() -> None:
    def made(upgrade: Any, **more: Any) -> Task[Any]:
        def handle(self: Any, event: Seen) -> Seen:
            return event.replace(by=f"{self.total}")

        body = {"total": value(int, 0), "handle": handle, "upgrade": upgrade, **more}
        return types.new_class("Count", (Task[Seen],), {}, lambda names: names.update(body))()

    def twice(self: Any, old: dict[str, Any]) -> None:
        self.total = old["total"] * 2

    def thrice(self: Any, old: dict[str, Any]) -> None:
        self.total = old["total"] * 3

    log = [
        *seen(1, 2, 3, 4),
        Change("replace", "Count", made(twice, last=table(int, float, ttl_s=10.0))),
        *seen(5),
        Change("replace", "Count", made(twice, last=table(int, float, ttl_s=10.0))),  # has been through it
        *seen(6),
        Change("replace", "Count", made(thrice, last=table(int, float, ttl_s=10.0))),
        *seen(7),
        Change("replace", "Count", made(thrice)),
        *seen(8),
    ]
    assert by(run(Count(), log))[4:] == ["8", "8", "24", "72"]
