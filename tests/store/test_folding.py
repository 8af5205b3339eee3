"""Whatever is committed, folded, and cut short: a store holds what a dict would hold."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import CODECS, LAST, SEEN, Kept, value

from secondpass.store import fold
from secondpass.store.database import NewChain, Store
from secondpass.store.format import FILE

keys = st.integers(0, 40)
entries = st.floats(allow_nan=False)


class Folding(RuleBasedStateMachine):
    """A store beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="secondpass-", dir=memory if memory.is_dir() else None))
        self.patch = pytest.MonkeyPatch()
        self.seen: dict[int, float] = {}
        self.last: dict[Any, bytes] = {}

    @initialize(
        least=st.sampled_from([1, 300, 3000]),
        delta=st.sampled_from([0, 50]),
        a_slice=st.sampled_from([1, 40, 400]),
        row=st.sampled_from([20, 1000]),
    )
    def open(self, least: int, delta: int, a_slice: int, row: int) -> None:
        for name, size in (
            ("BYTES_MIN", least),
            ("DELTA_BYTES", delta),
            ("SLICE_BYTES", a_slice),
            ("ROW_BYTES_MAX", row),
        ):
            self.patch.setattr(fold, name, size)
        self.kept = Kept.open(self.root / "store")

    @rule(changed=st.dictionaries(keys, entries, max_size=12), gone=st.sets(keys, max_size=6))
    def commit(self, changed: dict[int, float], gone: set[int]) -> None:
        gone = {key for key in gone if key in self.seen and key not in changed}
        self.kept.commit(changed, gone)
        self.seen.update(changed)
        for key in gone:
            del self.seen[key]

    @rule(number=entries)
    def set_value(self, number: float) -> None:
        self.kept.commit(last=value(number))
        self.last = {None: value(number)}

    @rule(size=st.integers(0, 400))
    def commit_many(self, size: int) -> None:
        self.commit({key: 1.0 for key in range(size)}, set())  # noqa: C420

    @precondition(lambda self: self.seen)
    @rule()
    def clear(self) -> None:
        self.commit({}, set(self.seen))

    @rule(checkpoint=st.booleans())
    def start_again(self, checkpoint: bool) -> None:
        self.kept.store.close(checkpoint=checkpoint)
        self.kept = Kept.open(self.root / "store")

    @rule()
    def kill_and_start_again(self) -> None:
        copy = self.root / "copy"
        copy.mkdir()
        for name in (FILE, f"{FILE}-wal"):
            if (self.root / "store" / name).exists():
                shutil.copy(self.root / "store" / name, copy)
        self.kept.store.close()
        shutil.rmtree(self.root / "store")
        copy.rename(self.root / "store")
        self.kept = Kept.open(self.root / "store")

    @rule()
    def drop_the_table(self) -> None:
        self.kept.start({SEEN: None}, (LAST,))
        self.kept.start()
        self.seen = {}

    @rule()
    def let_the_task_be_absent(self) -> None:
        self.kept.start({}, (LAST,))
        self.kept.start()

    @invariant()
    def what_is_stored_is_what_the_dict_holds(self) -> None:
        if hasattr(self, "kept"):
            reader = Store.open_to_read(self.root / "store")
            found = reader.load(CODECS)
            reader.close()
            assert found[SEEN] == self.seen
            assert found[LAST] == self.last

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.kept.close()
        self.patch.undo()
        shutil.rmtree(self.root)


TestFolding = Folding.TestCase
TestFolding.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_table_that_is_written_over_and_over_does_not_grow(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    for n in range(3000):
        kept.commit({n % 50: float(n)}, last=value(float(n)))
        if n % 500 == 499:
            sizes.append(kept.execute("PRAGMA page_count")[0][0])
    state = kept.store.progress.tables[kept.store.tables()[SEEN]]
    assert state.generation > 2
    assert kept.execute("SELECT count(*) FROM deltas")[0][0] < 2 * 700
    assert sizes[-1] <= sizes[2] * 1.2
    assert kept.seen == {n % 50: float(n) for n in range(2950, 3000)}


def test_a_large_table_is_folded_without_a_long_commit(kept: Kept) -> None:
    kept.commit({n: 0.5 for n in range(200_000)})  # noqa: C420
    rows: list[int] = []
    for n in range(1500):
        kept.commit({m % 200_000: 1.0 for m in range(n * 200, n * 200 + 200)})
        rows.append(kept.execute("SELECT coalesce(max(length(body)), 0) FROM cells")[0][0])
    assert kept.store.progress.generation >= 2
    # A slice is in proportion to the epoch, not to the table.
    assert 0 < max(rows[10:]) < 20 * max(rows[1], 8_000)


def test_no_command_begins_a_fold_which_takes_longer_the_larger_a_table_is(kept: Kept) -> None:
    store = kept.store
    kept.commit({n: 0.5 for n in range(200_000)})  # noqa: C420
    for chain, generation in ((NewChain([], {}, [], {}), 0), (None, 1)):
        store.commit(msgspec.structs.replace(store.progress), {}, [], [], chain=chain)
        assert store.progress.generation == generation


def test_what_a_fold_left_behind_when_it_was_cut_short_goes(
    opened: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "BYTES_MIN", 4000)
    monkeypatch.setattr(fold, "SLICE_BYTES", 200)
    kept = opened()
    kept.commit(dict.fromkeys(range(1000), 0.5))
    for _ in range(30):
        kept.commit({1: 1.0})  # a fold is under way
        assert kept.store.progress.tables[kept.store.tables()[SEEN]].generation == 0
        kept.close()
        kept = opened()
    assert kept.execute("SELECT count(DISTINCT generation) FROM cells")[0][0] <= 3
    assert kept.seen == {**dict.fromkeys(range(1000), 0.5), 1: 1.0}
