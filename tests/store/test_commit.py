"""A commit happens as a whole, once, by the one writer; what fails says so in our words."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from store_kit import CODECS, SEEN, Kept, bodies, value

from secondpass.errors import ChainChanged, StoreDamaged, StoreError, StoreFull
from secondpass.store.database import Store


def test_what_was_committed_is_there_after_the_next_start(opened: Callable[[], Kept]) -> None:
    first = opened()
    first.commit({1: 0.5, 2: 1.5}, outputs={"main": [b"1\n", b"2\n"]}, letters=1)
    first.commit({2: 2.5}, [1], last=value(7.0), history=[("taken", [[0, 10]])], status={0: "sent"})
    first.close()
    again = opened()
    assert again.seen == {2: 2.5}
    assert again.last == {None: value(7.0)}
    assert (again.store.epoch, again.store.progress.position) == (2, 20)
    assert bodies(again.store, "main") == [b"1\n2\n"]
    assert [(number, status) for number, status, _ in again.store.letters()] == [(0, "sent")]
    assert [(position, kind) for position, kind, _ in again.store.history()] == [
        (0, "start"), (10, "taken"), (20, "start"),
    ]  # fmt: skip


@pytest.mark.parametrize("table", ["deltas", "outputs", "dead_letters", "history", "progress"])
def test_a_commit_that_fails_in_the_middle_leaves_nothing(table: str, opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 0.5}, outputs={"main": [b"1\n"]}, letters=1)
    event = "UPDATE" if table == "progress" else "INSERT"
    kept.execute(f"CREATE TEMP TRIGGER no BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreError, match="no"):
        kept.commit({1: 9.0, 2: 9.0}, outputs={"main": [b"2\n"]}, letters=1, history=[("taken", 1)])
    kept.close()
    again = opened()
    assert (again.store.epoch, again.seen, bodies(again.store, "main")) == (1, {1: 0.5}, [b"1\n"])
    assert len(list(again.store.letters())) == 1
    assert [kind for _, kind, _ in again.store.history()] == ["start", "start"]


def test_after_a_failed_commit_the_store_must_be_opened_again(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.execute("CREATE TEMP TRIGGER no BEFORE INSERT ON deltas BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreError):
        kept.commit({1: 1.0})
    kept.execute("DROP TRIGGER no")
    with pytest.raises(StoreError, match="open the store again"):
        kept.commit({1: 1.0})
    kept.close()
    again = opened()
    again.commit({2: 2.0})
    assert again.seen == {2: 2.0}


def test_a_writer_that_was_replaced_cannot_commit(
    opened: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    first.commit({1: 1.0})
    # The lock keeps a second writer out; were it lost, the turn would still tell.
    monkeypatch.setattr("secondpass.store.lock._try_lock", lambda fd: True)
    second = opened()
    with pytest.raises(StoreError, match="taken over"):
        first.commit({1: 9.0})
    second.commit({2: 2.0})
    assert second.seen == {1: 1.0, 2: 2.0}


def test_a_full_disk_is_told_from_other_failures(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 1.0})
    (pages,) = kept.execute("PRAGMA page_count")[0]
    kept.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull, match="no space left") as caught:
        kept.commit(dict.fromkeys(range(10000), 1.0))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    kept.close()
    again = opened()
    again.commit({2: 2.0})
    assert again.seen == {1: 1.0, 2: 2.0}


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (apsw.FullError("disk full"), StoreFull, "no space left"),
        (apsw.CorruptError("malformed"), StoreDamaged, "is damaged"),
        (apsw.NotADBError("not a database"), StoreDamaged, "is damaged"),
        (apsw.IOError("disk I/O error"), StoreError, "Look at the disk"),
        (apsw.BusyError("database is locked"), StoreError, "cannot be used"),
    ],
)
def test_an_error_of_sqlite_says_what_it_means(
    error: apsw.Error, raised: type[StoreError], said: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(kept.store, "_put_deltas", fail)
    with pytest.raises(raised, match=said) as caught:
        kept.commit({1: 1.0})
    assert type(caught.value) is raised
    assert str(kept.directory) in str(caught.value)


# ---------------------------------------------------------------- the chain's state


def test_a_renamed_table_keeps_its_cells(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 1.0})
    kept.close()
    again = opened()
    other = ("task", "other")
    again.start({SEEN: other}, (other,))
    assert again.store.load({other: CODECS[SEEN]}) == {other: {1: 1.0}}
    assert set(again.store.tables()) == {other, ("task", "last")}


def test_a_dropped_table_is_gone_for_good(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 1.0}, last=value(1.0))
    kept.start({SEEN: None}, (("task", "last"),))
    kept.close()
    again = opened()
    assert (again.seen, again.last) == ({}, {None: value(1.0)})


def test_the_state_of_an_absent_task_waits_for_its_return(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 1.0})
    kept.start({}, (("another", "table"),))
    kept.close()
    assert opened().seen == {1: 1.0}


def test_two_tables_cannot_get_one_name(kept: Kept) -> None:
    with pytest.raises(ChainChanged, match=r"task\.last twice"):
        kept.store.load(CODECS, {SEEN: ("task", "last")})
    with pytest.raises(ChainChanged, match=r"task\.last twice"):
        kept.store.start([], CODECS, {SEEN: ("task", "last")}, {}, {})


def test_expired_cells_do_not_come_back(opened: Callable[[], Kept]) -> None:
    kept = opened()
    kept.commit({1: 1.0, 2: 2.0, 3: 3.0})
    kept.start(expired={SEEN: [1, 3]})
    assert kept.seen == {2: 2.0}
    kept.close()
    assert opened().seen == {2: 2.0}


def test_a_store_in_memory_works_like_any_other() -> None:
    kept = Kept.open(None)
    kept.commit({1: 1.0}, outputs={"main": [b"1\n"]}, letters=1)
    kept.commit({2: 2.0}, [1])
    assert kept.seen == {2: 2.0}
    assert bodies(kept.store, "main") == [b"1\n"]
    assert list(kept.store.letters())
    kept.close()


def test_what_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use"):
        Store.open(tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot use .*: Not a directory; .* or another place with --store"):
        Store.open(tmp_path / "file" / "below")


def test_every_directory_that_was_made_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("secondpass.store.database.sync_directory", synced.append)
    directory = tmp_path / "one" / "two" / "three"
    Store.open(directory).close()
    assert set(synced) == {directory, *list(directory.parents)[:3]}
    synced.clear()
    Store.open(directory).close()
    assert synced == [directory]
