"""Functions as sources: in threads, in processes, at times; restarted when they crash, and stopped with the run."""

import asyncio
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from secondpass import App, Event, Log
from secondpass.engine import sources as engine_sources
from secondpass.errors import DefinitionError, SettingsError
from secondpass.feeder import Every
from secondpass.loading import load
from secondpass.store import log as store_log

COMMAND = str(Path(sys.executable).with_name("secondpass"))


class Seen(Event):
    n: int
    by: str = ""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second in a test."""
    monkeypatch.setattr(engine_sources, "BACKOFF_S", 0.01)
    monkeypatch.setattr(engine_sources, "BACKOFF_MAX_S", 0.05)


@pytest.fixture
def passed() -> list[Any]:
    return []


@pytest.fixture
def app(passed: list[Any]) -> App:
    return App("fed", sink=passed.append)


def numbers(passed: list[Any], by: str = "") -> list[int]:
    return [event.n for event in passed if event.by == by]


def until(true: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.002)


# ---------------------------------------------------------------- what a function may be


def test_what_a_function_returns_or_yields_is_taken_in_its_order(app: App, passed: list[Any]) -> None:
    @app.source
    def one() -> Seen:
        return Seen(n=7, by="one")

    @app.source
    def several() -> list[Seen]:
        return [Seen(n=n, by="several") for n in range(3)]

    @app.source
    def nothing() -> None:
        return None

    @app.source
    def generator() -> Iterator[Any]:
        yield Seen(n=0, by="generator")
        yield [Seen(n=1, by="generator"), Seen(n=2, by="generator")]
        yield None
        yield ()
        yield {"n": 3}

    @app.source
    def iterator() -> Iterator[Seen]:
        return iter([Seen(n=n, by="iterator") for n in range(3)])

    @app.source
    async def later() -> Seen:
        await asyncio.sleep(0)
        return Seen(n=1, by="later")

    @app.source
    async def asynchronous() -> AsyncIterator[Seen]:
        for n in range(3):
            await asyncio.sleep(0.001)
            yield Seen(n=n, by="asynchronous")

    summary = app.run(store=None)
    found = {by: numbers([e for e in passed if isinstance(e, Seen)], by) for by in ("one", "later")}
    assert found == {"one": [7], "later": [1]}
    for by in ("several", "iterator", "asynchronous"):
        assert numbers([e for e in passed if isinstance(e, Seen)], by) == [0, 1, 2]
    assert [
        e["n"] if isinstance(e, dict) else e.n
        for e in passed
        if not (isinstance(e, Seen) and e.by != "generator")
    ] == [0, 1, 2, 3]
    assert {state.name: (state.state, state.events) for state in summary.sources} == {
        "one": ("ended", 1),
        "several": ("ended", 3),
        "nothing": ("ended", 0),
        "generator": ("ended", 4),
        "iterator": ("ended", 3),
        "later": ("ended", 1),
        "asynchronous": ("ended", 3),
    }
    assert summary.ended == "end of input"


def test_a_generator_goes_on_when_what_it_yielded_is_durable(app: App, tmp_path: Path) -> None:
    wrong: list[Any] = []

    @app.source
    def careful() -> Iterator[Any]:
        for n in range(20):
            where = yield [Seen(n=n), Seen(n=n)]
            if where != range(2 * n, 2 * n + 2) or store_log.StoredLog(tmp_path).ends.durable < where.stop:
                wrong.append(where)

    app.run(store=tmp_path)
    assert not wrong


def test_with_a_batch_a_generator_runs_ahead(
    app: App, passed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real = store_log.datasync
    monkeypatch.setattr(store_log, "datasync", lambda fd: (syncs.append(fd), real(fd)))

    @app.source(batch=100)
    def fast() -> Iterator[Seen]:
        for n in range(2000):
            yield Seen(n=n)

    app.run(store=None)
    assert numbers(passed) == list(range(2000))
    assert len(syncs) < 1000


def test_a_source_is_told_what_it_appended_last(app: App, passed: list[Any], tmp_path: Path) -> None:
    @app.source
    def goes_on(last: Seen | None) -> Iterator[Seen]:
        first = 0 if last is None else last.n + 1
        for n in range(first, first + 3):
            yield Seen(n=n)

    for _ in range(3):
        app.run(store=tmp_path)
    assert numbers(passed) == list(range(9))


def test_a_source_that_gives_no_event_hears_of_it_where_it_yielded(app: App, passed: list[Any]) -> None:
    heard: list[str] = []

    @app.source
    def mixed() -> Iterator[Any]:
        for n in (0, "x", 1):
            try:
                yield Seen(n=n)  # type: ignore[arg-type]
            except SettingsError as error:
                heard.append(str(error))
                yield Seen(n=100)

    app.run(store=None)
    assert "event 0 cannot be appended" in heard[0]
    assert numbers(passed) == [0, 100, 1] or numbers(passed) == [0, 1]


@pytest.mark.parametrize("wrong", [7, "text", b"bytes"])
def test_what_is_no_event_crashes_the_source(app: App, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    @app.source
    def odd() -> Any:
        tries.append(1)
        return wrong if len(tries) == 1 else None

    summary = app.run(store=None)
    assert len(tries) == 2
    assert f"the source odd gave a {type(wrong).__name__}" in (summary.sources[0].error or "")
    assert "it is started again in 0.01 s" in caplog.text


# ---------------------------------------------------------------- times


def test_a_function_is_called_at_its_times(app: App, passed: list[Any]) -> None:
    count = itertools.count()

    @app.source(every="20ms")
    def ticks() -> Seen:
        return Seen(n=next(count))

    began = time.monotonic()
    app.run(store=None, limit=10)
    assert time.monotonic() - began + 0.001 >= 9 * 0.02
    assert numbers(passed) == list(range(10))


def test_a_period_that_was_missed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("secondpass.feeder.time.monotonic", lambda: now[0])
    wait_s = Every.of("10s", None).waits()
    assert (wait_s(), wait_s()) == (0.0, 10.0)
    now[0] = 135.0
    assert (wait_s(), wait_s()) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("line", "zone", "at", "wait_s"),
    [
        ("*/5 * * * *", "UTC", "2026-11-26T00:04:50+00:00", 10.0),
        ("0 8 * * *", "Asia/Shanghai", "2026-11-25T23:59:45+00:00", 15.0),
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-29T00:59:50+00:00",
            10.0,
        ),  # 02:30 does not exist: 03:00 it is
    ],
)
def test_a_cron_line_is_wall_time_of_its_zone(
    monkeypatch: pytest.MonkeyPatch, line: str, zone: str, at: str, wait_s: float
) -> None:
    now = [datetime.datetime.fromisoformat(at).timestamp()]
    monkeypatch.setattr("secondpass.feeder.time.time", lambda: now[0])
    waits = Every.of(line, zone).waits()
    assert waits() == wait_s
    now[0] += wait_s
    assert waits() == 0.0
    assert waits() > 0


def test_every_time_of_a_day_with_an_hour_too_many_comes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [datetime.datetime.fromisoformat("2026-10-24T22:00:00+00:00").timestamp()]
    monkeypatch.setattr("secondpass.feeder.time.time", lambda: now[0])
    lines = {"30 2 * * *": 0, "0 8 * * *": 0, "*/30 * * * *": 0}
    waits = {line: Every.of(line, "Europe/Berlin").waits() for line in lines}
    for _ in range(25 * 60 * 2):
        now[0] += 30
        for line, wait_s in waits.items():
            lines[line] += wait_s() == 0.0
    assert lines == {"30 2 * * *": 1, "0 8 * * *": 1, "*/30 * * * *": 50}


def test_a_clock_that_is_set_back_does_not_keep_a_function_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr("secondpass.feeder.time.time", lambda: now[0])
    waits = Every.of("* * * * *", "UTC").waits()
    assert 0 < waits() <= 30
    now[0] -= 7200
    assert 0 < waits() <= 30
    now[0] += 60
    assert waits() == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": "often"}, "write a period"),
        ({"every": "* * * *"}, "write a period"),
        ({"every": 1}, "write a text"),
        ({"every": "0 0 31 2 *"}, "write a period"),
        ({"every": "1s", "tz": "UTC"}, "only the times of a cron line have a time zone"),
        ({"every": "* * * * *", "tz": "Atlantis"}, "no such time zone"),
        ({"tz": "UTC"}, "it is the time zone of every="),
        ({"batch": 0}, "a number of events"),
    ],
)
def test_options_that_mean_nothing_are_refused(app: App, options: Any, told: str) -> None:
    def function() -> None: ...

    with pytest.raises(DefinitionError, match=told):
        app.source(**options)(function)
    with pytest.raises(DefinitionError, match="has no name"):
        app.source(lambda: None)


def test_a_function_that_needs_arguments_is_refused_and_so_is_a_second_of_a_name(app: App) -> None:
    with pytest.raises(DefinitionError, match="what is 'camera'"):

        @app.source
        def feed(camera: int) -> None: ...

    @app.source
    def twin(*rest: int, last: object = None, **more: int) -> None: ...

    with pytest.raises(DefinitionError, match="two sources are called 'twin'"):
        app.source(twin)
    app.source(name="other")(twin)
    assert [feeder.name for feeder in app.feeders] == ["twin", "other"]


# ---------------------------------------------------------------- crashes


def test_a_source_that_crashes_is_started_again_later_each_time(
    app: App, passed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    lives = itertools.count()

    @app.source
    def shaky(last: Seen | None) -> Iterator[Seen]:
        if next(lives) < 5:
            yield Seen(n=0 if last is None else last.n + 1)
            raise OSError("the camera is gone")

    summary = app.run(store=None)
    assert numbers(passed) == list(range(5))
    state = summary.sources[0]
    assert (state.state, state.restarts, state.error) == ("ended", 5, "OSError: the camera is gone")
    waits = [record.getMessage().partition(" in ")[2].partition(" s")[0] for record in caplog.records]
    assert waits == ["0.01", "0.02", "0.04", "0.05", "0.05"]
    assert "in shaky" in caplog.text


def test_one_that_crashes_does_not_stop_the_others(app: App, passed: list[Any]) -> None:
    @app.source
    def broken() -> None:
        raise SystemExit(3)

    @app.source
    def well() -> Iterator[Seen]:
        for n in range(50):
            yield Seen(n=n)
            time.sleep(0.001)

    app.run(store=None, limit=50)
    assert numbers(passed) == list(range(50))


def test_what_is_known_of_sources_is_beside_the_log(app: App, tmp_path: Path) -> None:
    @app.source
    def broken() -> Iterator[Seen]:
        yield Seen(n=1)
        raise ValueError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_sources, "BACKOFF_S", 60.0)
        patch.setattr(engine_sources, "_WRITE_EVERY_S", 0.0)
        stop = threading.Thread(target=lambda: app.run(store=tmp_path, limit=2))
        stop.start()
        file = tmp_path / "log" / "sources"
        until(lambda: file.exists() and json.loads(file.read_text())[0]["state"] == "waiting")
        (found,) = json.loads(file.read_text())
        assert (found["restarts"], found["error"], found["events"]) == (1, "ValueError: no", 1)
        assert 50 < found["again_at"] - time.time() < 61
        Log(tmp_path).append(Seen(n=2))
        stop.join(30)
    assert json.loads(file.read_text())[0]["state"] == "stopped"


def test_a_log_that_fails_stops_the_run(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.source
    def endless() -> Iterator[Seen]:
        for n in itertools.count():
            if n == 5:
                monkeypatch.setattr(store_log, "datasync", lambda fd: os.close(-1))
            yield Seen(n=n)

    with pytest.raises(Exception, match="end this process and append again from a new one"):
        app.run(store=tmp_path)


def test_a_source_that_computes_all_the_time_is_told_of(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_sources, "_BUSY_S", 0.05)

    @app.source
    def busy() -> Iterator[Seen]:
        until = time.thread_time() + 0.3
        n = 0
        while time.thread_time() < until:
            n += 1
            if n % 20000 == 0:
                yield Seen(n=n)

    @app.source
    def idle() -> Iterator[Seen]:
        for n in range(20):
            yield Seen(n=n)
            time.sleep(0.01)

    app.run(store=None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("the source busy computes all the time")


# ---------------------------------------------------------------- back-pressure and stopping


def test_a_source_that_is_faster_than_the_app_waits_for_it(
    app: App, passed: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_log, "AHEAD_BYTES", 2000)
    ahead: list[int] = []
    slow = threading.Event()

    def sink(event: Seen) -> None:
        ends = store_log.StoredLog(tmp_path).ends
        ahead.append(ends.bytes - ends.committed_bytes)
        slow.wait(0.001)
        passed.append(event)

    app.sinks["main"] = sink

    @app.source
    def fast() -> Iterator[list[Seen]]:
        for n in range(0, 400, 4):
            yield [Seen(n=i) for i in range(n, n + 4)]

    app.run(store=tmp_path)
    assert numbers(passed) == list(range(400))
    assert max(ahead) < 2500


@pytest.mark.parametrize("blocked", ["yields", "sleeps", "waits for room", "computes", "awaits"])
def test_a_run_that_is_stopped_does_not_wait_for_its_sources(
    app: App, blocked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[str] = []
    over = threading.Event()
    if blocked == "waits for room":
        monkeypatch.setattr(store_log, "AHEAD_BYTES", 0)
        app.sinks["main"] = lambda event: over.wait(0.05)  # type: ignore[assignment]

    @app.source
    def endless() -> Iterator[Seen]:
        try:
            for n in itertools.count():
                yield Seen(n=n)
                if blocked == "sleeps":
                    over.wait(60)
                while blocked == "computes" and n == 2 and not over.is_set():
                    pass
        finally:
            closed.append("closed")

    if blocked == "awaits":
        app.feeders = ()

        @app.source
        async def awaiting() -> AsyncIterator[Seen]:
            try:
                for n in itertools.count():
                    yield Seen(n=n)
                    await asyncio.sleep(60 if n else 0)
            finally:
                closed.append("closed")

    app.run(store=tmp_path, limit=1)
    began = time.monotonic()
    summary = app.run(store=tmp_path, limit=1)
    assert time.monotonic() - began < 2
    assert summary.sources[0].state == "stopped"
    if blocked in ("yields", "awaits"):
        assert len(closed) == 2
    over.set()


def test_one_that_gives_something_after_its_run_appends_nothing(app: App, tmp_path: Path) -> None:
    over, done = threading.Event(), threading.Event()

    @app.source
    def late() -> Iterator[Seen]:
        try:
            yield Seen(n=0)
            over.wait(60)
            yield Seen(n=1)
        finally:
            done.set()

    app.run(store=tmp_path, limit=1)
    over.set()
    assert done.wait(30)
    assert store_log.StoredLog(tmp_path).ends.next == 1


# ---------------------------------------------------------------- processes


def write(directory: Path, text: str) -> Path:
    path = directory / "sourced_app.py"
    head = """
        import itertools, os, time
        from secondpass import App, Event
        from secondpass.connectors import JsonLines

        class Seen(Event):
            n: int
            pid: int

        app = App("fed", sink=JsonLines("out.jsonl"))
    """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    return path


def outputs(directory: Path) -> list[dict[str, Any]]:
    file = directory / "out.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_source_may_have_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path,
        """
        @app.source(process=True)
        def there(last):
            for n in range(3):
                yield Seen(n=n if last is None else last.n + n + 1, pid=os.getpid())

        @app.source
        def here():
            return Seen(n=-1, pid=os.getpid())
        """,
    )
    app = load(str(path))
    summary = app.run()
    assert {s.name: (s.state, s.events) for s in summary.sources} == {
        "there": ("ended", 3),
        "here": ("ended", 1),
    }
    app.run()
    found = outputs(tmp_path)
    assert [e["n"] for e in found if e["n"] >= 0] == list(range(6))
    assert {e["pid"] for e in found if e["n"] < 0} == {os.getpid()}
    assert len({e["pid"] for e in found if e["n"] >= 0} - {os.getpid()}) == 2


COMPUTES = """
HUB = int(os.environ["SOURCED_HUB"])

