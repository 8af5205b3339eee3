"""What has expired is found in a table that changes meanwhile: nothing of it is left, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.engine import reclaim
from secondpass.engine.overlay import Delta
from secondpass.engine.reclaim import Reclaim

TTL_S = 10.0
NAME = ("Task", "table")
KEYS = st.integers(0, 40)
EPOCHS = st.lists(
    st.tuples(
        st.floats(0.0, 6.0),  # so much time passes in it
        st.dictionaries(KEYS, st.floats(0.0, 1.0), max_size=6),  # written, at that part of it
        st.sets(KEYS, max_size=3),  # deleted
    ),
    max_size=30,
)


class Running:
    """A table, epochs that change it, and steps between them; sizes are such that there are many steps."""

    def __init__(self, written: dict[int, float], now: float) -> None:
        self.now = now
        self.cells: dict[int, Any] = {key: (key, at) for key, at in written.items()}
        self.want = dict(self.cells)
        """What there would be if nobody reclaimed anything."""
        self.reclaim = Reclaim({NAME: (self.cells, TTL_S)})

    def epoch(self, passes_s: float, writes: dict[int, float], deletes: set[int]) -> None:
        since, self.now = self.now, self.now + passes_s
        changed = {key: (-key, since + part * passes_s) for key, part in writes.items()}
        delta = Delta(changed, {key for key in deletes if key in self.cells and key not in changed})
        for cells in (self.cells, self.want):
            cells.update(delta.changed)
            for key in deletes - changed.keys():
                cells.pop(key, None)
        self.reclaim.wrote({NAME: delta}, since)

    def step(self) -> bool:
        """Whether nothing that has expired is left."""
        before = dict(self.cells)
        deltas, done = self.reclaim.step(self.now)
        gone = deltas[NAME].gone if deltas else set[int]()
        assert before.keys() - self.cells.keys() == gone, "what is deleted is not what is to be committed"
        assert self.living(self.cells) == self.living(self.want), "a living cell went"
        if done:
            assert self.living(self.cells) == self.cells, "something that has expired is left"
        return done

    def living(self, cells: dict[int, Any]) -> dict[int, Any]:
        return {key: entry for key, entry in cells.items() if self.now - entry[1] < TTL_S}


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:  # pyright: ignore[reportUnusedFunction]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reclaim, "COPIED_AT_ONCE", 7)
        patch.setattr(reclaim, "SORTED_AT_ONCE", 3)
        patch.setattr(reclaim, "DELETED_AT_ONCE", 2)
        patch.setattr(reclaim, "SORTING_S", 0.0)
        yield


@given(st.dictionaries(KEYS, st.floats(-20.0, 0.0), max_size=41), EPOCHS, st.data())
def test_when_it_is_done_nothing_that_has_expired_is_left_and_nothing_else_went(
    written: dict[int, float], epochs: list[Any], data: st.DataObject
) -> None:
    running = Running(written, 0.0)
    for epoch in epochs:
        running.epoch(*epoch)
        for _ in range(data.draw(st.integers(0, 2))):
            running.step()
    steps = 0
    while not running.step():
        steps += 1
        assert steps < 1000, "it does not end, though nothing changes any more"


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 99), max_size=9), st.sets(st.integers(100, 199), max_size=9)),
        max_size=9,
    )
)
def test_no_cell_is_missed_where_others_come_and_go_while_the_keys_are_copied(
    epochs: list[tuple[set[int], set[int]]],
) -> None:
    running = Running(dict.fromkeys(range(100), -5.0), 0.0)
    for goes, comes in epochs:
        running.step()
        running.epoch(0.0, dict.fromkeys(comes, 0.0), goes)
    while not running.step():
        pass
    running.epoch(100.0, {}, set())
    while not running.step():
        pass
    assert not running.cells


def test_it_ends_on_a_stream_of_which_as_much_expires_as_is_written() -> None:
    running = Running({key: -float(key) for key in range(200)}, 0.0)
    for n in range(2_000):
        if running.step():
            break
        # In every epoch ten cells are written, and the ten of ten epochs before expire.
        running.epoch(1.0, {1000 + 10 * n + k: 0.0 for k in range(10)}, set())
    else:
        raise AssertionError("it never caught up with the stream")


def test_each_step_looks_at_few_cells_however_many_there_are_and_have_expired() -> None:
    class Counted(dict[int, Any]):
        looks = 0

        def get(self, key: int, default: Any = None) -> Any:
            self.looks += 1
            return super().get(key, default)

    found = Running({}, 0.0)
    for count in (100, 10_000):
        cells = Counted({key: (key, -20.0) for key in range(count)})
        found.reclaim = Reclaim({NAME: (cells, TTL_S)})
        most, done = 0, False
        while not done:
            cells.looks = 0
            done = found.reclaim.step(0.0)[1]
            most = max(most, cells.looks)
        assert not cells
        assert most <= 5
