"""An app: a name, sources, a chain of tasks, and where outputs go."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from secondpass.amounts import Keep
from secondpass.definition import refuse_what_cannot_handle
from secondpass.errors import DefinitionError, SettingsError
from secondpass.feeder import Feeder
from secondpass.lookups import Loaded, specs_of
from secondpass.task import Task, accepts, from_function, is_task_class

if TYPE_CHECKING:
    from pathlib import Path

    from secondpass.control import Control
    from secondpass.engine.eventlog import Log
    from secondpass.engine.explain import Explanation
    from secondpass.engine.summary import Summary
    from secondpass.timetable import Timetable

F = TypeVar("F", bound=Callable[..., Any])

WORKERS_MAX = 1024
MAIN = "main"
"""The name of the stream of what the chain passes."""
LATE = "late"
"""The name of the stream of events that came too late for a source that is put in order."""

Streams = dict[str, tuple[str, ...]]
"""The output streams of a chain, and who writes to each."""


class _Pushed:
    """What stands for an app's log among its sources."""

    def __repr__(self) -> str:
        return "the log"


PUSHED = _Pushed()

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class App:
    """What is run: sources, a chain of tasks, and sinks.

    >>> from secondpass import App
    >>> def keep_odd(event):
    ...     return event if event["n"] % 2 else None
    >>> passed = []
    >>> app = App("odd", source=[{"n": n} for n in range(5)], tasks=[keep_odd], sink=passed.append)
    >>> summary = app.run(store=None)
    >>> [event["n"] for event in passed], summary.events_in
    ([1, 3], 5)

    `source` (or several `sources`) is a connector or any iterable; `sink` a connector or any callable, for
    what the chain passes; `sinks` names those of the tasks' named outputs. Without a source the app takes what is
    appended to its log, `app.log`, of which `keep_log` ("7d", "10GB", or both) bounds what stays. `workers` is the number of processes
    that may run tasks beside this one (default: the cores that this process may use; 0: none). `timetables` start and
    stop tasks by the clock. `lookups` says what the tasks' lookups hold: a mapping, a connector with a `key`, or a
    function. `keep_snapshots` bounds the snapshots of its state from which decisions are explained and
    rehearsed (None: none are taken). `ticks=False` lets time stand while a followed stream is idle, so that timers wait
    for the next event. Events that are more than `max_ahead_s` ahead of the clock when they come are set aside. Raises
    `DefinitionError` for what cannot work, before anything runs.
    """

    def __init__(
        self,
        name: str,
        *,
        source: Any = None,
        sources: Sequence[Any] = (),
        tasks: Sequence[Task[Any] | Callable[[Any], Any]] = (),
        sink: Any = None,
        sinks: Mapping[str, Any] | None = None,
        workers: int | None = None,
        timetables: Sequence[Timetable] = (),
        lookups: Mapping[str, Any] | None = None,
        keep_log: str | Sequence[str] | None = None,
        keep_snapshots: str | Sequence[str] | None = ("30d", "1GB"),
        ticks: bool = True,
        max_ahead_s: float | None = None,
    ) -> None:
        if not name or name[0] in "_.-" or not _NAME_LETTERS.issuperset(name):
            raise DefinitionError(
                f"App({name!r}): a name is letters, digits, '.', '_' and '-', since it names the store's directory"
            )
        self.name = name
        self._defined_in = _script_of(sys._getframe(1).f_globals)
        given = [*([source] if source is not None else []), *sources]
        self.sources: tuple[Any, ...] = tuple(given) or (PUSHED,)
        if isinstance(tasks, Task) or callable(tasks):
            shown = getattr(tasks, "__name__", None) or repr(tasks)
            raise DefinitionError(f"tasks: give a list, [{shown}{'()' * is_task_class(tasks)}]")
        self.tasks: tuple[Task[Any], ...] = tuple(as_task(t) for t in tasks)
        _refuse_twins(self.tasks)
        for task in self.tasks:
            accepts(task)
        self.sinks: dict[str, Any] = {} if sink is None else {MAIN: sink}
        self.sinks.update(sinks or {})
        self._check_sinks()
        self._check_files()
        self.workers = checked_workers(workers)
        self.timetables = tuple(timetables)
        self.ticks = ticks
        if max_ahead_s is not None and (type(max_ahead_s) not in (int, float) or not 0 <= max_ahead_s < 1e11):
            raise DefinitionError(f"App({name!r}, max_ahead_s={max_ahead_s!r}): write a number of seconds")
        self.max_ahead_s = max_ahead_s
        self._check_timetables()
        self.lookups = as_lookups(self.tasks, lookups or {})
        self.keep_log = None if keep_log is None else Keep.of(keep_log)
        self.feeders: tuple[Feeder, ...] = ()
        """The functions that are sources: see `source`."""
        self.keep_snapshots = None if keep_snapshots is None else Keep.of(keep_snapshots, "keep_snapshots")
        self.running_store: Path | None = None
        """The store of a run that is going on in this process."""
        self._log: Log | None = None
        self.spec: str | None = None
        """What `load` was asked for."""
        self.file: Path | None = None
        """The file that `load` found the app in."""

    @property
    def streams(self) -> Streams:
        """Every output stream with the tasks that write to it, `main` first."""
        return {**streams_of(self.tasks), **({LATE: ()} if self._has_late else {})}

    @property
    def _has_late(self) -> bool:
        """Whether a source is put in order, so that events may come too late."""
        return any(LATE in getattr(source, "outputs", ()) for source in self.sources)

    @overload
    def source(self, function: F, /) -> F: ...
    @overload
    def source(
        self,
        /,
        *,
        name: str | None = None,
        every: str | None = None,
        tz: str | None = None,
        process: bool | Literal["auto"] = False,
        batch: int = 1,
    ) -> Callable[[F], F]: ...
    def source(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        every: str | None = None,
        tz: str | None = None,
        process: bool | Literal["auto"] = False,
        batch: int = 1,
    ) -> Any:
        """Make a function a source: what it returns or yields is appended to the app's log while the app runs.

        >>> from secondpass import App
        >>> passed = []
        >>> app = App("meter", sink=passed.append)
        >>> @app.source
        ... def readings(last):
        ...     for n in range(3 if last is None else 0):
        ...         yield {"n": n}
        >>> summary = app.run(store=None)
        >>> [event["n"] for event in passed]
        [0, 1, 2]

        It runs in a thread of its own, with `process` in a process; with `process="auto"` it moves there once it is
        found to compute all the time, between two calls or after an event from which it goes on by `last`. A generator
        goes on after a `yield` when what it yielded (an event, or a list of them) is durable; `batch` lets it run ahead
        by so many events. `every` ("10s", or a cron line, in UTC or `tz`) calls it at those times. One that asks for
        `last` is given the last event that it has appended, or None. One that raises is started again, after 1 s at
        first and 60 s at most.
        """

        def noted(function: F) -> F:
            feeder = Feeder.of(function, name=name, every=every, tz=tz, process=process, batch=batch)
            if any(other.name == feeder.name for other in self.feeders):
                raise DefinitionError(
                    f"two sources are called {feeder.name!r}; name one of them: @app.source(name='...')"
                )
            self.feeders = (*self.feeders, feeder)
            if PUSHED not in self.sources:
                self.sources = (*self.sources, PUSHED)
            return function

        return noted if function is None else noted(function)

    @property
    def log(self) -> Log:
        """The app's log: `app.log.append(events)`, from any thread or process.

        It is that of the run in this process, or of the run that has started this process, or of the app's own store.
        """
        from secondpass.engine.eventlog import Log, told_store

        store = self.running_store or told_store(self.name) or self.default_store()
        if self._log is None or self._log.directory != store:
            self._log = Log(store)
        return self._log

    def run(
        self,
        *,
        store: str | Path | EllipsisType | None = ...,
        follow: bool = False,
        fresh: bool = False,
        limit: int | None = None,
        rename: Mapping[str, str] | None = None,
        drop: Sequence[str] = (),
        take_over: bool = False,
        workers: int | None = None,
        **more: Any,
    ) -> Summary:
        """Run the app until its input ends, and say what happened.

        `store` is a directory (default `.secondpass/<name>` beside the app's file); None keeps everything
        in memory. Running again continues where the last run stopped. `fresh` throws the store away first.
        `rename={"Old": "New"}` and `drop=["Old"]` say what becomes of state whose task has gone. `workers` as in
        `App(workers=)`, for this run.
        """
        # The one step up: an app is what the engine runs, and users start there.
        from pathlib import Path

        from secondpass.engine.run import run_app

        path = self.default_store() if store is ... else store
        return run_app(
            self,
            store=None if path is None else Path(path),
            follow=follow,
            fresh=fresh,
            limit=limit,
            rename=dict(rename or {}),
            drop=tuple(drop),
            take_over=take_over,
            workers=checked_workers(workers),
            **more,
        )

    @property
    def control(self) -> Control:
        """Commands to this app where it runs, in this process or another: `app.control.stop("SuppressNeighbours")`."""
        from secondpass.control import Control  # as above

        return Control(self.default_store(), self)

    def explain(self, position: int, *, store: str | Path | EllipsisType = ..., back: int = 0) -> Explanation:
        """Why the event at a position became what it became; raises `NotRepeated` where that cannot be told.

        >>> from secondpass import App, Task, value
        >>> class First(Task):
        ...     known = value(bool, False)
        ...     def handle(self, event):
        ...         if self.known:
        ...             return None
        ...         self.known = True
        ...         return event
        >>> app = App("first", source=[{"n": n} for n in range(3)], tasks=[First()])
        >>> summary = app.run(store="store")
        >>> found = app.explain(2, store="store")
        >>> found.ended, found.calls[0].reads[0].by.event
        ('dropped by First', {'n': 0})

        Each task's calls tell which cells they read and changed, and which earlier record had changed them last; with
        `back=N` those are explained too, N steps far. It runs again what the store recorded, and writes nothing.
        """
        from secondpass.engine.explain import explain  # as above

        return explain(self, position, store=self.default_store() if store is ... else store, back=back)

    def default_store(self) -> Path:
        """`.secondpass/<name>` beside the app's file, or in the working directory."""
        from pathlib import Path  # only a run needs it

        file = self.file or self._defined_in
        base = Path(file).resolve().parent if file is not None else _caller_directory()
        return base / ".secondpass" / self.name

    def _check_sinks(self) -> None:
        streams = self.streams
        for name in self.sinks:
            if name not in streams:
                have = ", ".join(n for n in streams if n != MAIN) or "none"
                raise DefinitionError(
                    f"App({self.name!r}, sinks={{{name!r}: ...}}): no task has an output of that name; "
                    f"the named outputs of this chain: {have}"
                )
        for task in self.tasks:
            for taken in (MAIN, LATE) if self._has_late else (MAIN,):
                if taken in type(task)._shape.outputs:
                    raise DefinitionError(
                        f"{task.name}: an output cannot be called {taken!r}; choose another name"
                    )

    def _check_files(self) -> None:
        """Each output has a file of its own, which the app does not read: it would eat what it puts out, for ever."""
        read = {_file_of(source) for source in self.sources}
        written: dict[str, str] = {}
        for name, sink in self.sinks.items():
            file = _file_of(sink)
            if file is None:
                continue
            if file in read:
                raise DefinitionError(
                    f"{sink.path} is what the app reads and where its output {name} goes: give the output another file"
                )
            if file in written:
                raise DefinitionError(
                    f"{written[file]} and {name} both go to {sink.path}: give each a file of its own"
                )
            written[file] = name

    def _check_timetables(self) -> None:
        names = [task.name for task in self.tasks]
        for i, table in enumerate(self.timetables):
            if table.task not in names:
                raise DefinitionError(
                    f"{table!r}: the chain has no such task; it has: {', '.join(names) or 'none'}"
                )
            if table.name in [other.name for other in self.timetables[:i]]:
                raise DefinitionError(f"two timetables are called {table.name!r}; give one another name")

    def __repr__(self) -> str:
        chain = " -> ".join(t.name for t in self.tasks) or "(no tasks)"
        return f"App({self.name!r}: {chain})"


