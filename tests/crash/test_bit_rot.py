"""Bytes change on the disk: what is read is what was written, or the store says that it is damaged.

The one exception is the last transaction in the WAL: damaged, it looks like one that was never acknowledged.
`SECONDPASS_BITROT_FLIPS` asks for more flips.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from store_model import CODECS, State, Writer, open_small, small_limits

from secondpass.errors import StoreDamaged, StoreError
from secondpass.store.database import Store
from secondpass.store.format import FILE, PAGE_SIZE

FLIPS = int(os.environ.get("SECONDPASS_BITROT_FLIPS") or 200)
WAL = f"{FILE}-wal"
FRAME = 24 + PAGE_SIZE


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one."""
    root = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="secondpass-", dir=root if root.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


@dataclass
class Whole:
    """A store's files, and what they hold."""

    files: dict[str, bytes]
    states: list[State]
    """What they hold, and what they held in the turns before: newest first."""

    @property
    def state(self) -> State:
        return self.states[0]

    def put(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for name, body in self.files.items():
            (directory / name).write_bytes(body)


def write_store(directory: Path, rng: random.Random, *, epochs: int, keep: str) -> Whole:
    """A store in the state `keep`: "closed", "open" (much in the WAL), or "copied" (the WAL is copied and stays)."""
    shutil.rmtree(directory, ignore_errors=True)
    store = open_small(directory)
    writer = Writer(store, rng)
    writer.start()
    for _ in range(epochs):
        writer.commit()
    if keep != "closed":
        store.close()
        store = Store.open(directory, wal_pages=100_000)
        writer = Writer(store, rng, writer.state)
        writer.start()
    states = [writer.state, *(writer.commit() for _ in range(20))]
    if keep == "closed":
        store.close()
    if keep == "copied":
        store._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    files = {f.name: f.read_bytes() for f in directory.iterdir() if f.name.startswith(FILE)}
    files.pop(f"{FILE}-shm", None)
    store.close(checkpoint=False)
    assert (WAL in files) == (keep != "closed")
    return Whole(files, states[::-1])


def rot(body: bytearray, at: int, rng: random.Random) -> tuple[str, list[int]]:
    """Change some bytes about here; gives what was done, and which bytes are others now."""
    kind = rng.choice(("bit", "bit", "byte", "bytes", "zeros", "ones", "sector"))
    size = {"bit": 1, "byte": 1, "bytes": 4, "zeros": 16, "ones": 16, "sector": 512}[kind]
    at -= at % size
    old = bytes(body[at : at + size])
    new = {
        "bit": bytes([old[0] ^ 1 << rng.randrange(8)]),
        "byte": bytes([old[0] ^ rng.randrange(1, 256)]),
        "bytes": rng.randbytes(len(old)),
        "zeros": bytes(len(old)),
        "ones": b"\xff" * len(old),
        "sector": bytes(len(old)),
    }[kind]
    body[at : at + size] = new
    changed = [at + i for i in range(len(old)) if old[i] != new[i]]
    return f"{kind} at byte {at} (page {at // PAGE_SIZE + 1})", changed


def look(directory: Path, states: list[State]) -> str:
    """The turn that is read, of the states that it may be; or the error's name."""
    try:
        store = Store.open_to_read(directory)
    except StoreError as error:
        return type(error).__name__
    try:
        for state in states:
            if state.turn == store.turn:
                difference = state.differs_from(store)
                assert not difference, f"turn {store.turn} is read wrongly: {difference}"
                return f"turn {store.turn}"
    except StoreError as error:
        return type(error).__name__
    finally:
        store.close()
    raise AssertionError(f"turn {store.turn} is read, the last one is {states[0].turn}")


def go_on(directory: Path, state: State, rng: random.Random) -> str:
    """Run on and start again; gives the error's name, or "right"."""
    try:
        store = Store.open(directory, wal_pages=24)
        try:
            differs = state.differs_from(store)
            assert not differs, f"the next start reads wrongly: {differs}"
            writer = Writer(store, rng, state)
            writer.start()
            for _ in range(25):
                writer.commit()
        finally:
            store.close()
        store = Store.open_to_read(directory)
        try:
            differs = writer.state.differs_from(store)
        finally:
            store.close()
        assert not differs, f"the start after that reads wrongly: {differs}"
    except StoreError as error:
        return type(error).__name__
    return "right"


def places(body: bytes, rng: random.Random) -> Iterator[int]:
    """Byte offsets in a database: the file's header, page headers, the schema, free pages, anywhere."""
    pages = len(body) // PAGE_SIZE
    free = int.from_bytes(body[32:36], "big")
    while True:
        yield rng.randrange(100)
        yield rng.randrange(pages) * PAGE_SIZE + rng.randrange(12)
        yield rng.randrange(PAGE_SIZE)
        if free:
            yield (free - 1) * PAGE_SIZE + rng.randrange(64)
        for _ in range(4):
            yield rng.randrange(len(body))


def test_what_changed_in_the_database_is_read_right_or_refused(memory: Path, rng: random.Random) -> None:
    found: Counter[str] = Counter()
    whole = write_store(memory / "store", rng, epochs=60, keep="closed")
    where = places(whole.files[FILE], rng)
    for number in range(FLIPS):
        whole.put(memory / "store")
        body = bytearray(whole.files[FILE])
        done, _ = rot(body, next(where), rng)
        (memory / "store" / FILE).write_bytes(body)
        try:
            first = look(memory / "store", [whole.state])
            later = go_on(memory / "store", whole.state, rng)
        except Exception as error:
            error.add_note(f"flip {number}: {done}")
            raise
        found[f"{first.split()[0]}, then {later}"] += 1
    assert found["StoreDamaged, then StoreDamaged"] > FLIPS // 5, (
        found
    )  # half of what is expected: chance must not fail it
    assert found["turn, then right"] > FLIPS // 50, f"no harmless place was hit: {found}"


