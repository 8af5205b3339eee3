"""The quick checks of exactness, held to what they stand for: writing a value and reading it back."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest

from secondpass import Event
from secondpass.codec import codec_for, pack, same
from secondpass.event import freeze, owned


class Frame(Event):
    n: int
    at: datetime | None
    pixels: np.ndarray


class Loose(msgspec.Struct):
    at: datetime
    pixels: np.ndarray | None


class Own(np.ndarray):
    pass


GRID = np.arange(6.0).reshape(2, 3)
ARRAYS: list[Any] = [
    GRID,
    GRID.astype(">f4"),
    np.asfortranarray(GRID),
    GRID[:, ::2],
    GRID.view(Own),
    np.array([1.0, float("nan")]),
    np.array(["2026-03-01"], dtype="datetime64[D]"),
    np.array(["a", "bc"]),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([None, "a"], dtype=object),
    np.zeros((0, 3)),
    np.array(7.0),
    np.broadcast_to(np.float64(1), (3,)),
    None,
]
TIMES: list[Any] = [
    datetime(2026, 3, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 4, 5, 6, 7, tzinfo=ZoneInfo("UTC")),
    datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=8))),
    datetime(2026, 3, 1),  # noqa: DTZ001 - that is what is tried
    datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo("Europe/London"), fold=1),
    None,
]


def by_round_trip(tp: Any, value: Any) -> bool:
    codec = codec_for(tp)
    try:
        return same(codec.round_trip(value), value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return False


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{getattr(a, 'dtype', a)}{getattr(a, 'shape', '')}")
def test_an_array_is_exact_where_it_would_be_read_back(array: Any) -> None:
    assert codec_for(np.ndarray).exact(array) == by_round_trip(np.ndarray, array)


@pytest.mark.parametrize(("at", "array"), list(itertools.product(TIMES, ARRAYS)))
def test_a_struct_is_exact_where_it_would_be_read_back(at: Any, array: Any) -> None:
    loose = Loose(at, array)
    assert codec_for(Loose).exact(loose) == by_round_trip(Loose, loose)


@pytest.mark.parametrize(
    "array", [GRID, np.zeros((0, 2), "f4"), np.array(1 + 2j), np.array(["a", "bc"])], ids=str
)
def test_an_array_in_a_cell_is_read_back_into_memory_of_its_own(array: Any) -> None:
    codec = codec_for(np.ndarray)
    data = codec.encode(array)
    for found in (codec.decode(data), codec.decode(memoryview(data)), codec.decode(msgspec.Raw(data))):
        assert same(found, array)
        assert found.flags.owndata
        assert found.flags.writeable


@pytest.mark.parametrize(
    "value", [1, "text", ["f8", [2]], ["f8", [2], b"short"], ["f8", 2, b""], ["?!", [0], b""]]
)
def test_what_is_no_array_is_not_read_as_one(value: Any) -> None:
    with pytest.raises((msgspec.MsgspecError, TypeError, ValueError)):
        codec_for(np.ndarray).decode(pack(value))


def test_an_array_not_in_c_order_is_a_fault_that_names_the_way_out() -> None:
    codec = codec_for(np.ndarray)
    assert not codec.exact(np.asfortranarray(GRID))
    assert "numpy.ascontiguousarray" in codec.explain(np.asfortranarray(GRID))


def test_an_event_puts_its_arrays_in_c_order() -> None:
    frame = Frame(n=1, at=None, pixels=np.asfortranarray(GRID))
    assert frame.pixels.flags.c_contiguous
    assert (frame.pixels == GRID).all()


def test_an_array_is_copied_once_on_its_way_into_an_event_and_never_again() -> None:
    pixels = GRID.copy()
    frame = Frame(n=1, at=TIMES[0], pixels=pixels)
    assert not np.shares_memory(frame.pixels, pixels)
    assert owned(frame) is frame
    assert frame.replace(n=2).pixels is frame.pixels
    assert freeze(frame.pixels) is frame.pixels


def test_an_array_read_back_lies_on_the_bytes_that_were_read_and_cannot_be_opened() -> None:
    codec = codec_for(Frame)
    frame = codec.round_trip(Frame(n=1, at=TIMES[0], pixels=GRID))
    assert type(frame.pixels.base) is bytes  # no copy was made of them
    assert same(frame.pixels, GRID)
    assert owned(frame) is frame
    with pytest.raises(ValueError, match="WRITEABLE"):
        frame.pixels.setflags(write=True)


def test_an_array_read_back_into_a_cell_may_be_changed() -> None:
    found = codec_for(np.ndarray).round_trip(GRID)
    found += 1
    assert (found == GRID + 1).all()
