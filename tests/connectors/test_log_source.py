"""The log as a source: what is appended is taken exactly once, and nothing that was appended is ever lost."""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secondpass import App, Event, Log, Task, value
from secondpass.connectors import JsonLines
from secondpass.engine.eventlog import decode_refused, pack
from secondpass.engine.pushed import LogFeed, LogSource
from secondpass.errors import InputError, SettingsError
from secondpass.record import Refused
from secondpass.store import log as store_log


class Seen(Event):
    cid: int
    time: float
    note: str = ""


class Other(Event):
    name: str


class Count(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 1
        return event.replace(note=str(self.total))


def seen(first: int, count: int) -> list[Any]:
    return [Seen(cid=n, time=float(n)) for n in range(first, first + count)]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "store")


@pytest.fixture
def feeds(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., LogFeed]:
    def open_(offset: Any = None, *, ended: bool = True, accept: bool = False) -> LogFeed:
        feed = LogSource(tmp_path / "store", ended=lambda: ended).open(offset, accept=accept)
        request.addfinalizer(feed.close)
        return feed

    return open_


def everything(feed: LogFeed, limit: int = 3) -> list[Any]:
    found: list[Any] = []
    while (batch := feed.read(limit)) is not None:
        records: dict[int, Any] = {**dict(zip(batch.origin, batch.events, strict=True)), **batch.refused}
        found += [records[i] for i in range(batch.count)]
    return found


# ---------------------------------------------------------------- appending events


def test_events_of_several_types_come_back_as_they_were(log: Log, feeds: Callable[..., LogFeed]) -> None:
    events = [*seen(0, 2), {"n": 1, "tags": ["a"]}, Other(name="x"), *seen(2, 3)]
    assert log.append(events) == range(7)
    found = everything(feeds())
    assert found[:2] + found[3:] == [*events[:2], *events[3:]]
    assert found[2]["tags"] == ("a",)
    assert [type(e) for e in found if isinstance(e, Event)] == [Seen, Seen, Other, Seen, Seen, Seen]