@pytest.mark.parametrize("keep", ["open", "copied"])
def test_what_changed_in_the_wal_is_noticed_where_a_later_commit_can_be_read(
    keep: str, memory: Path, rng: random.Random
) -> None:
    found: Counter[str] = Counter()
    whole = write_store(memory / "store", rng, epochs=30, keep=keep)
    wal = whole.files[WAL]
    starts = transactions(wal)
    frames = (len(wal) - 32) // FRAME
    for number in range(FLIPS):
        kind = number % 4
        if kind == 0:
            at = rng.randrange(32)
        elif kind == 1:
            at = 32 + rng.randrange(frames) * FRAME + rng.randrange(24)
        elif kind == 2:
            at = rng.randrange(starts[0], len(wal))
        else:
            at = rng.randrange(len(wal))
        whole.put(memory / "store")
        body = bytearray(wal)
        done, changed = rot(body, at, rng)
        (memory / "store" / WAL).write_bytes(body)
        # A sector may hold the end of one transaction and the beginning of the last.
        in_last = bool(changed) and changed[-1] >= starts[0]
        hit = sum(1 for start in starts if changed[0] < start) + 1 if in_last else 0
        try:
            outcome = look(memory / "store", [whole.state, whole.states[hit]])
        except Exception as error:
            error.add_note(f"flip {number}: {done} of the WAL, frame {(at - 32) // FRAME} of {frames}")
            raise
        found[outcome.split()[0] if not in_last else f"{outcome} in the last"] += 1
    assert found["StoreDamaged"] > FLIPS // 5, found  # half of what is expected: chance must not fail it
    assert found[f"turn {whole.state.turn - 1} in the last"] > 0, "the exception did not show"


def transactions(wal: bytes) -> list[int]:
    """Where committed transactions begin: the last one first."""
    salts = wal[16:24]
    starts = [32]
    for start in range(32, len(wal) - FRAME + 1, FRAME):
        if wal[start + 8 : start + 16] != salts:
            break
        if wal[start + 4 : start + 8] != bytes(4):  # the size of the database marks a commit
            starts.append(start + FRAME)
    assert starts[-1] == len(wal), "there is something after the last commit"
    return starts[-2::-1]


def test_a_damaged_store_is_left_as_it_is(memory: Path, rng: random.Random) -> None:
    whole = write_store(memory / "store", rng, epochs=5, keep="open")
    whole.put(memory / "store")
    body = bytearray(whole.files[WAL])
    body[40] ^= 0xFF
    (memory / "store" / WAL).write_bytes(body)
    with pytest.raises(StoreDamaged, match="had been acknowledged"):
        Store.open(memory / "store")
    assert (memory / "store" / WAL).read_bytes() == bytes(body)
    assert (memory / "store" / FILE).read_bytes() == whole.files[FILE]
    (memory / "store" / WAL).write_bytes(whole.files[WAL])
    store = Store.open(memory / "store")
    assert store.load(CODECS) == whole.state.cells
    store.close()
