"""The engine, run in a prescribed way over a prescribed log, and what it left behind.

A log is a list of records: events, `Refused`, and, between runs, `Retry`. It reaches the engine through
`Scripted` sources that cut it into batches as they like. A `Pace` cuts epochs and chooses between the
fast and the careful way. `Killed` ends a run at any failpoint as abruptly as one process can.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from secondpass import App, codec, reference
from secondpass.app import MAIN
from secondpass.change import plain_state
from secondpass.connectors.contract import Batch
from secondpass.engine import intake as intake_module
from secondpass.engine import stage as stage_module
from secondpass.engine.compare import codecs_of
from secondpass.engine.crew import Crew
from secondpass.engine.epoch import Epoch
from secondpass.engine.inprocess import InProcess
from secondpass.engine.outbox import decode_event, decode_events
from secondpass.engine.recipe import recipe_for
from secondpass.engine.snapshots import DIRECTORY
from secondpass.engine.stage import Stage
from secondpass.engine.workers import LocalProcesses
from secondpass.errors import TaskError, TaskFault
from secondpass.record import DeadLetter, Refused, Retry, Tick, Verdict
from secondpass.reference import Tally
from secondpass.store import fold as fold_module
from secondpass.store.copy import Moment
from secondpass.store.database import Store
from secondpass.task import Task

FROM_TIMER = -1
"""The mark of an output that comes of no event."""
INTAKE_TIME = 1000.0
"""What the clock says at every intake, so that the reference can be told."""


# ---------------------------------------------------------------- how a run goes


class Pace:
    """A pacer that follows a script: how many records each epoch takes, which epochs are careful, which are split."""

    def __init__(self, rng: random.Random, sizes: Sequence[int], careful: float, split: float = 0.0) -> None:
        self._rng, self._sizes, self._careful, self._split = rng, sizes, careful, split
        self.careful = False

    def part(self, count: int) -> int:
        """How many of an epoch's records run now."""
        return self._rng.randint(1, count) if self._split and self._rng.random() < self._split else count

    def limit(self) -> int:
        self.careful = self._rng.random() < self._careful
        return self._rng.choice(self._sizes)

    def ran(self, records: int, seconds: float, *, heavy: bool = False) -> None:
        pass


def steady(size: int, *, careful: bool = False) -> Pace:
    """Epochs of one size, all run in one way."""
    return Pace(random.Random(0), [size], 1.0 if careful else 0.0)


class Scripted:
    """A finite source of given records, in batches of any size, replayable by count."""

    type: Any = Any
    following = False

    def __init__(
        self, records: Sequence[Any], name: str = "scripted", batches: random.Random | None = None
    ) -> None:
        self.records, self.name, self.batches = records, name, batches

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Any:
        return _ScriptedReader(self, 0 if offset is None else offset["count"])


class _ScriptedReader:
    def __init__(self, source: Scripted, at: int) -> None:
        self._source, self._at = source, at

    def read(self, limit: int) -> Batch | None:
        records = self._source.records
        if self._at >= len(records):
            return None
        rng = self._source.batches
        taken = records[self._at : self._at + (limit if rng is None else rng.randint(0, limit))]
        self._at += len(taken)
        refused = {i: r for i, r in enumerate(taken) if isinstance(r, Refused)}
        origin = [i for i in range(len(taken)) if i not in refused]
        return Batch(
            [taken[i] for i in origin],
            {"count": self._at},
            count=len(taken),
            origin=origin if refused else None,
            refused=refused,
        )

    def verify(self) -> None:
        pass

    def progress(self) -> None:
        return None

    def close(self) -> None:
        pass


def without_ticks(log: Sequence[Any]) -> list[Any]:
    """What of a log comes from sources."""
    return [record for record in log if not isinstance(record, Tick)]