def test_a_single_event_may_be_appended_and_none_too(log: Log, feeds: Callable[..., LogFeed]) -> None:
    assert log.append(Seen(cid=1, time=1.0)) == range(1)
    assert log.append({"n": 2}) == range(1, 2)
    assert log.append([]) == range(0)
    assert log.append(e for e in seen(0, 2)) == range(2, 4)
    assert len(everything(feeds())) == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (7, "event 1 is none: a int"),
        (Seen(cid="x", time=1.0), "event 1 cannot be appended: ValidationError"),  # type: ignore[arg-type]
        ({"x": object()}, "event 1 cannot be appended"),
        ({1 << 80: 2}, "event 1 cannot be appended"),
    ],
)
def test_what_is_no_event_is_refused_before_anything_is_written(
    log: Log, feeds: Callable[..., LogFeed], wrong: Any, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        log.append([*seen(0, 1), wrong, *seen(1, 1)])
    assert everything(feeds()) == []


@pytest.mark.parametrize(
    ("wrong", "told"), [(5, "5 is no event: a int"), (None, "None is no event: a NoneType")]
)
def test_a_single_value_that_is_no_event_is_refused(
    log: Log, feeds: Callable[..., LogFeed], wrong: Any, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        log.append(wrong)
    assert everything(feeds()) == []


@pytest.mark.parametrize(
    "arguments", [{"sequence": 1}, {"producer": ""}, {"producer": "p", "sequence": -1}, {"producer": 3}]
)
def test_a_producer_has_a_name_and_a_sequence_a_producer(log: Log, arguments: Any) -> None:
    with pytest.raises(SettingsError):
        log.append(seen(0, 1), **arguments)


def test_the_last_append_of_a_producer_is_known(log: Log) -> None:
    log.append(seen(0, 3), producer="p", sequence=10)
    log.append(seen(3, 1))
    found = log.last("p")
    assert found == (10, range(3), Seen(cid=2, time=2.0))
    assert log.last("q") is None


def test_a_log_may_be_pickled(log: Log) -> None:
    log.append(seen(0, 1))
    assert pickle.loads(pickle.dumps(log)).append(seen(1, 1)) == range(1, 2)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_reading_may_stop_anywhere_and_go_on(log: Log, feeds: Callable[..., LogFeed], limit: int) -> None:
    for first, count in ((0, 4), (4, 1), (5, 10)):
        log.append(seen(first, count))
    whole = everything(feeds())
    found: list[Any] = []
    offset = None
    while (batch := feeds(offset).read(limit)) is not None:
        found += batch.events
        offset = batch.offset
    assert found == whole == seen(0, 15)


def test_what_the_app_cannot_read_any_more_keeps_its_place(log: Log, feeds: Callable[..., LogFeed]) -> None:
    class Gone(Event):
        name: str

    class Changed(Event):
        n: int

    log.append([Seen(cid=0, time=0.0), Gone(name="x"), Changed(n=1), Seen(cid=1, time=1.0)])
    name = f"{__name__}.{Gone.__qualname__}"
    Gone.__qualname__ = Changed.__qualname__ = "elsewhere"  # as if the classes had gone from the app
    found = everything(feeds())
    assert [type(r) for r in found] == [Seen, Refused, Refused, Seen]
    assert f"no event class {name}" in found[1].reason
    assert found[1].offset == 1
    Gone.__qualname__ = name.removeprefix(f"{__name__}.")
    assert decode_refused(found[1].raw) == Gone(name="x")


def test_an_event_that_is_not_of_its_class_any_more_keeps_its_place(
    log: Log, feeds: Callable[..., LogFeed]
) -> None:
    log.append(seen(0, 1))
    name = f"{Seen.__module__}.{Seen.__qualname__}"
    store_log.StoredLog(log.directory).append(
        pack([[name], None, [{"cid": 1, "time": 1.0}, {"cid": "x", "time": 1.0}]]), 2
    )
    found = everything(feeds())
    assert found[:2] == seen(0, 2)
    assert "it is no" in found[2].reason
    assert decode_refused(found[2].raw.replace(b'"x"', b"7")) == Seen(cid=7, time=1.0)


def test_a_log_that_is_not_the_one_that_was_read_is_refused(
    log: Log, feeds: Callable[..., LogFeed], tmp_path: Path
) -> None:
    log.append(seen(0, 3))
    batch = feeds().read(2)
    assert batch is not None
    with pytest.raises(InputError, match="not the log that was read before"):
        feeds({**batch.offset, "log": 1})
    with pytest.raises(InputError, match="ends at record 3, and records up to 9 had been taken"):
        feeds({**batch.offset, "next": 9})
    with pytest.raises(InputError, match="another kind of source"):
        feeds({"path": "x", "bytes": 3})


def test_records_that_left_the_log_before_they_were_taken_are_told(
    log: Log, feeds: Callable[..., LogFeed], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_log, "SEGMENT_BYTES", 300)
    log.append(seen(0, 2))
    offset = getattr(feeds().read(1), "offset", None)
    for n in range(2, 30):
        log.append(seen(n, 1))
    store_log.StoredLog(log.directory).retain(25, size=0)
    with pytest.raises(InputError, match=r"the records 1 to \d+ have left the log"):
        feeds(offset)
    kept = everything(feeds(offset, accept=True))
    assert kept == seen(30 - len(kept), len(kept))
    assert not caplog.records
    assert everything(feeds()) == kept
    assert "have left the log; this run begins after them" in caplog.text


# ---------------------------------------------------------------- with an app


def test_an_app_without_a_source_takes_its_log(tmp_path: Path) -> None:
    passed: list[Any] = []
    app = App("live", tasks=[Count()], sink=passed.append)
    log = Log(tmp_path)
    log.append(seen(0, 5))
    assert app.run(store=tmp_path, limit=3).position == 3
    log.append(seen(5, 5))
    assert app.run(store=tmp_path, limit=7).position == 10
    assert [(e.cid, e.note) for e in passed] == [(n, str(n + 1)) for n in range(10)]


def test_an_idle_app_takes_an_event_at_once(tmp_path: Path) -> None:
    passed: list[Any] = []
    app = App("live", tasks=[Count()], sink=passed.append)
    thread = threading.Thread(target=lambda: app.run(store=tmp_path, limit=20))
    thread.start()
    log = Log(tmp_path)
    for n in range(20):
        assert log.append(seen(n, 1)) == range(n, n + 1)
    thread.join(30)
    assert not thread.is_alive()
    assert [e.cid for e in passed] == list(range(20))


LIVE = """
from secondpass import App
app = App("live", sink=print)
"""


def test_app_log_is_that_of_the_app_whoever_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (home / "live.py").write_text(LIVE)
    (elsewhere / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(home)!r}); from live import app; print(app.log.append({{'n': 1}}))"
    )
    for command in (
        [sys.executable, str(elsewhere / "script.py")],
        [sys.executable, "-c", (elsewhere / "script.py").read_text()],
        [
            str(Path(sys.executable).with_name("secondpass")),
            "run",
            str(home / "live.py"),
            "--limit",
            "2",
            "-q",
        ],
    ):
        done = subprocess.run(command, cwd=elsewhere, check=True, timeout=60, capture_output=True, text=True)
        assert not list(elsewhere.rglob(".secondpass"))
    assert done.stdout.count("'n': 1") == 2
    assert Log(home / ".secondpass" / "live").append({"n": 2}) == range(2, 3)


