"""Runs the real command line in a process that is made to be killed, or whose disk is made to fail.

    python runner.py run crash_app.py       one command
    python runner.py --serve FD             a fork server: imports everything once, then forks per command

What the environment asks for:

    SECONDPASS_KILL_AT      the named points of `failpoints`, and those of the system calls below
    SECONDPASS_TEST_FAIL    `point:pass:ERROR[+]`: the system call fails with that error (+: and all later)
    SECONDPASS_TEST_STOP    `point:pass`: the process is stopped there (SIGSTOP), as if it hung
    SECONDPASS_TEST_TRACE   a file for the writes to sinks, as lines of `name offset length`
    SECONDPASS_TEST_COUNT   a file for the number of passes through each point, written at the end
    SECONDPASS_TEST_MUTATE  a named mistake, to see that the tests would notice it
    SECONDPASS_TEST_LIMIT   RLIMIT_FSIZE in bytes
    SECONDPASS_TEST_CLOCK   so many times as fast timetables see the clock run
    SECONDPASS_TEST_LOG     the size of a segment of the log, which is looked at for what may leave after each epoch

System calls have the points `sys.WHERE.CALL.before`, `.torn` (half of a write is done) and `.after`:
WHERE is `db` or `wal` (SQLite's files, through a VFS), or `sink`, `lock`, `spool`; CALL is `write` or `sync`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import apsw

import secondpass.cli
from secondpass import failpoints
from secondpass.engine import changes, commands, loop, outbox, pacer, pushed, timetables
from secondpass.failpoints import failpoint
from secondpass.store import database, fold, log

FAIL, STOP, TRACE, COUNT, MUTATE, LIMIT, LOG, CLOCK, STEADY = (
    f"SECONDPASS_TEST_{name}"
    for name in ("FAIL", "STOP", "TRACE", "COUNT", "MUTATE", "LIMIT", "LOG", "CLOCK", "STEADY")
)


# ---------------------------------------------------------------- failing system calls


class Failures:
    """Which system call fails, when, and how."""

    def __init__(self, text: str) -> None:
        self._rules: dict[str, tuple[int, bool, int]] = {}
        self._passes: dict[str, int] = {}
        for part in filter(None, text.split(",")):
            point, number, error = part.split(":")
            self._rules[point] = (int(number), error.endswith("+"), getattr(errno, error.rstrip("+")))

    def check(self, point: str) -> None:
        """Raise an `OSError` where one is asked for."""
        if point not in self._rules:
            return
        self._passes[point] = seen = self._passes.get(point, 0) + 1
        number, forever, code = self._rules[point]
        if seen == number or (forever and seen > number):
            raise OSError(code, os.strerror(code))


_failures = Failures("")


class ShimFile(apsw.VFSFile):
    """A file of SQLite whose writes and syncs are named points."""

    def __init__(self, base: str, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._kind = "wal" if path.endswith("-wal") else "db"
        super().__init__(base, name, flags)

    def _call(self, point: str) -> None:
        failpoint(f"{point}.before")
        try:
            _failures.check(point)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise apsw.FullError(str(error)) from error
            failure = apsw.IOError(str(error))
            failure.extendedresult = apsw.SQLITE_IOERR_FSYNC if "sync" in point else apsw.SQLITE_IOERR_WRITE
            raise failure from error

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        point = f"sys.{self._kind}.write"
        self._call(point)
        half = len(data) // 2
        super().xWrite(data[:half], offset)
        failpoint(f"{point}.torn")
        super().xWrite(data[half:], offset + half)
        failpoint(f"{point}.after")

    def xSync(self, flags: int) -> None:  # noqa: N802
        point = f"sys.{self._kind}.sync"
        self._call(point)
        super().xSync(flags)
        failpoint(f"{point}.after")


class ShimVFS(apsw.VFS):
    """SQLite's own files, through `ShimFile`."""

    def __init__(self) -> None:
        self._base = apsw.vfs_names()[0]
        super().__init__("shim", self._base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> ShimFile:  # noqa: N802
        return ShimFile(self._base, name, flags)


def _kind_of(descriptor: int) -> str | None:
    """Which of our files this is; None for all others."""
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")  # noqa: PTH115 - no path of ours
    except OSError:
        return None
    folder, _, name = path.rpartition("/")
    if name == "hub.lock":
        return "lock"
    if folder.endswith("/commands"):
        return "spool"
    return "sink" if name.endswith((".jsonl", ".gz", ".csv")) else None


def _wrap_os() -> None:
    """Make the writes and syncs of Python code named points."""
    write, pwrite, sync = os.write, os.pwrite, os.fsync

    def in_halves(descriptor: int, data: Any, do: Any) -> int:
        kind = _kind_of(descriptor)
        if kind is None:
            return do(data, 0)
        point = f"sys.{kind}.write"
        failpoint(f"{point}.before")
        _failures.check(point)
        half = len(data) // 2
        done = do(data[:half], 0)
        failpoint(f"{point}.torn")
        done += do(data[half:], done)
        failpoint(f"{point}.after")
        return done

    def trace(descriptor: int, offset: int, data: Any) -> None:
        if os.environ.get(TRACE) and _kind_of(descriptor) == "sink":
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            with Path(os.environ[TRACE]).open("a") as file:
                file.write(f"{name} {offset} {len(data)}\n")

    def shim_write(descriptor: int, data: Any) -> int:
        trace(descriptor, os.fstat(descriptor).st_size, data)
        return in_halves(descriptor, data, lambda part, _: write(descriptor, part))

    def shim_pwrite(descriptor: int, data: Any, offset: int) -> int:
        trace(descriptor, offset, data)
        return in_halves(descriptor, data, lambda part, done: pwrite(descriptor, part, offset + done))

    def shim_sync(descriptor: int) -> None:
        kind = _kind_of(descriptor)
        if kind is None:
            return sync(descriptor)
        failpoint(f"sys.{kind}.sync.before")
        _failures.check(f"sys.{kind}.sync")
        sync(descriptor)
        return failpoint(f"sys.{kind}.sync.after")

    os.write, os.pwrite, os.fsync = shim_write, shim_pwrite, shim_sync


class Counts(dict[str, int]):
    """Stands in for the armed points: none is armed, each pass is counted."""

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        assert isinstance(name, str)
        self[name] = self.get(name, 0) + 1
        return False


class Stops(Counts):
    """The same, and one pass of a point stops the process."""

    def __init__(self, text: str) -> None:
        super().__init__()
        name, _, number = text.partition(":")
        self._name, self._number = name, int(number or 1)

    def __contains__(self, name: object) -> bool:
        super().__contains__(name)
        if name == self._name and self[self._name] == self._number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return False


# ---------------------------------------------------------------- mistakes


def _deliver_before_commit() -> None:
    from secondpass.engine.loop import Hub

    commit = Hub.commit

    def mistaken(self: Hub, epoch: Any, outcome: Any) -> list[Any]:
        self.outbox.deliver(self.outbox.rows(self.store, outcome.streams, epoch.first), outcome.streams)
        commit(self, epoch, outcome)
        return []

    Hub.commit = mistaken


def _no_transaction() -> None:
    database.Store._transaction = lambda self: contextlib.nullcontext()


def _forget_a_cell() -> None:
    whole = database.pack_cells

    def mistaken(keys: list[Any], entries: list[Any], gone: Any) -> bytes:
        return whole(keys[1:], entries[1:], gone)

    database.pack_cells = mistaken


def _sink_starts_over() -> None:
    from secondpass.connectors.filesink import FileSink

    FileSink._already_there = lambda self, body: 0


MISTAKES = {
    f.__name__.removeprefix("_"): f
    for f in (_deliver_before_commit, _no_transaction, _forget_a_cell, _sink_starts_over)
}


def _steadily() -> None:
    """Let each command have the same place in every run: one between two epochs, however long it takes to make it ready."""
    pacer.HEAVY_TARGET_S = loop.WARMING_S = 3600.0
    next_change, obey = commands.Commands.next_change, loop.Hub.obey

    def ready(self: commands.Commands, *, wait: bool = False) -> Any:
        found = next_change(self, wait=True)
        while isinstance(found, changes.Preparation) and not found.warm():
            time.sleep(0.001)
        return found

    def one(self: loop.Hub, *, wait: bool = False) -> bool:
        epochs = -1 if wait or self.store.progress.paused else self.summary.epochs
        if epochs == getattr(self, "obeyed_at", None):
            return False
        obeyed = obey(self, wait=wait)
        if obeyed:
            self.obeyed_at = epochs  # type: ignore[attr-defined]
        return obeyed

    commands.Commands.next_change, loop.Hub.obey = ready, one  # type: ignore[method-assign]


class Clock:
    """Stands in for the module `time`: the clock of the wall, running faster."""

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def time(self) -> float:
        return 1.79e9 + (time.time() - 1.79e9) * self._speed


# ---------------------------------------------------------------- one command


def run(arguments: list[str]) -> int:
    """Run one command line in this process, as its environment asks; gives the exit code."""
    global _failures
    failpoints._armed = failpoints._parse(os.environ.get(failpoints.VARIABLE, ""))
    _failures = Failures(os.environ.get(FAIL, ""))
    counts = os.environ.get(COUNT)
    if counts:
        failpoints._armed = Counts()
    elif os.environ.get(STOP):
        failpoints._armed = Stops(os.environ[STOP])
    # Everything that happens seldom happens often here.
    pacer.TARGET_S = 3600.0  # epochs are as long as the test says, on a slow machine too
    fold.BYTES_MIN, fold.DELTA_BYTES, fold.SLICE_BYTES = 4000, 100, 600
    database.KEEP_OUTPUT_BYTES = 8 * 1024
    outbox.SYNC_EVERY_S, outbox.SYNC_EVERY_BYTES = 3600.0, 20_000  # by bytes: the same in every run
    if os.environ.get(LOG):
        log.SEGMENT_BYTES, pushed.RETAIN_EVERY_S = int(os.environ[LOG]), 0.0
    if os.environ.get(STEADY):
        _steadily()
    if os.environ.get(CLOCK):
        timetables.time = Clock(float(os.environ[CLOCK]))  # type: ignore[assignment]
    if (
        counts
        or os.environ.get(TRACE)
        or any("sys." in os.environ.get(name, "") for name in (failpoints.VARIABLE, FAIL, STOP))
    ):
        vfs = ShimVFS()
        assert vfs is not None
        _wrap_os()
    if os.environ.get(FAIL):
        # SQLite gets the failures as codes; apsw would print a traceback of each one here as well.
        sys.excepthook = lambda *_: None
    if os.environ.get(MUTATE):
        MISTAKES[os.environ[MUTATE]]()
    if os.environ.get(LIMIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ[LIMIT]),) * 2)
    sys.argv = ["secondpass", *arguments]
    try:
        return secondpass.cli.main(arguments)
    finally:
        if counts:
            Path(counts).write_text(json.dumps(failpoints._armed))