def explain(
    app: App | str, position: int, *, store: str | Path | EllipsisType = ..., back: int = 0
) -> Explanation:
    """`App.explain`, also for an app by its spec: `explain("roadside.py", 812)`.

    >>> from secondpass import App, explain
    >>> app = App("all", source=[{"n": 1}, {"n": 2}], tasks=[])
    >>> summary = app.run(store="all")
    >>> explain(app, 1, store="all").ended
    'output 1 of main'
    """
    from secondpass.engine.explain import explain as run

    return run(app, position, store=None if store is ... else store, back=back)


def streams_of(tasks: Iterable[Task[Any]]) -> Streams:
    """Every output stream of a chain with the tasks that write to it, `main` first."""
    found: Streams = {MAIN: ()}
    for task in tasks:
        for name in type(task)._shape.outputs:
            found[name] = (*found.get(name, ()), task.name)
    return found


def checked_workers(workers: int | None) -> int | None:
    """A number of workers that can be; raises `SettingsError` otherwise."""
    if workers is not None and (type(workers) is not int or not 0 <= workers <= WORKERS_MAX):
        raise SettingsError(
            f"workers={workers!r}: write a number of processes, 0 (none) to {WORKERS_MAX}; left out, it is that of "
            f"the cores"
        )
    return workers


