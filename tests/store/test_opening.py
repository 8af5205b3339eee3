"""Who may open a store, which SQLite and which format; reading beside the writer; files of every format."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from store_kit import CODECS, SEEN, Kept, bodies, value

from secondpass.errors import StoreDamaged, StoreError, StoreLocked, StoreVersion
from secondpass.store import format as store_format
from secondpass.store import upgrade
from secondpass.store.database import Store
from secondpass.store.format import FILE, FORMAT, PROGRESS_PAGE
from secondpass.store.lock import StoreLock, holder_of

FIXTURES = Path(__file__).resolve().parent / "fixtures"


# ---------------------------------------------------------------- SQLite and formats


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2"])
def test_a_sqlite_that_corrupts_databases_is_refused(
    version: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    for open_ in (Store.open, Store.open_to_read, lambda _: Store.in_memory()):
        with pytest.raises(StoreError, match=f"SQLite {version} has a bug.*pip install -U apsw"):
            open_(directory)
    assert not directory.exists()


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0.0"])
def test_later_ones_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    Store.in_memory().close()


def test_a_newer_format_is_refused_and_left_alone(kept: Kept, directory: Path) -> None:
    kept.execute(f"PRAGMA user_version = {FORMAT + 1}")
    kept.close()
    before = (directory / FILE).read_bytes()
    for open_ in (Store.open, Store.open_to_read):
        with pytest.raises(StoreVersion, match=f"format {FORMAT + 1}.*install a newer secondpass"):
            open_(directory)
    assert (directory / FILE).read_bytes() == before


def test_an_older_format_is_upgraded_after_a_copy_was_made(
    opened: Callable[[], Kept], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened()
    kept.commit({1: 1.0})
    kept.close()
    for module in ("secondpass.store.reader", "secondpass.store.upgrade", "secondpass.store.database"):
        monkeypatch.setattr(f"{module}.FORMAT", FORMAT + 1)
    monkeypatch.setitem(upgrade.UPGRADES, FORMAT, lambda db: db.execute("CREATE TABLE newer (id INTEGER)"))
    with pytest.raises(StoreVersion, match=r"older format.*upgrades it"):
        Store.open_to_read(directory)
    again = opened()
    assert again.execute("PRAGMA user_version") == [(FORMAT + 1,)]
    assert again.execute("SELECT count(*) FROM newer") == [(0,)]
    assert again.seen == {1: 1.0}
    again.close()
    monkeypatch.undo()
    shutil.move(directory / f"store-format-{FORMAT}.db", directory / FILE)
    assert opened().seen == {1: 1.0}


def test_an_upgrade_that_fails_changes_nothing(
    opened: Callable[[], Kept], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened()
    kept.commit({1: 1.0})
    kept.close()
    with monkeypatch.context() as patch:
        for module in ("secondpass.store.reader", "secondpass.store.upgrade", "secondpass.store.database"):
            patch.setattr(f"{module}.FORMAT", FORMAT + 1)
        patch.setitem(upgrade.UPGRADES, FORMAT, lambda db: db.execute("DELETE FROM deltas; SELECT nothing"))
        with pytest.raises(StoreDamaged, match="nothing"):
            Store.open(directory)
    assert opened().seen == {1: 1.0}


def test_a_format_that_never_was_is_damage(kept: Kept, directory: Path) -> None:
    kept.execute("PRAGMA user_version = 0")
    kept.close()
    for open_ in (Store.open, Store.open_to_read):
        with pytest.raises(StoreDamaged, match="format 0"):
            open_(directory)


def test_the_progress_record_is_on_the_page_where_the_wal_is_searched_for_it(kept: Kept) -> None:
    assert kept.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'progress'") == [(PROGRESS_PAGE,)]
    kept.execute("VACUUM")
    assert kept.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'progress'") == [(PROGRESS_PAGE,)]


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_store_of_every_format_opens(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / f"format-{number}", tmp_path / "store")
    kept = Kept.open(tmp_path / "store")
    store = kept.store
    assert (store.epoch, store.progress.position) == (60, 600)
    assert kept.seen == {n: n + 0.5 for n in range(30, 60)}
    assert kept.last == {None: value(59.0)}
    assert bodies(store, "main") == [b'{"n":%d}\n' % n for n in range(60)]
    assert store.progress.sinks == {"main": {"number": 40}}
    assert [(number, status, letter.position) for number, status, letter in store.letters()] == [
        (0, "sent", 100), (1, "open", 400),
    ]  # fmt: skip
    assert [(p, kind, what) for p, kind, what in store.history() if kind != "start"] == [
        (290, "taken", [[0, 10]])
    ]
    kept.commit({1: 1.0}, outputs={"main": [b"more\n"]})
    kept.close()


def write_fixture() -> None:
    """Write the fixture of the current format: `python tests/store/test_opening.py`."""
    directory = FIXTURES / f"format-{FORMAT}"
    shutil.rmtree(directory, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secondpass.store.fold.BYTES_MIN", 3000)
        patch.setattr("secondpass.store.fold.SLICE_BYTES", 100)
        kept = Kept.open(directory)
        for n in range(60):
            kept.commit(
                {n: n + 0.5},
                [n - 30] if n >= 30 else [],
                last=value(float(n)),
                outputs={"main": [b'{"n":%d}\n' % n]},
                letters=int(n in (10, 40)),
                status={0: "sent"} if n == 20 else None,
                history=[("taken", [[0, 10]])] if n == 29 else None,
                sinks={"main": {"number": n - 19}} if n >= 20 else None,
            )
        assert kept.store.progress.generation
        kept.close()
    (directory / "hub.lock").unlink()


# ---------------------------------------------------------------- reading beside the writer


def test_a_reader_sees_one_moment_while_the_writer_goes_on(kept: Kept, directory: Path) -> None:
    kept.commit({1: 1.0}, outputs={"main": [b"1\n"]}, letters=1)
    reader = Store.open_to_read(directory)
    with reader.snapshot():
        kept.commit({2: 2.0}, [1], outputs={"main": [b"2\n"]}, letters=1, history=[("taken", 1)])
        assert reader.load(CODECS)[SEEN] == {1: 1.0}
        assert bodies(reader, "main") == [b"1\n"]
        assert len(list(reader.letters())) == 1
        assert len(list(reader.history())) == 1
        assert reader.epoch == 1
    assert reader.load(CODECS)[SEEN] == {2: 2.0}
    assert bodies(reader, "main") == [b"1\n", b"2\n"]
    assert len(list(reader.letters())) == 2
    assert reader.epoch == 2
    reader.close()


def test_a_reader_that_was_open_before_is_never_told_of_damage(
    kept: Kept, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondpass.store.fold.BYTES_MIN", 500)
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 100)
    reader = Store.open_to_read(directory)
    for n in range(100):
        kept.commit({n % 9: 1.0}, outputs={"main": [b"x" * 30]}, sinks={"main": {"number": n}}, letters=1)
        assert reader.load(CODECS)[SEEN] == dict.fromkeys(range(min(n + 1, 9)), 1.0)
        assert sum(row.count for row in reader.outputs("main")) <= n + 1
        assert len(list(reader.letters())) == n + 1
    assert reader.progress.kept_from["main"] > 0
    reader.close()


def test_a_reader_writes_nothing(kept: Kept, directory: Path) -> None:
    kept.commit({1: 1.0})
    kept.store.close(checkpoint=False)
    before = {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.endswith("-shm")}
    reader = Store.open_to_read(directory)
    assert reader.load(CODECS)[SEEN] == {1: 1.0}
    reader.close()
    assert {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.endswith("-shm")} == before


def test_there_is_nothing_to_read_where_nothing_ran(directory: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in"):
        Store.open_to_read(directory)
    directory.mkdir()
    (directory / FILE).touch()  # the making of a store was cut short
    with pytest.raises(StoreError, match="is empty") as caught:
        Store.open_to_read(directory)
    assert type(caught.value) is StoreError
    Kept.open(directory).close()


def test_a_file_system_without_shared_memory_is_refused(directory: Path) -> None:
    with pytest.raises(StoreError, match="use a local directory"):
        Store.open(directory, vfs="unix-dotfile")  # as on some network file systems, the WAL does not work


def test_something_else_is_not_taken_for_a_store(directory: Path) -> None:
    directory.mkdir()
    (directory / FILE).write_text("notes " * 1000)
    for open_ in (Store.open, Store.open_to_read):
        with pytest.raises(StoreDamaged, match="not a database"):
            open_(directory)
    assert (directory / FILE).read_text() == "notes " * 1000


# ---------------------------------------------------------------- one writer


def test_a_second_writer_is_told_who_the_first_is(kept: Kept, directory: Path) -> None:
    with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()} on ") as caught:
        Store.open(directory)
    assert caught.value.details["holder"]["pid"] == os.getpid()
    kept.commit({1: 1.0})
    assert kept.seen == {1: 1.0}


def test_a_store_that_was_closed_has_no_holder(kept: Kept, directory: Path) -> None:
    assert (holder_of(directory) or {})["pid"] == os.getpid()
    kept.close()
    assert holder_of(directory) is None
    Store.open(directory).close()


def test_a_dead_holder_is_no_obstacle(directory: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from secondpass.store.database import Store\n"
        "Store.open(Path(sys.argv[1])); print('open', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked, match=f"process {holder.pid} "):
            Store.open(directory)
        holder.send_signal(signal.SIGKILL)
    kept = Kept.open(directory)
    kept.commit({1: 1.0})
    kept.close()


def test_a_failed_opening_lets_the_lock_go(kept: Kept, directory: Path) -> None:
    kept.execute(f"PRAGMA user_version = {FORMAT + 1}")
    kept.close()
    with pytest.raises(StoreVersion):
        Store.open(directory)
    lock = StoreLock(directory)
    lock.acquire()
    lock.release()


if __name__ == "__main__":
    assert store_format.FORMAT == FORMAT
    write_fixture()