def with_ticks(hub: Any, log: Sequence[Any]) -> None:
    """Let a hub's clock make the ticks that a log has, each in its place."""
    hub.sleep = lambda _seconds: None  # whatever is to come is there already
    ticks = {i: record.time for i, record in enumerate(log) if isinstance(record, Tick)}
    if not ticks:
        return
    take, limit, left = hub.take, hub.pacer.limit, hub.pacer

    def taking() -> Any:
        progress = hub.store.progress
        if progress.position in ticks:
            left.careful = not left.careful
            time = ticks[progress.position]
            return Epoch.of_tick(hub.store.epoch + 1, progress.position, time, progress.now, progress.sources)
        return take()

    def upto_next() -> int:
        position = hub.store.progress.position
        return min(limit(), *(at - position for at in ticks if at > position), 1_000_000)

    hub.take, hub.pacer.limit = taking, upto_next


def without_verdicts(log: Sequence[Any]) -> list[Any]:
    """The records of a log that have positions."""
    return [record for record in log if not isinstance(record, Verdict)]


def with_verdicts(hub: Any, log: Sequence[Any]) -> None:
    """Let a hub know the verdicts that a log has, as if its workers had just died."""
    verdicts = [v for v in log if isinstance(v, Verdict) and v.position >= hub.store.progress.position]
    known = [v for stage in hub.chain.stages for v in stage.verdicts.values()]
    for verdict in verdicts:
        if verdict not in known:
            hub.store.commit(hub.store.progress, {}, [], [], [("verdict", verdict._asdict())])
    for stage in hub.chain.stages:
        stage.verdicts = {(v.position, v.path): v for v in verdicts if v.task == stage.name}


def with_splits(hub: Any) -> None:
    """Let a hub run parts of epochs, as where another process has tried no more of them."""

    def safe_part(epoch: Epoch) -> Epoch:
        part = epoch.count if epoch.retry is not None else hub.pacer.part(epoch.count)
        if part == epoch.count:
            return epoch
        hub._rest = epoch.rest(part)
        return epoch.cut(part, hub.intake.places_at(epoch.behind + part))

    hub.safe_part = safe_part


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a thousand stores are made, and other tests show that they last."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="secondpass-test-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        yield Path(folder)


class Killed(BaseException):
    """Ends a run as abruptly as one process can: nothing but the store's file is left of it."""


@contextlib.contextmanager
def killing_at(passes: int | None) -> Iterator[None]:
    """End the run inside when it passes a failpoint for the `passes`-th time; None never does."""
    left = -1 if passes is None else passes

    def failpoint(name: str) -> None:
        nonlocal left
        if name.startswith(("lock.", "close.")):
            return  # the kernel frees a dead process's lock, and this process lives on
        left -= 1
        if left == 0:
            raise Killed

    modules = [
        m for name, m in sys.modules.items() if name.startswith("secondpass.") and hasattr(m, "failpoint")
    ]
    before = [m.failpoint for m in modules]
    for module in modules:
        module.failpoint = failpoint
    try:
        yield
    finally:
        for module, found in zip(modules, before, strict=True):
            module.failpoint = found


@contextlib.contextmanager
def fixed_clock() -> Iterator[None]:
    """Let every intake read the same time."""
    before = intake_module.time
    intake_module.time = SimpleNamespace(time=lambda: INTAKE_TIME)
    try:
        yield
    finally:
        intake_module.time = before


@contextlib.contextmanager
def pressed(rng: random.Random) -> Iterator[None]:
    """Let what an engine does only to large states happen to small ones, at random."""
    mirrors, swept, before = (
        stage_module.mirrors,
        Stage.changes,
        (fold_module.BYTES_MIN, fold_module.SLICE_BYTES),
    )

    def some_mirror(spec: Any, base: Any, ttl_s: float | None, events: int) -> bool:
        return mirrors(spec, {}, ttl_s, events) and rng.random() < 0.5

    def sweeping(stage: Any, now: float) -> Any:
        if rng.random() < 0.5:
            stage._swept = dict.fromkeys(stage._swept, -1)
        return swept(stage, now)

    stage_module.mirrors, Stage.changes = some_mirror, sweeping
    fold_module.BYTES_MIN, fold_module.SLICE_BYTES = rng.choice([1, 500, 5000]), rng.choice([1, 50, 4096])
    try:
        yield
    finally:
        stage_module.mirrors, Stage.changes = mirrors, swept
        fold_module.BYTES_MIN, fold_module.SLICE_BYTES = before