def compute(seconds=0.02):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
"""
MOVES = """
@app.source(process="auto")
def resumed(last):
    n = 0 if last is None else last.n + 1
    while os.getpid() == HUB or n < 50 or n % 50:
        compute()
        yield Seen(n=n, pid=os.getpid())
        n += 1
"""
CALLED = """
@app.source(every="1ms", process="auto")
def called():
    for n in range(5):
        compute()
        yield Seen(n=n, pid=os.getpid())
"""


def test_a_source_that_computes_all_the_time_moves_to_a_process_where_it_left_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCED_HUB", str(os.getpid()))
    monkeypatch.setattr(engine_sources, "_BUSY_S", 0.1)
    with caplog.at_level("INFO", "secondpass"):
        summary = load(str(write(tmp_path, COMPUTES + MOVES))).run()
    found = outputs(tmp_path)
    assert [e["n"] for e in found] == list(range(len(found)))
    here = [e["pid"] == os.getpid() for e in found]
    assert here == sorted(here, reverse=True), "here first, then there"
    assert len({e["pid"] for e in found}) == 2
    (state,) = summary.sources
    assert (state.state, state.events, state.restarts) == ("ended", len(found), 0)
    assert "the source resumed computes all the time: it goes on in a process of its own" in caplog.text


def test_a_source_that_is_called_moves_between_two_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCED_HUB", str(os.getpid()))
    monkeypatch.setattr(engine_sources, "_BUSY_S", 0.1)
    app = load(str(write(tmp_path, COMPUTES + CALLED)))
    app.run(on_epoch=lambda hub: setattr(hub, "stopping", len({e["pid"] for e in outputs(tmp_path)}) == 2))
    found = outputs(tmp_path)
    whole = len(found) // 5 * 5  # the last call may not have come to its end
    assert [e["n"] for e in found[:whole]] == list(range(5)) * (whole // 5)
    for i in range(0, whole, 5):
        assert len({e["pid"] for e in found[i : i + 5]}) == 1, "no call is cut"


HOURLY = """
@app.source(every="1h", process="auto")
def busy():
    for n in range(5):
        compute(0.1)
        yield Seen(n=n, pid=os.getpid())
