"""The functions that are sources of a run: each in a thread, or in a process that a thread watches.

One with `process="auto"` begins in the thread, and moves once it is found to compute all the time.

One that raises, or whose process dies, is started again: after `BACKOFF_S` the first time, twice as long each time, at
most `BACKOFF_MAX_S`; after it has run that long, from the beginning. One that returns is done. What is known of them is
in the file `sources` of the log, for `secondpass status`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from secondpass.app import App
from secondpass.engine.channel import shared_file, write_whole
from secondpass.engine.eventlog import Log
from secondpass.engine.feeding import REPORT_AT, Report, live
from secondpass.engine.nursery import command
from secondpass.engine.recipe import recipe_of
from secondpass.engine.summary import SourceState
from secondpass.errors import SecondpassError, StoreError, StoreFull
from secondpass.feeder import Feeder
from secondpass.record import Told, error_text, trace_text
from secondpass.store.log import DIRECTORY

FILE = "sources"
BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0
STOP_S = 0.8
"""A source has so long to end when the run does; what it has not appended by then is not appended."""
_LOOK_S = 0.02
_WRITE_EVERY_S = 1.0
_BUSY_S, _BUSY_SHARE = 5.0, 0.5
"""One that needs, or would need, more than that of a core for so long takes it from the hub's thread."""


class Sources:
    """All functions that are sources of one run."""

    def __init__(self, app: App, store: Path, log: Log) -> None:
        self._app = app
        self._store = store
        self._log = log
        self._stopping = threading.Event()
        self._sources = [_Source(feeder) for feeder in app.feeders]
        self._threads = [
            threading.Thread(
                target=self._watch, args=(source,), name=f"source {source.state.name}", daemon=True
            )
            for source in self._sources
        ]
        self._written = b""
        self._write_at = 0.0
        self.failure: StoreError | None = None
        """The log can no longer be written by this process."""

    @property
    def states(self) -> list[SourceState]:
        """What is known of each."""
        return [source.state for source in self._sources]

    @property
    def ended(self) -> bool:
        """Whether all are done; no more of them comes then."""
        return all(source.state.state == "ended" for source in self._sources)

    def start(self) -> None:
        """Start all of them."""
        for feeder in self._app.feeders:
            if feeder.process:
                recipe_of(self._app, (feeder, str(self._store)))  # raises where no process can load it
        for thread in self._threads:
            thread.start()
        self.tell()

    def stop(self) -> None:
        """Let all of them end, and wait a moment for it."""
        self._stopping.set()
        for source in self._sources:
            source.leaving.set()
        until = time.monotonic() + STOP_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic() - STOP_S / 4))
        self._log.stop()  # who waits for room, or gives something later, is told so
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        for source in self._sources:
            if source.state.state != "ended":
                source.state.state = "stopped"
        self.tell()

    def tell(self) -> None:
        """Keep the file that tells of them up to date."""
        self._write_at = time.monotonic() + _WRITE_EVERY_S
        found = msgspec.json.encode(self.states)
        if not self._sources or found == self._written:
            return
        self._written = found
        path = self._store / DIRECTORY / FILE
        with contextlib.suppress(OSError):  # nothing depends on it
            partial = path.with_suffix(".new")
            partial.write_bytes(found)
            partial.rename(path)

    def look(self) -> None:
        """Now and then, in the hub: tell of them; raises when the log has failed."""
        if time.monotonic() > self._write_at:
            self.tell()
        if self.failure is not None:
            raise self.failure

    # ---- in the thread of a source

    def _watch(self, source: _Source) -> None:
        delay_s = BACKOFF_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                source.starts()
                left_s = (self._in_process if source.in_process else self._here)(source)
            except BaseException as error:  # noqa: BLE001 - users' functions raise what they like
                if self._stopping.is_set():
                    return
                if isinstance(error, StoreError) and not isinstance(error, StoreFull):
                    self.failure = error
                    return
                if time.monotonic() - began > BACKOFF_MAX_S:
                    delay_s = BACKOFF_S
                source.failed(error, delay_s)
                self._stopping.wait(delay_s)
                delay_s = min(2 * delay_s, BACKOFF_MAX_S)
            else:
                if left_s is not None and source.moves and not self._stopping.is_set():
                    source.moves, source.in_process, source.after_s = False, True, left_s
                    continue
                if not self._stopping.is_set():
                    source.state.state, source.state.pid = "ended", None
                return

    def _here(self, source: _Source) -> float | None:
        source.watch_cost()
        return live(source.feeder, self._log, self._stopping, source.gave, source.leaving)

    def _in_process(self, source: _Source) -> None:
        feeder = source.goes_on()
        # Started by this thread, which lives as long as it does: it is killed when the one that started it ends.
        recipe = msgspec.msgpack.encode(recipe_of(self._app, (feeder, str(self._store))))
        with contextlib.ExitStack() as undo:
            report_fd, recipe_fd = shared_file("secondpass-source"), shared_file("secondpass-recipe")
            undo.callback(os.close, report_fd)
            undo.callback(os.close, recipe_fd)
            write_whole(recipe_fd, recipe)
            ours, theirs = socket.socketpair()
            undo.enter_context(ours)
            with theirs:
                fds = (theirs.fileno(), recipe_fd, report_fd)
                call = f"main({', '.join(map(str, (*fds, os.getpid())))})"
                process = subprocess.Popen(
                    command(call, "secondpass.engine.feeding"), stdin=subprocess.DEVNULL, pass_fds=fds
                )
            undo.callback(_end, process)
            source.state.pid = process.pid
            before = source.state.events
            while process.poll() is None and not self._stopping.wait(_LOOK_S):
                source.state.events = before + _appended(report_fd)
            if self._stopping.is_set():
                return
            source.state.events = before + _appended(report_fd)
            if process.returncode:
                raise _told(process.returncode, report_fd)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _appended(report: int) -> int:
    return int.from_bytes(os.pread(report, 8, 0), "little")


