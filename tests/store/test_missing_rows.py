"""A row that is missing, doubled or moved is noticed, whatever took it: checksums alone do not show that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from store_kit import SEEN, Kept, bodies

from secondpass.errors import StoreDamaged
from secondpass.store.database import Store

MISSING = [
    ("DELETE FROM deltas WHERE id = (SELECT min(id) FROM deltas)", "cells"),
    ("DELETE FROM deltas WHERE id = (SELECT id FROM deltas ORDER BY id LIMIT 1 OFFSET 1)", "cells"),
    ("DELETE FROM deltas WHERE id = (SELECT max(id) FROM deltas)", "cells"),
    ("DELETE FROM deltas", "cells"),
    ("UPDATE deltas SET id = id + 100 WHERE id = (SELECT max(id) FROM deltas)", "cells"),
    ("UPDATE deltas SET tbl = 99 WHERE id = (SELECT max(id) FROM deltas)", "cells"),
    (
        "INSERT INTO deltas SELECT id + 100, tbl, epoch, id, body, crc FROM deltas ORDER BY id DESC LIMIT 1",
        "cells",
    ),
    ("DELETE FROM cells WHERE number = 0", "cells"),
    ("DELETE FROM cells WHERE number = (SELECT max(number) FROM cells)", "cells"),
    ("DELETE FROM cells", "cells"),
    ("UPDATE cells SET generation = generation + 1", "cells"),
    ("DELETE FROM outputs WHERE first = 0", "outputs"),
    ("DELETE FROM outputs WHERE first = 5", "outputs"),
    ("DELETE FROM outputs WHERE first = (SELECT max(first) FROM outputs)", "outputs"),
    ("DELETE FROM outputs", "outputs"),
    ("UPDATE outputs SET stream = 'other' WHERE first = 5", "outputs"),
    ("UPDATE outputs SET total = total + 1 WHERE first = 5", "outputs"),
    ("DELETE FROM dead_letters WHERE id = 0", "letters"),
    ("DELETE FROM dead_letters WHERE id = 5", "letters"),
    ("DELETE FROM dead_letters WHERE id = (SELECT max(id) FROM dead_letters)", "letters"),
    ("UPDATE dead_letters SET status = 'sent' WHERE id = 5", "letters"),
    ("DELETE FROM history WHERE id = 1", "history"),
    ("DELETE FROM history WHERE id = (SELECT max(id) FROM history)", "history"),
    ("UPDATE history SET kind = 'drop' WHERE id = 2", "history"),
    ("DELETE FROM meta WHERE name = 'tables'", "opening"),
    ("DELETE FROM meta WHERE name = 'chain'", "opening"),
    ("UPDATE meta SET name = 'chains' WHERE name = 'chain'", "opening"),
    ("DELETE FROM progress", "opening"),
    ("UPDATE progress SET epoch = epoch - 1", "opening"),
    ("UPDATE progress SET turn = turn + 1", "opening"),
    ("INSERT INTO progress SELECT turn + 1, stamp, epoch, body, crc FROM progress", "opening"),
    ("DROP TABLE outputs", "outputs"),
    ("DROP TABLE progress", "opening"),
]


def read(store: Store, what: str) -> None:
    if what == "cells":
        Kept(store).seen  # noqa: B018
    elif what == "outputs":
        bodies(store, "main")
    elif what == "letters":
        list(store.letters())
    elif what == "history":
        list(store.history())


@pytest.fixture
def full(opened: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A store with folded cells and deltas after them, and several rows of everything."""
    monkeypatch.setattr("secondpass.store.fold.BYTES_MIN", 2000)
    monkeypatch.setattr("secondpass.store.fold.SLICE_BYTES", 30)
    kept = opened()
    for n in range(20):
        kept.commit({n: 1.0, 1: float(n)}, outputs={"main": [b"%d\n" % n]}, letters=1, history=[("taken", n)])
    state = kept.store.progress.tables[kept.store.tables()[SEEN]]
    assert state.rows > 1
    assert state.last > state.folded + 2
    # What is garbage already may go without anybody noticing.
    kept.execute("DELETE FROM deltas WHERE id <= ?", state.folded)
    kept.execute("DELETE FROM cells WHERE generation <> ?", state.generation)
    return kept


def test_what_is_whole_is_read(full: Kept) -> None:
    for what in ("cells", "outputs", "letters", "history"):
        read(full.store, what)


@pytest.mark.parametrize(("sql", "what"), MISSING)
def test_what_is_missing_is_noticed(sql: str, what: str, full: Kept) -> None:
    directory = full.directory
    assert directory is not None
    full.execute(sql)
    full.close()
    with pytest.raises(StoreDamaged, match="the store is damaged"):
        look(directory, what)


def look(directory, what: str) -> None:
    store = Store.open_to_read(directory)
    try:
        read(store, what)
    finally:
        store.close()
