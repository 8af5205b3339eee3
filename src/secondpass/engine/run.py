"""Running an app: from its definition to a loop, and to a summary."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from secondpass.app import LATE, PUSHED, App
from secondpass.connectors.memory import as_sink
from secondpass.engine.chain import Chain
from secondpass.engine.commands import Commands
from secondpass.engine.compare import Comparison, codecs_of, load_cells
from secondpass.engine.crew import Crew
from secondpass.engine.eventlog import tell_store
from secondpass.engine.executor import Executor
from secondpass.engine.hazard import CRASH, RUNNING, TRIED, Hazard
from secondpass.engine.intake import Intake
from secondpass.engine.listener import Listener
from secondpass.engine.live import Live
from secondpass.engine.lookups import FILE as LOOKUPS
from secondpass.engine.lookups import OWNER, Lookups
from secondpass.engine.loop import Hub
from secondpass.engine.outbox import Outbox
from secondpass.engine.placement import cores, needs_workers, never_inline
from secondpass.engine.pushed import Pushing, places_of, sources_of
from secondpass.engine.recipe import SCOUT, WITHOUT_WORKERS, NotPortable, recipe_for
from secondpass.engine.snapshots import DIRECTORY as SNAPSHOTS
from secondpass.engine.snapshots import Snapshots
from secondpass.engine.stage import Stage
from secondpass.engine.summary import Summary
from secondpass.errors import SecondpassError, SetupFailed
from secondpass.failpoints import failpoint
from secondpass.record import Verdict, error_text
from secondpass.store.database import Store
from secondpass.store.line import FILE as SOCKET
from secondpass.store.lock import StoreLock
from secondpass.store.reader import moved
from secondpass.task import Task

# What a store directory holds that `--fresh` throws away; everything else in it stays.
_STORE_FILES = (
    "store.db",
    "store.db-wal",
    "store.db-shm",
    "commands",
    SOCKET,
    LOOKUPS,
    RUNNING,
    CRASH,
    TRIED,
    SNAPSHOTS,
)


def run_app(
    app: App,
    *,
    store: Path | None,
    follow: bool = False,
    fresh: bool = False,
    limit: int | None = None,
    rename: dict[str, str] | None = None,
    drop: tuple[str, ...] = (),
    take_over: bool = False,
    accept_input: bool = False,
    accept_output: bool = False,
    workers: int | None = None,
    on_start: Callable[[Hub], None] | None = None,
    on_epoch: Callable[[Hub], None] | None = None,
) -> Summary:
    """Run an app until its input ends; `App.run` is the public way in."""
    asked_for, summary = app, Summary(app=app.name, store=None if store is None else str(store))
    began = time.perf_counter()
    if store is not None and fresh and store.is_dir():
        throw_away(app, store, take_over=take_over)
    opened = Store.in_memory() if store is None else Store.open(store, take_over=take_over)
    began_at = time.time()  # the store is ours: from here on, who asks to end a run means this one
    outbox = Outbox({stream: as_sink(sink) for stream, sink in app.sinks.items()})
    intake: Intake | None = None
    crew: Crew | None = None
    chain: Chain | None = None
    hazard: Hazard | None = None
    pushing: Pushing | None = None
    snapshots: Snapshots | None = None
    lookups: Lookups | None = None
    try:
        if opened.directory is not None:
            hazard = Hazard(opened.directory, opened.progress.position)
        live = Live(app, opened, drop, rename)
        app = live.app
        lookups = Lookups(app, app.tasks)
        lookups.begin(opened)
        app.tasks = lookups.attached(app.tasks)
        crashed = hazard is not None and hazard.found
        if hazard is not None and crashed:
            logging.getLogger("secondpass").warning("%s", hazard.told())
        crew = crew_for(app, opened, workers, lookups, isolated=crashed)
        chain = start_chain(app, opened, summary, rename or {}, drop, live, lookups, crew)
        outbox.recover(opened, accept=accept_output)
        pushing = Pushing(asked_for, opened.directory) if PUSHED in app.sources else None
        tell_store(asked_for.name, opened.directory if pushing is None else pushing.store)
        sources = sources_of(app, None if pushing is None else pushing.source)
        places = places_of(sources, opened.progress.sources)
        intake = Intake(sources, places, follow=follow, accept=accept_input, max_ahead_s=app.max_ahead_s)

        def make_crew(changed: App) -> Crew | None:
            return crew_for(changed, opened, workers, lookups, isolated=chain.placement.isolated)

        commands = Commands(opened, intake, chain, app, make_crew, began_at)
        hub = Hub(intake, chain, opened, outbox, summary, commands, lookups, app.timetables)
        hub.limit = limit
        hub.ticking = app.ticks
        if hazard is not None:
            hub.hazard = hazard
            chain.placement.isolated = hazard.found
            hazard.watch()
        _warn_of_options(app, crew)
        summary.position = opened.progress.position
        summary.outputs_total = dict(opened.progress.numbers)
        if on_epoch is not None:
            hub.on_epoch = on_epoch
        if opened.directory is not None and app.keep_snapshots is not None:
            snapshots = Snapshots(opened.directory, app.keep_snapshots, lambda: opened.progress, app.keep_log)
            hub.on_change = snapshots.pin
            if summary.changes and summary.position:
                snapshots.pin()
        if on_start is not None:
            on_start(hub)
        lookups.watch()
        with _stopping_on_signals(hub), at_hand(asked_for, hub):
            if pushing is not None:
                pushing.join(hub)  # once there is who takes commands: a source may give one at once
            hub.run()
        if hub.stopping:
            summary.ended = "stopped"
    finally:
        summary.seconds = time.perf_counter() - began
        if lookups is not None:
            lookups.close()
        if snapshots is not None:
            snapshots.close()
        if hazard is not None:
            hazard.close()
        if chain is not None and chain.crew is not None:
            crew = chain.crew
        if crew is not None:
            crew.close()
        if intake is not None:
            intake.close()
        if pushing is not None:
            pushing.close()
        tell_store(asked_for.name, None)
        outbox.close()
        opened.close()
    return summary


def crew_for(
    app: App, store: Store, workers: int | None, lookups: Lookups | None = None, *, isolated: bool = False
) -> Crew | None:
    """The workers that a run may use, none of them started yet; None where it has none.

    Asked for, they must be possible; by default an app that no other process can load runs in this one. `isolated`:
    there is one at least, to run what this process must not.
    """
    asked = workers if workers is not None else app.workers
    size = cores() if asked is None else asked
    if isolated:
        size, asked = max(1, size), asked or None
    elif size == 0:
        for task in app.tasks:
            if needs_workers(task) is not None:
                logging.getLogger("secondpass").warning(
                    "task %s: %s counts for nothing without workers", task.name, needs_workers(task)
                )
        return None
    elif asked is None and size == 1 and not any(map(needs_workers, app.tasks)):
        return None
    try:
        recipe = recipe_for(app)
    except NotPortable as error:
        if asked is not None:
            raise
        if isolated:
            logging.getLogger("secondpass").warning(
                "no worker can run them, so they run here again, and end this process again if they are to blame: %s",
                str(error).removesuffix(WITHOUT_WORKERS),
            )
        return None

    def record(verdict: Verdict) -> None:
        logging.getLogger("secondpass").warning(
            "task %s, position %d: the event %s; it is set aside",
            verdict.task,
            verdict.position,
            verdict.error,
        )
        store.commit(store.progress, {}, [], [], [("verdict", verdict._asdict())])

    def start() -> Executor:
        from secondpass.engine.workers import LocalProcesses  # only a run that sends something out needs it

        return LocalProcesses(recipe, size)

    def start_scout() -> Executor:
        from secondpass.engine.workers import LocalProcesses

        return LocalProcesses(msgspec.structs.replace(recipe, worker=SCOUT), 1)

    return Crew(size, start, record, lookups, start_scout)


def _warn_of_options(app: App, crew: Crew | None) -> None:
    """Say which options count for nothing, since a chain with timers runs in the hub."""
    if crew is None or not any(type(task)._shape.timers for task in app.tasks):
        return
    for task in app.tasks:
        if needs_workers(task) is not None:
            logging.getLogger("secondpass").warning(
                "task %s: %s counts for nothing: the chain has timers, so all its tasks run in the hub",
                task.name,
                needs_workers(task),
            )


def start_chain(
    app: App,
    store: Store,
    summary: Summary,
    rename: dict[str, str],
    drop: tuple[str, ...],
    live: Live,
    lookups: Lookups,
    crew: Crew | None = None,
) -> Chain:
    """Compare the chain with the stored one, load its state, and record the start."""
    comparison = Comparison(store, app.tasks, rename, drop)
    cells = load_cells(store, comparison, app.tasks)
    stages: list[Stage] = []
    for number, task in enumerate(app.tasks):
        shape = type(task)._shape
        values = {n: cells[task.name, n][None] for n in shape.values if cells[task.name, n]}
        elsewhere = crew is not None and never_inline(task)
        tables = {n: cells[task.name, n] for n in shape.tables}
        stopped = task.name in live.stopped
        stages.append(_stage(task, tables, values, elsewhere, number, stopped=stopped))
    comparison.changes += live.notes
    note: dict[str, Any] = {"at": time.time(), "pid": os.getpid(), "changes": comparison.changes}
    names = list(codecs_of(app.tasks))
    app_file = None if app.file is None else str(app.file)
    app_note = {"name": app.name, "file": app_file}
    described = [
        {**found, "stopped": True} if found["name"] in live.stopped else found for found in comparison.new
    ]
    if described != comparison.old:
        note["chain"] = described
    if comparison.moves:
        note["moves"] = [[list(old), new and list(new)] for old, new in comparison.moves.items()]
    # What a finite source holds later must not come before what was taken of the others by now.
    note["records"] = [place.get("records", 0) if place else 0 for place in store.progress.sources]
    if LATE in app.streams:
        note["ordered"] = True  # from here on the history tells when that lets go
    aside = comparison.aside(moved(store.tables(), comparison.moves))
    store.start(
        described,
        names,
        {**comparison.moves, **lookups.moves},
        note,
        app_note,
        live.file,
        aside,
        comparison.expired,
        {(OWNER, name): cells for name, cells in lookups.rests.items()},
        {(OWNER, name): found for name, found in lookups.loaded.items()},
        comparison.renamed,
    )
    summary.changes = comparison.changes
    _recall_verdicts(store, stages)
    return Chain(stages, crew, dict.fromkeys([*app.sinks, *app.streams], ()), lookups.contents)


def _recall_verdicts(store: Store, stages: list[Stage]) -> None:
    """What was decided about events that are still to come, or to come again."""
    by_name = {stage.name: stage for stage in stages}
    for _, kind, details in store.history():
        if (
            kind == "verdict"
            and details["position"] >= store.progress.position
            and details["task"] in by_name
        ):
            found: Any = {**details, "path": tuple(details["path"])}
            verdict = Verdict(**found)
            by_name[verdict.task].verdicts[verdict.position, verdict.path] = verdict


def _stage(
    task: Task[Any],
    tables: dict[str, dict[Any, Any]],
    values: dict[str, bytes],
    elsewhere: bool,
    number: int,
    *,
    stopped: bool,
) -> Stage:
    try:
        return Stage(task, tables, values, elsewhere=elsewhere or stopped, number=number, stopped=stopped)
    except SecondpassError:
        raise
    except Exception as error:
        raise SetupFailed(f"task {task.name}: setup() failed: {error_text(error)}", task=task.name) from error


def throw_away(app: App, store: Path, *, take_over: bool = False) -> None:
    """Delete a store's content and the output files that it wrote."""
    lock = StoreLock(store)
    lock.acquire(take_over=take_over)
    try:
        failpoint("fresh.before")
        # The outputs first: while the store says what they are, this can be done again after a crash.
        if (store / "store.db").is_file():
            for stream, sink in app.sinks.items():
                _throw_away_output(store, stream, sink)
        for name in _STORE_FILES:
            path = store / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            failpoint("fresh.file.after")
    finally:
        lock.release()