def as_lookups(tasks: Iterable[Task[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the lookups of some tasks come from, by name; raises `DefinitionError` for what cannot be."""
    specs = specs_of(tasks)
    for name in given:
        if name not in specs:
            raise DefinitionError(
                f"lookups={{{name!r}: ...}}: no task declares a lookup of that name; declared are: "
                f"{', '.join(specs) or 'none'}"
            )
    for name, spec in specs.items():
        if name not in given:
            raise DefinitionError(
                f"{spec.owner} looks into {name!r}: give it, App(..., lookups={{{name!r}: ...}})"
            )
    return {name: _lookup_source(name, found) for name, found in given.items()}


def _lookup_source(name: str, found: Any) -> Any:
    if isinstance(found, Loaded):
        return found
    if isinstance(found, Mapping):
        kept = cast("Mapping[Any, Any]", found)
        return Loaded(lambda: kept, name="a mapping")
    if hasattr(found, "open") and hasattr(found, "key"):
        if found.key is None:
            raise DefinitionError(
                f"lookups={{{name!r}: {found!r}}}: say which field is the key: {type(found).__name__}(..., key='...')"
            )
        if found.following or getattr(found, "path", None) == "-":
            raise DefinitionError(
                f"lookups={{{name!r}: {found!r}}}: a lookup is read to its end; leave out follow, and read a file; "
                f"reload_s= reads it again"
            )
        return found
    if callable(found):
        return Loaded(found)
    raise DefinitionError(
        f"lookups={{{name!r}: {found!r}}}: give a mapping, a connector with a key (Csv(path, T, key='...')) or a function "
        f"that returns a mapping"
    )


def as_task(found: Any) -> Task[Any]:
    """A task of a chain, from what a user puts there; raises `DefinitionError` for what is none."""
    if isinstance(found, Task):
        refuse_what_cannot_handle(type(cast("Task[Any]", found)), Task)
        return cast("Task[Any]", found)
    if is_task_class(found):
        raise DefinitionError(f"tasks=[{found.__name__}]: pass an object, {found.__name__}()")
    if callable(found):
        return from_function(found)
    raise DefinitionError(f"tasks=[{found!r}]: a task is a Task object or a plain function")


def _refuse_twins(tasks: Iterable[Task[Any]]) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise DefinitionError(
                f"two tasks are called {task.name!r}; name one of them: {type(task).__name__}(...)"
                f".options(name='...')"
            )
        seen.add(task.name)


def _file_of(connector: Any) -> str | None:
    """The file that a connector reads or writes, under its one true name; None where it is none."""
    path = getattr(connector, "path", None)
    ours = type(connector).__module__.startswith("secondpass.")  # another's path may be that of a database
    if not ours or not isinstance(path, (str, os.PathLike)) or path == "-":
        return None
    found = os.path.realpath(cast("str | os.PathLike[str]", path))
    return None if os.path.exists(found) and not os.path.isfile(found) else found  # noqa: PTH110, PTH113 - names are text


def _script_of(module: dict[str, Any]) -> str | None:
    """The file of the module that defines an app, so that it has one store whoever imports it; None for a library's."""
    file = module.get("__file__")
    if module.get("__name__") == "__main__" or not isinstance(file, str) or not file.endswith(".py"):
        return None
    parts = file.replace("\\", "/").split("/")
    library = "site-packages" in parts or "dist-packages" in parts
    return None if library or str(module.get("__name__")).partition(".")[0] == "secondpass" else file


def _caller_directory() -> Path:
    from pathlib import Path  # only a run needs it

    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or Path(file).suffix != ".py" or Path(file).name == "__main__.py":
        return Path.cwd()
    return Path(file).resolve().parent


__all__ = ["MAIN", "App"]