# ---------------------------------------------------------------- the fork server


SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)


def _import_all() -> None:
    """Import what a command imports late, once for all children."""
    for name in ("psutil", "rich", "rich.console", "rich.progress", "rich.live"):
        importlib.import_module(name)
    for package in ("secondpass.cli", "secondpass.engine", "secondpass.connectors", "secondpass.store"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def _child(request: dict[str, Any]) -> int:
    os.setsid()
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return run(request["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a child must not come back as the server
        traceback.print_exc()
        return 70


def serve(descriptor: int) -> None:
    """Fork a child for every request line; report every start and end."""
    _import_all()
    line = socket.socket(fileno=descriptor)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    reader = line.makefile("rb")
    line.sendall(b'{"ready": true}\n')
    children = 0
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                children -= 1
                code = os.waitstatus_to_exitcode(status)
                line.sendall(json.dumps({"ended": pid, "code": code}).encode() + b"\n")
        if line in ready:
            # One request at a time: the client waits for its `started` before it sends another.
            text = reader.readline()
            if not text:
                return
            # A signal between the fork and the child's own handlers would be lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                line.detach()
                os.close(descriptor)
                code = _child(json.loads(text))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            children += 1
            line.sendall(json.dumps({"started": pid}).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(int(sys.argv[2]))
    else:
        sys.exit(run(sys.argv[1:]))