def _told(code: int, report: int) -> Exception:
    """What ended the process of a source, as an error of this one."""
    written = os.pread(report, os.fstat(report).st_size, REPORT_AT)
    if written:
        found = msgspec.msgpack.decode(written, type=Report)
        return Told(found.error, found.trace)
    how = f"ended itself with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    return Told(f"its process {how}", "")


def _work_of_this_thread() -> Callable[[], float]:
    """How long this thread has computed or waited for a core to do so, in seconds; for any thread to ask."""
    found = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def work() -> float:
        computed_ns, waited_ns = found.read_text().split()[:2]
        return (int(computed_ns) + int(waited_ns)) / 1e9

    try:
        work()
    except (OSError, ValueError):  # a system that does not tell how long it waited
        if hasattr(time, "pthread_getcpuclockid"):
            return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))
        return time.thread_time
    return work


class _Source:
    """One function and what is known of it."""

    def __init__(self, feeder: Feeder) -> None:
        self.feeder = feeder
        self.state = SourceState(feeder.name)
        self.in_process = feeder.process is True
        self.leaving = threading.Event()
        """It is to end where it can go on later: it moves, or the run ends."""
        self.moves = False
        self.after_s = 0.0
        """In how many seconds it is called next, once it has moved."""
        self._since = self._cpu = 0.0
        self._spent: Callable[[], float] = time.thread_time
        self._hinted = False

    def starts(self) -> None:
        self.state.state, self.state.again_at, self.state.pid = "running", None, None

    def failed(self, error: BaseException, delay_s: float) -> None:
        state = self.state
        state.state, state.restarts, state.error = "waiting", state.restarts + 1, error_text(error)
        state.again_at, state.pid = time.time() + delay_s, None
        trace = "" if isinstance(error, SecondpassError) else trace_text(error)
        logging.getLogger("secondpass").warning(
            "the source %s: %s; it is started again in %g s%s",
            state.name,
            state.error,
            delay_s,
            f"\n{trace.rstrip()}" if trace else "",
        )

    def goes_on(self) -> Feeder:
        """The function as its next process calls it."""
        feeder, after_s, self.after_s = self.feeder, self.after_s, 0.0
        return (
            feeder if feeder.every is None else feeder._replace(every=feeder.every._replace(after_s=after_s))
        )

    def watch_cost(self) -> None:
        """Look at what this thread costs from now on; one that is called at times, from when it gives something first."""
        self._spent = _work_of_this_thread()
        self._since = 0.0 if self.feeder.every is not None else time.monotonic()
        self._cpu = self._spent()

    def gave(self, count: int) -> None:
        """It has appended so many events; look at what it costs the hub, whose thread waits meanwhile."""
        self.state.events += count
        now = time.monotonic()
        if not self._since:
            self._since, self._cpu = now, self._spent()
        if self._hinted or now - self._since < _BUSY_S:
            return
        spent = self._spent()
        if spent - self._cpu > _BUSY_SHARE * (now - self._since):
            self._hinted = True
            if self.feeder.process == "auto":
                logging.getLogger("secondpass").info(
                    "the source %s computes all the time: it goes on in a process of its own", self.state.name
                )
                self.moves = True
                self.leaving.set()
            else:
                logging.getLogger("secondpass").warning(
                    "the source %s computes all the time, in the process of the hub, which waits for it meanwhile; "
                    "@app.source(process=True) gives it a process of its own",
                    self.state.name,
                )
        self._since, self._cpu = now, spent