@contextlib.contextmanager
def snapshots_now_and_then(rng: random.Random) -> Iterator[None]:
    """Take a snapshot after some of the commits, and at some of the starts."""
    commit, start = Store.commit, Store.start

    def then(do: Any) -> Any:
        def done(store: Store, *given: Any, **more: Any) -> None:
            do(store, *given, **more)
            if store.directory is not None and rng.random() < 0.3:
                moment = Moment(store.directory, store.directory / DIRECTORY)
                moment.copy()
                moment.close()

        return done

    Store.commit, Store.start = then(commit), then(start)
    try:
        yield
    finally:
        Store.commit, Store.start = commit, start


# ---------------------------------------------------------------- what a run leaves


@dataclass
class Left:
    """All that an app puts out or keeps; `positions` by stream where they are known."""

    streams: dict[str, list[Any]]
    letters: list[DeadLetter]
    state: dict[str, dict[str, Any]]
    tallies: dict[str, Tally]
    now: float
    stopped: str | None = None
    positions: dict[str, list[int]] = field(default_factory=dict)
    position: int = -1


def meant(tasks: Sequence[Task[Any]], log: Sequence[Any]) -> Left:
    """What the reference says."""
    found = reference.run(tasks, log, intake_time=INTAKE_TIME)
    stopped = None if found.stopped is None else f"{type(found.stopped).__name__}: {found.stopped}"
    return Left(found.streams, found.dead_letters, found.state, found.tallies, found.now, stopped)


class Workers:
    """How a case is run on workers: drawn from a generator, with the verdicts that came of it."""

    def __init__(
        self, rng: random.Random, fatal: Callable[[Any], bool] | None = None, *, processes: bool = False
    ) -> None:
        self.rng = rng
        self.fatal = fatal
        self.processes = processes
        self.verdicts: list[Any] = []

    def executor(self, tasks: tuple[Any, ...], size: int) -> Any:
        """Real processes, or workers that take turns in this one, some of them lost."""
        if self.processes:
            return LocalProcesses(recipe_for(App("case", source=[], tasks=tasks)), size)
        lose = self.rng.choice([0.0, 0.0, 0.1])
        return InProcess(tasks, size, self.rng.randrange(2**32), lose=lose, fatal=self.fatal)


def with_crew(hub: Any, workers: Workers) -> None:
    """Give a hub workers, and tasks that move at every epoch."""
    rng = workers.rng
    stages, size = hub.chain.stages, rng.randint(1, 2 if workers.processes else 4)
    tasks = tuple(s.given for s in stages)
    hub.chain.crew = Crew(size, lambda: workers.executor(tasks, size), workers.verdicts.append)
    share = rng.choice([0.5, 1.0])
    hub.chain.placement.choose = lambda _: [rng.random() < share for _ in stages]


def in_memory(
    tasks: Sequence[Any],
    log: Sequence[Any],
    pace: Any,
    sources: Sequence[Any] | None = None,
    crew: Workers | None = None,
) -> Left:
    """What the engine makes of a log without a store; with `crew`, on workers too."""
    hubs: list[Any] = []
    outcomes: list[tuple[int, Any]] = []

    def watch(hub: Any) -> None:
        hubs.append(hub)
        hub.pacer = copy.copy(pace)
        with_splits(hub)
        with_verdicts(hub, log)
        with_ticks(hub, without_verdicts(log))
        if crew is not None:
            with_crew(hub, crew)
        commit = hub.commit

        def committing(epoch: Any, outcome: Any) -> Any:
            rows = commit(epoch, outcome)
            outcomes.append((epoch.first, outcome))
            return rows

        hub.commit = committing

    app = App("case", sources=sources or [Scripted(without_ticks(without_verdicts(log)))], tasks=tasks)
    stopped = None
    with fixed_clock():
        try:
            app.run(store=None, on_start=watch, workers=0)
        except TaskError as error:
            stopped = f"{type(error).__name__}: {error}"
    (hub,) = hubs
    if hub.chain.crew is not None:
        hub.chain.crew.close()
    streams: dict[str, list[Any]] = {name: [] for name in app.streams}
    positions: dict[str, list[int]] = {name: [] for name in app.streams}
    for first, outcome in outcomes:
        for name, (events, where) in outcome.streams.items():
            streams[name] += events
            positions[name] += [first + i for i in where]
    letters = [letter for _, outcome in outcomes for letter in outcome.letters]
    progress = hub.store.progress
    stages = [(s.given, s.tables, s.values) for s in hub.chain.stages]
    tallies = {t.name: hub._tallies.get(t.name, Tally()) for t in app.tasks}
    return Left(
        streams,
        letters,
        _final_state(stages, progress.now),
        tallies,
        progress.now,
        stopped,
        positions,
        progress.position,
    )


