"""Outputs stay until their sink holds them for certain, and the last ones longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_kit import Kept, bodies

from secondpass.store.format import squeeze, stretch


def line(n: int) -> bytes:
    return b"%099d\n" % n


@pytest.fixture(autouse=True)
def _keep_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 1000)


def test_what_a_sink_does_not_hold_for_certain_is_kept(opened: Callable[[], Kept]) -> None:
    kept = opened()
    for n in range(100):
        kept.commit(outputs={"main": [line(n)]}, sinks={"main": {"number": min(n, 7)}})
    assert kept.store.progress.kept_from["main"] == 7
    assert bodies(kept.store, "main", after=7) == [line(n) for n in range(7, 100)]
    kept.close()
    assert bodies(opened().store, "main", after=7) == [line(n) for n in range(7, 100)]


def test_of_what_it_holds_the_last_bytes_are_kept(kept: Kept) -> None:
    for n in range(100):
        kept.commit(outputs={"main": [line(n)]}, sinks={"main": {"number": n}})
    assert kept.store.progress.kept_from["main"] == 90
    assert bodies(kept.store, "main") == [line(n) for n in range(90, 100)]
    assert kept.execute("SELECT count(*) FROM outputs") == [(10,)]


def test_a_sink_that_was_far_behind_is_caught_up_with_in_steps(kept: Kept) -> None:
    for n in range(100):
        kept.commit(outputs={"main": [line(n)]}, sinks={"main": {"number": 0}})
    left: list[int] = []
    while not left or left[-1] > 10:
        kept.commit(sinks={"main": {"number": 100}})
        left.append(kept.execute("SELECT count(*) FROM outputs")[0][0])
        assert bodies(kept.store, "main") == [line(n) for n in range(100 - left[-1], 100)]
    assert max(a - b for a, b in zip([100, *left], left, strict=False)) < 10  # no commit pays for all


def test_a_stream_without_a_sink_is_kept_for_good(kept: Kept) -> None:
    for n in range(100):
        kept.commit(outputs={"main": [line(n)], "pages": [line(n)]}, sinks={"pages": {"number": n}})
    assert len(bodies(kept.store, "main")) == 100
    assert len(bodies(kept.store, "pages")) == 10


def test_reading_may_begin_and_end_anywhere(kept: Kept) -> None:
    for n in range(10):
        kept.commit(outputs={"main": [line(3 * n), line(3 * n + 1), line(3 * n + 2)]})
    found = list(kept.store.outputs("main", after=7, upto=12))
    assert [(row.first, row.count) for row in found] == [(6, 3), (9, 3)]
    assert bodies(kept.store, "main", after=30) == []
    assert bodies(kept.store, "nothing") == []


@given(st.lists(st.integers(0, 30), max_size=12).map(sorted))
def test_positions_come_back_as_they_were(positions: list[int]) -> None:
    assert stretch(squeeze(positions)) == positions


def test_one_position_with_two_outputs_before_one_with_none_is_no_range() -> None:
    assert squeeze([5, 5, 7]) == [5, 5, 7]
    assert squeeze([5, 6, 7]) == {"from": 5, "to": 7}
