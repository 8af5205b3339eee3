"""A WAL that cannot be read to its end: cut short by a loss of power, or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from store_kit import CODECS, SEEN, Kept

from secondpass.errors import StoreDamaged
from secondpass.store.database import Store
from secondpass.store.format import FILE, PAGE_SIZE
from secondpass.store.wal import turn_beyond

FRAME = 24 + PAGE_SIZE


@pytest.fixture
def wal(kept: Kept, directory: Path, tmp_path: Path) -> Path:
    """The WAL of a copied store of ten epochs, as a kill leaves it."""
    for n in range(10):
        kept.commit({n: 1.0})
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (FILE, f"{FILE}-wal"):
        shutil.copy(directory / name, copy)
    return copy / f"{FILE}-wal"


def change(wal: Path, at: int) -> None:
    body = bytearray(wal.read_bytes())
    body[at] ^= 0x10
    wal.write_bytes(body)


def read(wal: Path) -> dict[int, float]:
    store = Store.open_to_read(wal.parent)
    try:
        return store.load(CODECS)[SEEN]
    finally:
        store.close()


def cells(count: int) -> dict[int, float]:
    return dict.fromkeys(range(count), 1.0)


def test_a_whole_wal_is_read_to_its_end(wal: Path) -> None:
    assert read(wal) == cells(10)


def test_a_last_transaction_that_was_cut_short_never_happened(wal: Path) -> None:
    body = wal.read_bytes()
    for cut in (1, FRAME // 2, FRAME, FRAME + 7):
        wal.write_bytes(body[:-cut])
        assert read(wal) == cells(9)


def test_damage_before_a_later_transaction_is_noticed(wal: Path) -> None:
    body = wal.read_bytes()
    end = len(body)
    # Each epoch here takes two frames. The last epoch is whole; what comes before it is not.
    for at in (0, 9, 20, 33, 40, 60, 5000, end - 4 * FRAME + 30, end - 3 * FRAME + 2, end - 2 * FRAME - 9):
        wal.write_bytes(body)
        change(wal, at)
        for open_ in (Store.open_to_read, Store.open):
            with pytest.raises(StoreDamaged, match="had been acknowledged"):
                open_(wal.parent)
        changed = wal.read_bytes()
        assert len(changed) == end, "a damaged WAL must stay for whoever mends it"


def test_what_a_cut_short_transaction_left_behind_does_not_look_like_damage_later(wal: Path) -> None:
    change(
        wal, len(wal.read_bytes()) - 2 * FRAME + 30
    )  # its first frame; the second stays, behind what comes now
    for n in range(3):
        kept = Kept.open(wal.parent)
        kept.store.close(checkpoint=False)
        assert read(wal) == cells(9), n
    kept = Kept.open(wal.parent)
    kept.commit({9: 1.0})
    kept.store.close(checkpoint=False)
    assert read(wal) == cells(10)


def test_a_turn_counts_only_with_its_stamp(wal: Path) -> None:
    assert turn_beyond(wal, 0) == 12
    assert turn_beyond(wal, 10) == 12
    assert turn_beyond(wal, 11) == 0
    assert turn_beyond(wal.with_name("none"), 0) == 0
    body = bytearray(wal.read_bytes())
    for start in range(32, len(body), FRAME):
        if int.from_bytes(body[start : start + 4], "big") == 2:
            page = start + 24
            row = page + int.from_bytes(body[page + 8 : page + 10], "big")
            # A torn page may hold any number as its row's key.
            assert body[row + 2] < 13
            body[row + 2] = 99
    wal.write_bytes(body)
    assert turn_beyond(wal, 0) == 0


def test_any_bytes_may_be_in_a_wal(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    for body in (b"", b"\0" * 31, b"\xff" * 33, b"\0\0\0\2" * 5000, bytes(32) + b"\0\0\0\2" + b"\x0d" * 5000):
        wal.write_bytes(body)
        assert turn_beyond(wal, 0) == 0