def in_store(
    tasks: Sequence[Any],
    log: Sequence[Any],
    directory: Path,
    pace: Any,
    *,
    sources: Sequence[Any] | None = None,
    limit: int | None = None,
    kill_at: int | None = None,
    rename: dict[str, str] | None = None,
    drop: Sequence[str] = (),
    app: App | None = None,
) -> str:
    """Run the engine over a log with a store, going on where it stood; how the run ended."""
    app = app or App("case", sources=sources or [Scripted(without_ticks(without_verdicts(log)))], tasks=tasks)

    def watch(hub: Any) -> None:
        hub.pacer = copy.copy(pace)
        with_splits(hub)
        with_verdicts(hub, log)
        with_ticks(hub, without_verdicts(log))

    with fixed_clock(), killing_at(kill_at):
        try:
            return app.run(
                store=directory, limit=limit, on_start=watch, rename=rename, drop=drop, workers=0
            ).ended
        except TaskError as error:
            return f"{type(error).__name__}: {error}"
        except Killed:
            return "killed"


def stored(tasks: Sequence[Any], directory: Path) -> Left:
    """What a store holds, read anew."""
    app = App("case", source=[], tasks=tasks)
    store = Store.open_to_read(directory)
    try:
        streams: dict[str, list[Any]] = {name: [] for name in app.streams}
        positions: dict[str, list[int]] = {name: [] for name in app.streams}
        for name in streams:
            for row in store.outputs(name):
                streams[name] += decode_events(row.body)
                positions[name] += row.positions
        letters = [
            DeadLetter(
                s.position, s.task, s.error, s.traceback, decode_event(s.event), s.raw, s.offset, s.source
            )
            for _, _, s in store.letters()
        ]
        loaded = store.load(codecs_of(app.tasks))
        stages: list[Any] = []
        for task in app.tasks:
            shape = type(task)._shape
            values = {n: loaded[task.name, n][None] for n in shape.values if loaded[task.name, n]}
            stages.append((task, {n: loaded[task.name, n] for n in shape.tables}, values))
        progress = store.progress
        tallies = {
            t.name: msgspec.convert(progress.tallies.get(t.name, asdict(Tally())), Tally) for t in app.tasks
        }
        state = _final_state(stages, progress.now)
        return Left(streams, letters, state, tallies, progress.now, None, positions, progress.position)
    finally:
        store.close()


def _final_state(stages: list[Any], now: float) -> dict[str, Any]:
    try:
        return {task.name: plain_state(task, cells, values, now) for task, cells, values in stages}
    except TaskFault as fault:
        raise AssertionError(f"the engine kept a cell that is not of its type: {fault}") from fault


# ---------------------------------------------------------------- comparing