def test_app_log_is_that_of_the_run_while_there_is_one(tmp_path: Path) -> None:
    app = App("live", tasks=[Count()])
    app.file = tmp_path / "live.py"
    app.log.append(seen(0, 1))

    def append() -> None:
        while app.running_store is None:
            time.sleep(0.001)
        app.log.append(seen(0, 2))

    thread = threading.Thread(target=append)
    thread.start()
    assert app.run(store=None, limit=2).position == 2  # a log of its own, that goes with the run
    thread.join()
    assert app.log.directory == tmp_path / ".secondpass" / "live"
    assert app.run(limit=1).position == 1


def test_a_process_that_a_run_has_started_finds_its_log(tmp_path: Path) -> None:
    app = App("live", tasks=[Count()])
    code = "from secondpass import App; App('live').log.append({'n': 1}); App('other').log.append({'n': 2})"

    @app.source
    def starts() -> None:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)

    assert app.run(store=tmp_path / "here").position == 1
    assert [path.name for path in (tmp_path / ".secondpass").iterdir()] == ["other"]


def test_the_log_and_a_file_are_taken_by_arrival_and_each_once(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"cid": {n}, "time": {n}.0}}\n' for n in range(100, 105)))
    passed: list[Any] = []
    from secondpass.app import PUSHED

    app = App("both", sources=[JsonLines(str(file), Seen), PUSHED], tasks=[Count()], sink=passed.append)
    log = Log(tmp_path / "store")
    log.append(seen(0, 5))
    for _ in range(5):
        app.run(store=tmp_path / "store", limit=2)
    assert sorted(e.cid for e in passed) == [*range(5), *range(100, 105)]
    for part in (range(5), range(100, 105)):
        assert [e.cid for e in passed if e.cid in part] == list(part)
    assert [e.note for e in passed] == [str(n + 1) for n in range(10)]


def test_a_log_keeps_its_place_when_the_app_gets_another_source(tmp_path: Path) -> None:
    from secondpass.app import PUSHED

    passed: list[Any] = []
    log = Log(tmp_path / "store")
    log.append(seen(0, 4))
    App("live", tasks=[Count()], sink=passed.append).run(store=tmp_path / "store", limit=2)
    file = tmp_path / "in.jsonl"
    file.write_text('{"cid": 100, "time": 100.0}\n')
    both = App("live", sources=[JsonLines(str(file), Seen), PUSHED], tasks=[Count()], sink=passed.append)
    both.run(store=tmp_path / "store", limit=3)
    assert sorted(e.cid for e in passed) == [0, 1, 2, 3, 100]


def test_a_dead_letter_of_the_log_can_be_sent_again(tmp_path: Path) -> None:
    from secondpass.store.spool import Command, Spool

    class Late(Event):
        cid: int

    passed: list[Any] = []
    app = App("live", tasks=[], sink=passed.append)
    log = Log(tmp_path)
    log.append([Late(cid=1), Late(cid=2)])
    qualname, Late.__qualname__ = Late.__qualname__, "elsewhere"
    summary = app.run(store=tmp_path, limit=2)
    assert summary.dead_letters == 2
    Late.__qualname__ = qualname
    Spool(tmp_path).put(Command("retry", 0))
    log.append(seen(0, 1))
    app.run(store=tmp_path, limit=1)
    assert [e.cid for e in passed if isinstance(e, Late)] == [1]


def test_what_is_committed_and_too_much_leaves_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr("secondpass.engine.pushed.RETAIN_EVERY_S", 0.0)
    log = Log(tmp_path)
    for n in range(200):
        log.append(seen(n, 1))
    app = App("live", tasks=[Count()], keep_log="5kB")
    app.run(store=tmp_path, limit=200)
    kept = sum(p.stat().st_size for p in (tmp_path / "log").glob("*.log"))
    assert kept < 7000
    log.append(seen(200, 1))
    assert app.run(store=tmp_path, limit=1).position == 201


@pytest.mark.parametrize("given", ["7", "7 days", "", "10", ["7d", "x"]])
def test_what_is_to_be_kept_of_a_log_is_an_age_or_a_size(given: Any) -> None:
    with pytest.raises(TypeError, match="write an age"):
        App("live", keep_log=given)
