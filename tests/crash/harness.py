"""What crash tests need: an input, an app in a directory, processes to kill, and the comparison with the plain loop.

    lines(rng, count)       a random input, malformed lines and poison events included
    Case                    a directory with app, input, outputs and store; `start` runs a command in it
    Case.check()            what the store and the output files hold, against `reference.run`, at any moment
    Server                  forks the processes; `RealCommand` starts the installed `secondpass` instead

`check` may be called after every kill: the store must stand at some position, with exactly the state,
dead letters and counts that the plain loop has there, and the output files must be a prefix of what it
put out until there, no shorter than what the store has recorded. At the end they must be whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import crash_app
import msgspec
import psutil

from secondpass import reference
from secondpass.engine.compare import codecs_of
from secondpass.engine.live import recorded_change
from secondpass.engine.outbox import decode_event_plain, type_name
from secondpass.record import INTAKE, Change, DeadLetter, Refused, Retry, Tick
from secondpass.reference import Tally
from secondpass.state import live_cells
from secondpass.store.database import Store
from secondpass.store.format import CellCodec, unpack_cells
from secondpass.store.spool import Command, Spool
from secondpass.task import Task

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "src" / "secondpass"
NAME = "crash_app.py"
ON_WORKERS, MIXED = f"{NAME}:on_workers()", f"{NAME}:mixed()"
TIMED, CLOCKED = f"{NAME}:timed()", f"{NAME}:clocked()"
"""The same app with all tasks on workers, and with some of them."""
STREAMS = {"main": "out.jsonl", "pages": "pages.jsonl"}
TASKS = crash_app.app.tasks
MALFORMED = "malformed"


# ---------------------------------------------------------------- inputs

_MALFORMED = (
    b"{",
    b"[]",
    b"null",
    b"garbage",
    b'{"n": 1}',
    b'{"n": "one", "cid": 1, "time": 1.0, "value": 1.0}',
    b'{"n": 1, "cid": 1, "time": 1.0, "value": 1.0} {}',
)


def lines(rng: random.Random, count: int, first: int = 0) -> list[bytes]:
    """The lines of an input, each with its newline: equal times, times running backwards, blank lines."""
    found: list[bytes] = []
    now = 1000.0 + first
    for n in range(first, first + count):
        kind = rng.random()
        if kind < 0.02:
            found.append(rng.choice(_MALFORMED) + b"\n")
        elif kind < 0.025:
            found.append(b"\n")
        step = rng.choice((0.0, 0.0, 0.5, 1.0, 3.0, -2.0))
        now = round(now + step, 3)
        value = round(rng.uniform(0, 100), 2)
        if rng.random() < 0.03:
            value = -value
        at = 1e12 if rng.random() < 0.003 and n else now
        event = {"n": n, "cid": rng.randrange(40), "time": at, "value": value}
        found.append(json.dumps(event).encode() + b"\n")
    return found


_decode = msgspec.json.Decoder(crash_app.Reading).decode


def records_of(data: bytes) -> tuple[list[Any], list[int]]:
    """The records of an input file, and where each ends; decoded here by hand, one by one."""
    records: list[Any] = []
    ends: list[int] = []
    start = 0
    for line in data.splitlines(keepends=True):
        text = line.rstrip(b"\r\n")
        if text.strip():
            try:
                records.append(_decode(text))
            except msgspec.MsgspecError as error:
                records.append(Refused(str(error), text, start, "in.jsonl"))
            ends.append(start + len(line))
        start += len(line)
    return records, ends


# ---------------------------------------------------------------- the named points


def points() -> list[str]:
    """Every name that the source gives to `failpoint`, found by reading it."""
    found: set[str] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "failpoints.py":
            continue
        text = path.read_text()
        names = re.findall(r"\bfailpoint\(\s*\"([^\"]+)\"\s*\)", text)
        calls = len(re.findall(r"(?<!def )(?<!import )\bfailpoint\(", text))
        assert calls == len(names), f"{path}: a failpoint without a literal name cannot be found by the tests"
        found.update(names)
    return sorted(found)


# ---------------------------------------------------------------- processes


class Process:
    """A process that was started by a server."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server = server
        self.pid = pid

    def wait(self, timeout_s: float = 120.0) -> int:
        """Its exit code; the negative number of the signal that ended it."""
        return self._server.wait(self.pid, timeout_s)

    def ended(self, timeout_s: float) -> bool:
        """Whether it ends within so many seconds."""
        try:
            self.wait(timeout_s)
        except TimeoutError:
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that has just ended does not mind."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            assert self.pid in self._server.codes or self.wait() is not None