def difference(want: Left, got: Left, *, stops: bool = True) -> str | None:
    """The first thing in which a run differs from what is meant, in words; None when nothing does."""
    if stops and want.stopped != got.stopped:
        return f"stopped: meant {want.stopped!r}, got {got.stopped!r}"
    for name in sorted({*want.streams, *got.streams}):
        found = _lists(f"stream {name}", want.streams.get(name, []), got.streams.get(name, []))
        if found is not None:
            return found
    found = _lists("dead letters", want.letters, got.letters)
    if found is not None:
        return found
    for task in sorted({*want.state, *got.state}):
        mine, theirs = want.state.get(task, {}), got.state.get(task, {})
        for name in sorted({*mine, *theirs}):
            if not exactly(mine.get(name), theirs.get(name)):
                return f"state {task}.{name}:\n  meant {mine.get(name)!r}\n  got   {theirs.get(name)!r}"
    for task in sorted({*want.tallies, *got.tallies}):
        if want.tallies.get(task) != got.tallies.get(task):
            return f"tally of {task}:\n  meant {want.tallies.get(task)}\n  got   {got.tallies.get(task)}"
    if want.now != got.now:
        return f"now: meant {want.now!r}, got {got.now!r}"
    return None


def exactly(a: Any, b: Any) -> bool:
    """Equal in value and type; `same` takes 0.0 and -0.0 for one, so the signs of zeros are compared too."""
    return codec.same(a, b) and list(_zeros(a)) == list(_zeros(b))


def _zeros(value: Any) -> Iterator[str]:
    """All zeros in a value, with their signs, in order; sets have none, their order is no part of a value."""
    if type(value) is float:
        if value == 0:
            yield str(value)
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from _zeros(k)
            yield from _zeros(v)
    elif isinstance(value, (tuple, list, collections.deque)):
        for part in value:
            yield from _zeros(part)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _zeros(getattr(value, name))
    elif dataclasses.is_dataclass(value):
        yield from _zeros(vars(value))


def _lists(what: str, want: list[Any], got: list[Any]) -> str | None:
    for i, (a, b) in enumerate(zip(want, got, strict=False)):
        if not exactly(a, b):
            return f"{what}[{i}]:\n  meant {a!r}\n  got   {b!r}"
    if len(want) != len(got):
        longer, name = (want, "meant") if len(want) > len(got) else (got, "got")
        at = min(len(want), len(got))
        return f"{what}: {len(want)} meant, {len(got)} got; {name} also {longer[at]!r}"
    return None


def misplaced(log: Sequence[Any], got: Left, mark: Callable[[Any], Any]) -> str | None:
    """Whether an output carries another position than that of the record it came from."""
    for name, events in got.streams.items():
        where = got.positions[name]
        if len(where) != len(events):
            return f"stream {name}: {len(events)} outputs with {len(where)} positions"
        for event, position in zip(events, where, strict=True):
            record = log[position]
            if mark(event) == FROM_TIMER:
                continue
            source = record.event if isinstance(record, Retry) else record
            if mark(source) != mark(event):
                return f"stream {name}: {event!r} is recorded at position {position}, which is {source!r}"
    return None


__all__ = [
    "MAIN",
    "Left",
    "Pace",
    "Scripted",
    "difference",
    "in_memory",
    "in_store",
    "meant",
    "steady",
    "stored",
]


# ---------------------------------------------------------------- all ways at once


def agree(
    tasks: Sequence[Any],
    log: Sequence[Any],
    directory: Path,
    sources: Callable[[], Sequence[Any]] | None = None,
) -> Left:
    """Run the engine in every way and compare; gives what is meant, for a test to look at.

    In memory and in a store, fast and carefully, with epochs of one record, a few and all, without a
    break and with a restart after every third record.
    """
    given = list(App("case", source=[], tasks=tasks).tasks)
    want = meant(given, log)
    for size in (1, 2, 3, 1000):
        for careful in (False, True):
            got = in_memory(given, log, steady(size, careful=careful), sources() if sources else None)
            found = difference(want, got)
            assert found is None, f"in memory, epochs of {size}, {'careful' if careful else 'fast'}: {found}"
    for n, (size, limit) in enumerate([(1000, None), (2, None), (2, 3), (1000, 3)]):
        store = directory / f"agree-{n}-{random.random()}"
        for _ in range(len(log) + 2):
            ended = in_store(
                given, log, store, steady(size), limit=limit, sources=sources() if sources else None
            )
            if ended != "limit":
                break
        got = stored(given, store)
        got.stopped = None if ended == "end of input" else ended
        found = difference(want, got)
        assert found is None, f"in a store, epochs of {size}, restarted every {limit}: {found}"
    return want