"""
RETURNS = """
@app.source(process="auto")
def busy(last):
    for _ in range(5):
        compute(0.1)
    return [Seen(n=n, pid=os.getpid()) for n in range(2)]
"""
AHEAD = """
@app.source(process="auto", batch=10)
def busy(last):
    n = 0 if last is None else last.n + 1
    while n < 30 or os.getpid() == HUB:
        compute(0.1)
        yield Seen(n=n, pid=os.getpid())
        n += 1
"""


@pytest.mark.parametrize(
    ("text", "state", "processes"), [(HOURLY, "stopped", 1), (RETURNS, "ended", 1), (AHEAD, "ended", 2)]
)
def test_what_has_moved_is_called_when_it_is_due_and_what_has_ended_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, state: str, processes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCED_HUB", str(os.getpid()))
    monkeypatch.setattr(engine_sources, "_BUSY_S", 0.05)

    def on_epoch(hub: Any) -> None:
        if text == HOURLY and hub.summary.sources[0].pid is not None:
            until(
                lambda: not psutil.Process(hub.summary.sources[0].pid).cpu_percent(0.5)
            )  # it waits for its hour
            hub.stopping = True

    summary = load(str(write(tmp_path, COMPUTES + text))).run(on_epoch=on_epoch)
    found = outputs(tmp_path)
    assert [e["n"] for e in found] == list(range({HOURLY: 5, RETURNS: 2}.get(text, len(found))))
    assert len({e["pid"] for e in found}) == processes
    assert [(s.state, s.restarts) for s in summary.sources] == [(state, 0)]


def test_only_what_can_go_on_elsewhere_may_be_moved(app: App) -> None:
    def endless() -> Iterator[Seen]:
        yield Seen(n=0)

    with pytest.raises(DefinitionError, match="cannot be moved while it runs; let it ask for `last`"):
        app.source(process="auto")(endless)
    with pytest.raises(DefinitionError, match="True, False, or 'auto'"):
        app.source(process="maybe")(endless)  # type: ignore[call-overload]


def test_a_process_that_crashes_or_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path,
        """
        @app.source(process=True)
        def shaky(last):
            n = 0 if last is None else last.n + 1
            yield Seen(n=n, pid=os.getpid())
            if n == 0:
                raise ValueError("no more")
            if n == 1:
                os.kill(os.getpid(), 9)
            if n == 2:
                os._exit(5)
        """,
    )
    summary = load(str(path)).run()
    assert (summary.sources[0].state, summary.sources[0].events) == ("ended", 4)
    assert [e["n"] for e in outputs(tmp_path)] == [0, 1, 2, 3]
    for told in (
        "ValueError: no more",
        "its process was ended by SIGKILL",
        "its process ended itself with exit code 5",
    ):
        assert told in caplog.text


def test_a_function_that_no_other_process_finds_cannot_have_its_own(app: App) -> None:
    @app.source(process=True)
    def nested() -> None: ...

    with pytest.raises(SettingsError, match="the source nested cannot be loaded by another process"):
        app.run(store=None)


ENDLESS = """
@app.source(process=True)
def there():
    for n in itertools.count():
        yield Seen(n=n, pid=os.getpid())
        time.sleep(%s)