class Server:
    """The fork server's client."""

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("SECONDPASS_", "PYTEST_"))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "runner.py"), "--serve", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        self._line = ours
        self._buffer = b""
        self.codes: dict[int, int] = {}
        assert self._message(60.0) == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._process.wait(10)

    def start(self, directory: Path, log: Path, arguments: list[str], env: dict[str, str]) -> Process:
        request = {"cwd": str(directory), "log": str(log), "arguments": arguments, "env": env}
        self._line.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._message(60.0)
            if "started" in message:
                self.codes.pop(message["started"], None)
                return Process(self, message["started"])
            self.codes[message["ended"]] = message["code"]

    def wait(self, pid: int, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while pid not in self.codes:
            message = self._message(max(0.0, deadline - time.monotonic()))
            self.codes[message["ended"]] = message["code"]
        return self.codes[pid]

    def _message(self, timeout_s: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._line.settimeout(max(timeout_s, 1e-4))
            part = self._line.recv(65536)
            assert part, "the fork server has died"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(text)


def nursery_of(hub: int) -> psutil.Process | None:
    """The process that starts the workers of a hub that a test has started; None where there is none."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(hub).children():
            if "secondpass.engine.nursery" in " ".join(child.cmdline()):
                return child
    return None


def workers_of(hub: int) -> list[psutil.Process]:
    """The workers of such a hub."""
    nursery = nursery_of(hub)
    with contextlib.suppress(psutil.Error):
        return [] if nursery is None else nursery.children()
    return []


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def all_gone(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Wait until none of them runs any more; raises `TimeoutError` with those that do."""
    left = list(processes)
    try:
        until(lambda: gone(left), timeout_s)
    except TimeoutError:
        told = [f"{p}: {told_of(p)}" for p in left if not gone([p])]
        raise TimeoutError(f"after {timeout_s:g} s there is still {told}") from None


def told_of(process: psutil.Process) -> dict[str, str]:
    """What the kernel says of a process: whether it is stopped, whose child it is, which signals it catches."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return {name: found[name] for name in ("State", "PPid", "SigCgt") if name in found}
    return {}


def kill_a_worker(hub: int, rng: random.Random) -> bool:
    """kill -9 one of a hub's workers; whether there was one."""
    found = workers_of(hub)
    with contextlib.suppress(psutil.Error):
        if found:
            rng.choice(found).kill()
    return bool(found)


@contextlib.contextmanager
def memory_group(size: int) -> Generator[Callable[[], None] | None]:
    """Gives what puts the process that calls it into a control group of so much memory; None where none can be made."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", root, f"secondpass-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(size))
        except OSError:
            _remove(group)
            continue
        try:
            yield enter
        finally:
            _remove(group)
        return
    yield None


def _remove(group: Path) -> None:
    with contextlib.suppress(OSError):  # it was never made, or whoever is still in it stays there
        group.rmdir()


def real_command(directory: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """The installed `secondpass`, as a user starts it."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("secondpass")), *arguments],
        cwd=directory,
        env={**os.environ, "SECONDPASS_EPOCH_RECORDS": "64", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# ---------------------------------------------------------------- cases


@dataclass
class Standing:
    """Where a store was found to stand."""

    position: int
    folded: int
    kept_from: int
    complete: bool


class Mismatch(AssertionError):
    """The store or the outputs are not what the plain loop says."""


class Case:
    """A directory with the app, its input, its outputs and its store."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory = directory
        self.server = server
        self.store = directory / ".secondpass" / crash_app.app.name
        self.wants: dict[str, Command] = {}
        """By spool name: the commands that were left for the app."""
        self.epoch_records = 50
        self.spec, self.options = NAME, tuple[str, ...]()
        self.tasks = TASKS
        self.speed = ""
        self.steady = False
        """Whether each command has the same place in every run."""
        """So many times as fast runs the clock that timetables see."""
        self.versions = 0
        """Of the file of weights."""
        self.log_file = directory / "log.txt"
        self._states: dict[Any, Any] = {}

    @classmethod
    def make(cls, directory: Path, server: Server, content: list[bytes]) -> Case:
        directory.mkdir(parents=True)
        shutil.copy(HERE / NAME, directory / NAME)
        (directory / "in.jsonl").write_bytes(b"".join(content))
        case = cls(directory, server)
        case.weigh()
        return case

    def weigh(self) -> None:
        """Put the next version of the weights into the place of the last one."""
        rows = [f"{w.cid},{w.factor}\n" for w in crash_app.weights(self.versions).values()]
        new = self.directory / "weights.new"
        new.write_text("".join(["cid,factor\n", *rows]))
        new.rename(self.directory / "weights.csv")
        self.versions += 1

    def copy(self, to: Path) -> Case:
        """The same case in another directory."""
        shutil.copytree(self.directory, to, ignore=shutil.ignore_patterns("control.sock"))
        twin = Case(to, self.server)
        twin.wants, twin.epoch_records, twin._states = dict(self.wants), self.epoch_records, self._states
        twin.spec, twin.options, twin.tasks = self.spec, self.options, self.tasks
        twin.versions, twin.speed, twin.steady = self.versions, self.speed, self.steady
        return twin

    def on_workers(self, spec: str = ON_WORKERS) -> Case:
        """Let the tasks run on two workers from now on."""
        self.spec, self.options = spec, ("--workers", "2")
        return self

    def timed(self) -> Case:
        """Let the chain have timers from the beginning."""
        self.spec, self.tasks = TIMED, crash_app.timed().tasks
        return self

    def clocked(self) -> Case:
        """Let the chain have timers, and timetables that switch tasks twenty times a second."""
        self.spec, self.tasks, self.speed = CLOCKED, crash_app.clocked().tasks, "1200"
        return self

    def remove(self) -> None:
        """All was well: nobody will look at this directory."""
        shutil.rmtree(self.directory)

    def append(self, content: list[bytes]) -> None:
        """Let the input grow."""
        with (self.directory / "in.jsonl").open("ab") as file:
            file.write(b"".join(content))

    def start(self, *options: str, command: str = "run", **env: str) -> Process:
        """Start a command; its output goes to `log_file`."""
        epochs = {
            "SECONDPASS_EPOCH_RECORDS": str(self.epoch_records),
            "SECONDPASS_TEST_CLOCK": self.speed,
            "SECONDPASS_TEST_STEADY": "1" * self.steady,
        }
        arguments = [command, self.spec, *self.options, *options]
        return self.server.start(self.directory, self.log_file, arguments, {**epochs, **env})

    def run(self, *options: str, expect: int | None = 0, **env: str) -> int:
        """Run to the end; the exit code must be the expected one."""
        code = self.start(*options, **env).wait()
        assert expect is None or code == expect, f"exit code {code}, expected {expect}:\n{self.log()}"
        return code

    def ask(self, command: Command) -> None:
        """Leave a command in the spool."""
        self.wants[Spool(self.store).put(command)] = command

    def letters(self) -> list[tuple[int, str]]:
        """The dead letters as (number, task); the task is `malformed` where there is no event."""
        store = Store.open_to_read(self.store)
        try:
            return [(n, letter.task if letter.event else MALFORMED) for n, _, letter in store.letters()]
        finally:
            store.close()

    def log(self) -> str:
        """What all processes of this case printed."""
        return self.log_file.read_text(errors="replace")[-4000:] if self.log_file.exists() else ""

    def count(self, **env: str) -> dict[str, int]:
        """Run to the end and count how often each point is passed."""
        path = self.directory / "counts.json"
        self.run(SECONDPASS_TEST_COUNT=str(path), **env)
        return json.loads(path.read_text())

    # ---- the comparison

    def check(self, *, complete: bool = True, state: bool = True) -> Standing:
        """Compare with the plain loop; raises `Mismatch` with all that differs.

        `complete`: everything must have been read, done and delivered.
        """
        store = Store.open_to_read(self.store)
        try:
            return _Check(self, store).run(complete=complete, state=state)
        finally:
            store.close()

    def check_after_kill(self, *, state: bool = True) -> Standing | None:
        """As `check`, wherever the run has got to; None when there is no store yet."""
        database = self.store / "store.db"
        if not database.exists() or not _has_schema(self.store):
            for name in STREAMS.values():
                path = self.directory / name
                if path.exists() and path.stat().st_size:
                    raise Mismatch(f"{name} holds outputs, and there is no store")
            return None
        return self.check(complete=False, state=state)


def _has_schema(directory: Path) -> bool:
    import apsw

    db = apsw.Connection(str(directory / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return bool(list(db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'progress'")))
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        return False  # killed while the file was made: nothing was ever committed
    finally:
        db.close()


TICK, RELOAD, SWITCH = "tick", "reload", "switch"


_TOLD = ("asked", "task", "time", "to")
"""Tells one command, tick or reload from another at the same place."""


class Asked(NamedTuple):
    """A command that was done at a place in the log, or a tick."""

    at: int
    name: str
    command: Command
    details: dict[str, Any]


class _Check:
    def __init__(self, case: Case, store: Store) -> None:
        self.case = case
        self.store = store
        self.wrong: list[str] = []
        self.first = 0
        """The version of the weights that was loaded before the first event."""

    def expect(self, what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: found {_difference(found, wanted)}")

    def run(self, *, complete: bool, state: bool) -> Standing:
        case, progress = self.case, self.store.progress
        data = (case.directory / "in.jsonl").read_bytes()
        records, ends = records_of(data)
        asked = sorted(
            [*self._asked(), *self._ticks(), *self._reloads(), *self._switches()], key=lambda found: found.at
        )
        log = self._log(records, asked, progress.position)
        wanted = self._meaning(log, asked)
        self.expect("records read", len(log), progress.position)
        taken = progress.position - len(asked)
        if complete:
            self.expect("records taken of the input", taken, len(records))
            self.expect("commands done", {d["command"] for _, d in self._commands()}, set(case.wants))
            self.expect("commands left in the spool", Spool(case.store).waiting(), [])
        if taken:
            place = progress.sources[0]
            self.expect("the source's place", (place["offset"]["bytes"], place["skip"]), (ends[taken - 1], 0))
        self._outputs(wanted, complete)
        self._letters(wanted)
        verdicts = [details for _, kind, details in self.store.history() if kind == "verdict"]
        self.expect("verdicts, where all kills came from outside", verdicts, [])
        self.expect("the stream's time", progress.now, wanted.now)
        tallies = {n: msgspec.convert(t, Tally) for n, t in progress.tallies.items()}
        if progress.position:
            self.expect(
                "tallies",
                {n: asdict(t) for n, t in tallies.items()},
                {n: asdict(t) for n, t in wanted.tallies.items()},
            )
        if state:
            self.expect("state", self._state(wanted.tasks, progress.now), wanted.state)
        if self.wrong:
            raise Mismatch(
                f"at position {progress.position} of {case.directory}:\n  "
                + "\n  ".join(self.wrong)
                + f"\n{case.log()}"
            )
        return Standing(progress.position, progress.generation, progress.kept_from.get("main", 0), complete)

    def _commands(self) -> list[tuple[str, dict[str, Any]]]:
        """What became of each command, by the store's history: (kind, details)."""
        return [
            (k, {**d, "position": p})
            for p, k, d in self.store.history()
            if k in ("retry", "drop", "command", "left out")
            and d.get("asked") != RELOAD
            and not d.get("by", "").startswith("timetable ")
        ]

    def _asked(self) -> list[Asked]:
        """The commands that have a place in the log."""
        done = self._commands()
        names = [details["command"] for _, details in done]
        self.expect("commands done once", sorted(names), sorted(set(names)))
        unknown = set(names) - set(self.case.wants)
        if unknown:
            raise Mismatch(f"the history has commands that nobody gave: {unknown}")
        return [
            Asked(d["position"], d["command"], self.case.wants[d["command"]], d)
            for k, d in done
            if k in ("retry", "command")
        ]

    def _ticks(self) -> list[Asked]:
        """The times that passed without an event."""
        ticks = [d for _, kind, d in self.store.history() if kind == "tick"]
        return [Asked(d["position"], TICK, Command("retry"), d) for d in ticks]

    def _switches(self) -> list[Asked]:
        """What timetables did: no switch twice, whatever became of it."""
        found = [
            (at, kind, details)
            for at, kind, details in self.store.history()
            if details.get("by", "").startswith("timetable ")
        ]
        due = [(d["by"], d["reason"].partition("due at ")[2].partition(";")[0]) for _, _, d in found]
        self.expect("switches done once", sorted(due), sorted(set(due)))
        return [Asked(at, SWITCH, Command(d["asked"]), d) for at, kind, d in found if kind == "command"]

    def _reloads(self) -> list[Asked]:
        """The weights that were loaded again, in the order of the file's versions."""
        spec = type(self.case.tasks[3])._shape.lookups["weights"]
        codec = CellCodec.of(spec.table)
        held, version, found = dict[int, Any](), -1, list[Asked]()
        for at, kind, details in self.store.history():
            if kind != "loaded" and details.get("asked") != RELOAD:
                continue
            body = unpack_cells(details["cells"])
            changed = dict(zip(codec.keys(body.keys), codec.entries(body.entries), strict=True))
            held = {k: w for k, w in held.items() if k not in codec.keys(body.gone)} | spec.wake(changed)
            version += 1
            while version < self.case.versions and held != crash_app.weights(version):
                version += 1
            if version >= self.case.versions:
                raise Mismatch(
                    f"what was loaded at position {at} is none of the versions that are left: {held}"
                )
            if kind == "loaded":
                self.first = version
            else:
                found.append(Asked(at, RELOAD, Command("retry"), {"to": held}))
        return found

    def _log(self, records: list[Any], asked: list[Asked], position: int) -> list[Any]:
        """The log up to a position: the input with the commands in the places where history has them."""
        log: list[Any] = []
        rest = iter(records)
        for found in asked:
            while len(log) < found.at:
                log.append(next(rest))
            if found.name == TICK:
                log.append(Tick(found.details["time"]))
                continue
            if found.name == RELOAD:
                log.append(Change("reload", "weights", found.details["to"]))
                continue
            if found.command.kind != "retry":
                log.append(recorded_change(found.details))
                continue
            before = [a for a in asked if a.at < found.at]
            letter = self._meaning(log, before).dead_letters[found.command.letter]
            log.append(_retry(found.command, letter))
        while len(log) < position:
            log.append(next(rest))
        return log

    def _meaning(self, log: list[Any], asked: list[Asked]) -> reference.Result:
        """What the plain loop makes of a log; kept, since an input only grows and many kills meet the same log."""
        what = [(f.at, f.name, {n: f.details.get(n) for n in _TOLD}) for f in asked if f.at < len(log)]
        key = (self.first, len(log), str(what))
        if key not in self.case._states:
            self.case._states[key] = reference.run(
                self.case.tasks, log, lookups={"weights": crash_app.weights(self.first)}
            )
        return self.case._states[key]

    def _outputs(self, wanted: reference.Result, complete: bool) -> None:
        for stream, name in STREAMS.items():
            path = self.case.directory / name
            found = path.read_bytes() if path.exists() else b""
            whole = b"".join(msgspec.json.encode(e) + b"\n" for e in wanted.streams[stream])
            number = len(wanted.streams[stream])
            self.expect(f"number of outputs of {stream}", self.store.progress.numbers.get(stream, 0), number)
            if complete:
                if found != whole:
                    self.wrong.append(f"{name}: {_bytes_difference(found, whole)}")
                continue
            if not whole.startswith(found):
                self.wrong.append(
                    f"{name} is no prefix of the committed outputs: {_bytes_difference(found, whole)}"
                )
            recorded = (self.store.progress.sinks.get(stream) or {}).get("size", 0)
            if len(found) < recorded:
                self.wrong.append(f"{name} has {len(found)} bytes, and the store vouches for {recorded}")
            kept = b"".join(row.body for row in self.store.outputs(stream))
            if not whole.endswith(kept) or len(whole) - len(kept) > recorded:
                self.wrong.append(f"{stream}: the store's outputs do not reach from the file's to the last")

    def _letters(self, wanted: reference.Result) -> None:
        found = [
            (
                letter.position,
                letter.task,
                letter.error,
                decode_event_plain(letter.event),
                letter.raw,
                letter.offset,
                letter.source,
            )
            for _, _, letter in self.store.letters()
        ]
        self.expect("dead letters", found, [_letter(letter) for letter in wanted.dead_letters])
        sent = {d["letter"] for kind, d in self._commands() if kind == "retry"}
        dropped = {d["letter"] for kind, d in self._commands() if kind == "drop"}
        for number, status, _ in self.store.letters():
            want = "sent" if number in sent else "dropped" if number in dropped else "open"
            self.expect(f"status of dead letter {number}", status, want)

    def _state(self, tasks: list[Task[Any]], now: float) -> dict[str, dict[str, Any]]:
        cells = self.store.load(codecs_of(tuple(tasks)))
        found: dict[str, dict[str, Any]] = {}
        for task in tasks:
            shape = type(task)._shape
            mine: dict[str, Any] = {
                n: live_cells(s, cells[task.name, n], s.ttl_of(task), now) for n, s in shape.tables.items()
            }
            for name, spec in shape.values.items():
                rest = cells[task.name, name]
                mine[name] = spec.codec.decode(rest[None] if rest else spec.initial)
            found[task.name] = mine
        return found


def _retry(command: Command, letter: DeadLetter) -> Retry:
    if command.event is None:
        return Retry(command.letter, letter.task, letter.event)
    if letter.event is None:
        return Retry(command.letter, INTAKE, msgspec.convert(command.event, crash_app.Reading))
    mended = {
        **msgspec.to_builtins(letter.event),
        **command.event,
    }  # fields that a type does not have mend nothing
    return Retry(command.letter, letter.task, msgspec.convert(mended, type(letter.event)))


def _letter(letter: DeadLetter) -> tuple[Any, ...]:
    event = None if letter.event is None else msgspec.to_builtins(letter.event)
    assert letter.event is None or type_name(type(letter.event))
    return (letter.position, letter.task, letter.error, event, letter.raw, letter.offset, letter.source)


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        return "; ".join(
            f"[{k!r}] {_difference(found[k], wanted[k])}" for k in found if found[k] != wanted[k]
        )
    if isinstance(found, list) and isinstance(wanted, list):
        at = next(
            (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
            min(len(found), len(wanted)),
        )
        return f"{len(found)} for {len(wanted)}, first at {at}: {found[at : at + 1]!r} for {wanted[at : at + 1]!r}"
    return f"{repr(found)[:600]}, expected {repr(wanted)[:600]}"


def _bytes_difference(found: bytes, wanted: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
        min(len(found), len(wanted)),
    )
    return f"{len(found)} bytes for {len(wanted)}, first difference at byte {at}: {found[at : at + 80]!r} for {wanted[at : at + 80]!r}"


def until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it has not happened")
        time.sleep(0.002)


def chain_commands() -> list[Command]:
    """Commands of every kind to the chain of the crash app, in an order in which most of them can be done."""
    return [
        Command("stop", task="Split"),
        Command("set", task="Suppress", settings={"window_s": 5.0}),
        Command("start", task="Split"),
        Command("add", task="Again", cls="crash_app:Suppress", settings={"window_s": 1.0}, before="Recent"),
        Command("replace", task="Recent", cls="crash_app:Recent", trial=0),
        Command("drop-state", task="Score", state="total"),
        Command("stop", task="Again"),
        Command("start", task="Again", fresh=True),
        Command("pause"),
        Command("resume"),
        Command("remove", task="Again"),
        Command("set", task="Suppress", settings={"window_s": 20.0}),
        Command("stop", task="Nobody"),
    ]