def _throw_away_output(store: Path, stream: str, sink: Any) -> None:
    discard = getattr(as_sink(sink), "discard", None)
    if discard is None:
        return
    with _reading(store) as old:
        state = None if old is None else _all_delivered(old, stream, sink)
    if state is not None:
        discard(state)
    failpoint("fresh.output.after")


def _all_delivered(old: Store, stream: str, sink: Any) -> Any:
    """A sink's state once it holds all that the store has for it.

    What was delivered just before a crash lies beyond the last state that was recorded, and is ours too.
    """
    outbox = Outbox({stream: as_sink(sink)})
    try:
        outbox.recover(old, accept=False)
        return outbox.sync()[stream]
    except SecondpassError:
        return old.progress.sinks.get(
            stream
        )  # somebody changed it, or it cannot be written: `discard` says so
    finally:
        outbox.close()


class _reading:  # noqa: N801  # reads as a phrase: `with _reading(store) as old:`
    """A store to read, or None where it is too damaged to be read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store: Store | None = None

    def __enter__(self) -> Store | None:
        try:
            self._store = Store.open_to_read(self._directory)
        except SecondpassError:
            self._store = None  # what cannot be read is thrown away all the same
        return self._store

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()


_AT_HAND: dict[int, Hub] = {}


def running_here(app: App) -> Hub | None:
    """The run of an app in this process, if there is one."""
    return _AT_HAND.get(id(app))


@contextlib.contextmanager
def at_hand(app: App, hub: Hub) -> Generator[None]:
    """While it runs, an app can be given commands, in this process and from others."""
    _AT_HAND[id(app)] = hub
    directory = hub.store.directory
    listener = None if directory is None else Listener(directory, hub.commands)
    try:
        yield
    finally:
        del _AT_HAND[id(app)]
        hub.commands.close()
        if listener is not None:
            listener.close()


class _stopping_on_signals:  # noqa: N801  # reads as a phrase
    """The first SIGINT or SIGTERM ends the run after the current epoch, the second at once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._hub.stopping = True
        self._hub.summary.signal = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