@app.source
def here():
    for n in itertools.count():
        yield Seen(n=-1, pid=os.getpid())
        time.sleep(0.01)
"""


def running(directory: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """An app with a process of a source, once both have given something."""
    hub = subprocess.Popen(
        [COMMAND, "run", "sourced_app.py", "--quiet"],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: {e["n"] < 0 for e in outputs(directory)} == {True, False})
    (pid,) = {e["pid"] for e in outputs(directory) if e["n"] >= 0}
    return hub, psutil.Process(pid)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("pause", ["0.01", "60 * (n > 0)"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_and_its_sources_within_a_second_or_two(
    tmp_path: Path, number: signal.Signals, pause: str
) -> None:
    write(tmp_path, ENDLESS % pause)
    hub, there = running(tmp_path)
    hub.send_signal(number)
    assert hub.wait(5) in {0, 130}
    assert gone(there)
    found = [e["n"] for e in outputs(tmp_path) if e["n"] >= 0]
    assert found == list(range(len(found)))


@pytest.mark.skipif(sys.platform != "linux", reason="who watches its parent by a pipe is slower to notice")
def test_no_process_of_a_source_outlives_a_hub_that_is_killed(tmp_path: Path) -> None:
    write(tmp_path, ENDLESS % "60")
    hub, there = running(tmp_path)
    hub.kill()
    hub.wait(10)
    until(lambda: gone(there), 2.0)


def test_a_module_that_appends_when_it_is_loaded_appends_once(tmp_path: Path) -> None:
    """Workers load the script too."""
    path = write(
        tmp_path,
        """
        @app.source(process=True)
        def there():
            return Seen(n=1, pid=os.getpid())

        app.log.append(Seen(n=0, pid=os.getpid()))
        app.run()
        """,
    )
    subprocess.run([sys.executable, str(path)], cwd=tmp_path, check=True, timeout=60)
    assert [e["n"] for e in outputs(tmp_path)] == [0, 1]
