"""Large arrays on their way: they go beside the bytes of their event, and are decoded where they lie."""

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from secondpass.codec import BESIDE_FROM, SealedMap, codec_for, pack, pack_beside, same
from secondpass.engine.channel import shared_file, write_whole
from secondpass.event import Event, freeze, owned

LARGE = BESIDE_FROM // 8
"""So many numbers of eight bytes go beside."""


class Frame(Event):
    pixels: np.ndarray
    more: Mapping[str, np.ndarray | None] = {}
    anything: Any = None


def sealed(data: bytes) -> memoryview:
    """A read-only map as the channel makes it."""
    fd = shared_file("test")
    write_whole(fd, data)
    found = SealedMap(fd, len(data), access=mmap.ACCESS_READ)
    os.close(fd)
    return memoryview(found)


def there(event: Event) -> tuple[Any, Sequence[memoryview]]:
    """An event as it arrives, and what went beside it."""
    body, beside = pack_beside([event])
    (found,) = codec_for(type(event)).decoder_of_list([sealed(bytes(part)) for part in beside]).decode(body)
    return found, beside


@pytest.mark.parametrize(
    "array",
    [
        np.arange(LARGE, dtype="f8"),
        np.arange(LARGE, dtype=">i8").reshape(2, -1),
        np.arange(2 * LARGE, dtype="i8")[::2],
        np.arange(LARGE, dtype="f8").reshape(4, -1).T,
        np.full(LARGE, 1 + 2j),
        np.arange(LARGE).astype("M8[s]"),
        np.zeros(LARGE, "V12"),
        np.zeros(LARGE, "U7"),
        np.zeros((0, 3)),
        np.array(3.0),
        np.arange(LARGE - 1, dtype="f8"),
    ],
)
def test_an_array_arrives_as_it_was(array: Any) -> None:
    event = owned(Frame(pixels=array))
    found, beside = there(event)
    assert same(found.pixels, event.pixels)
    assert np.array_equal(found.pixels, array)
    assert not found.pixels.flags.writeable
    assert [len(part) for part in beside] == [array.nbytes] * (array.nbytes >= BESIDE_FROM)


def test_an_event_may_hold_several_large_and_small(rng: Any) -> None:
    arrays = {
        name: np.frombuffer(rng.randbytes(8 * count), "i8")
        for name, count in {"a": LARGE, "b": 1, "c": 2 * LARGE, "d": 0}.items()
    }
    ext = msgspec.msgpack.Ext(5, b"the user's own")
    event = owned(
        Frame(pixels=arrays["c"], more={**arrays, "none": None}, anything=(b"x" * BESIDE_FROM, ext))
    )
    found, beside = there(event)
    assert same(found, event)
    assert found.anything == event.anything
    assert len(beside) == 3


def test_what_is_not_large_is_encoded_as_ever() -> None:
    event = owned(Frame(pixels=np.arange(LARGE - 1, dtype="f8"), anything=(1, "x")))
    assert pack_beside([event]) == (pack([event]), [])


def test_an_array_is_not_copied_to_go_beside() -> None:
    event = owned(Frame(pixels=np.arange(LARGE)))
    _, (part,) = pack_beside(event)
    assert np.shares_memory(np.frombuffer(part, "u1"), event.pixels)


def test_an_array_that_came_beside_is_not_copied_any_more() -> None:
    event, _ = there(Frame(pixels=np.arange(LARGE)))
    assert type(event.pixels.base) is SealedMap
    assert freeze(event.pixels) is event.pixels
    assert owned(event) is event
    again = owned(Frame(pixels=event.pixels, more={"first": event.pixels}))
    assert again.pixels is event.pixels
    assert again.more["first"] is event.pixels
    with pytest.raises(ValueError, match="WRITEABLE"):
        event.pixels.setflags(write=True)


def test_a_part_of_an_array_that_came_beside_does_not_keep_the_rest() -> None:
    event, _ = there(Frame(pixels=np.arange(LARGE)))
    part = Frame(pixels=event.pixels[:10]).pixels
    assert part.flags.owndata
    assert part.tolist() == list(range(10))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_an_array_on_a_users_own_map_is_copied(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "pixels").write_bytes(bytes(8 * LARGE))
    theirs = np.memmap(tmp_path / "pixels", dtype="i8", mode=mode)
    with (tmp_path / "pixels").open("r+b") as file:
        bare = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "i8")
    for array in (theirs, bare):
        event = owned(Frame(pixels=array))
        assert type(event.pixels) is np.ndarray
        assert not np.shares_memory(event.pixels, array)
    event = owned(Frame(pixels=bare))
    (tmp_path / "pixels").write_bytes(b"\x01" * 8 * LARGE)
    assert event.pixels[0] == 0 != bare[0]


def test_a_view_of_bytes_in_an_event_becomes_bytes() -> None:
    assert freeze(memoryview(bytearray(b"abc"))) == b"abc"
    assert type(Frame(pixels=np.zeros(1), anything=memoryview(b"abc")).anything) is bytes
