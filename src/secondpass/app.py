"""An app: a name, sources, a chain of tasks, and where outputs go."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from secondpass.errors import DefinitionError, UsageError
from secondpass.task import Task, accepts, from_function

if TYPE_CHECKING:
    from secondpass.engine.summary import Summary

MAIN = "main"
"""The name of the stream of what the chain passes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
    what the chain passes; `sinks` names those of the tasks' named outputs. Raises `DefinitionError` for
    what cannot work, before anything runs.
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
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(
                f"App({name!r}): a name is letters, digits, '.', '_' and '-', since it names the store's directory"
            )
        self.name = name
        given = [*([source] if source is not None else []), *sources]
        if not given:
            raise DefinitionError(
                f"App({name!r}) has no source; pass source=JsonLines('events.jsonl') or any iterable"
            )
        self.sources: tuple[Any, ...] = tuple(given)
        self.tasks: tuple[Task[Any], ...] = tuple(_as_task(t) for t in tasks)
        _refuse_twins(self.tasks)
        for task in self.tasks:
            accepts(task)
        self.sinks: dict[str, Any] = {} if sink is None else {MAIN: sink}
        self.sinks.update(sinks or {})
        self._check_sinks()
        self.file: Path | None = None
        """The file that `load` found the app in."""

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        """Every output stream with the tasks that write to it, `main` first."""
        found: dict[str, tuple[str, ...]] = {MAIN: ()}
        for task in self.tasks:
            for name in type(task)._shape.outputs:
                found[name] = (*found.get(name, ()), task.name)
        return found

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
        **more: Any,
    ) -> Summary:
        """Run the app until its input ends, and say what happened.

        `store` is a directory (default `.secondpass/<name>` beside the app's file); None keeps everything
        in memory. Running again continues where the last run stopped. `fresh` throws the store away first.
        `rename={"Old": "New"}` and `drop=["Old"]` say what becomes of state whose task has gone.
        """
        # The one step up: an app is what the engine runs, and users start there.
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
            **more,
        )

    def default_store(self) -> Path:
        """`.secondpass/<name>` beside the app's file, or in the working directory."""
        base = self.file.parent if self.file is not None else _caller_directory()
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
            if MAIN in type(task)._shape.outputs:
                raise DefinitionError(
                    f"{task.name}: an output cannot be called {MAIN!r}; choose another name"
                )

    def __repr__(self) -> str:
        chain = " -> ".join(t.name for t in self.tasks) or "(no tasks)"
        return f"App({self.name!r}: {chain})"


def _as_task(found: Any) -> Task[Any]:
    if isinstance(found, Task):
        return cast("Task[Any]", found)
    if inspect.isclass(found) and issubclass(found, Task):
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


def _caller_directory() -> Path:
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or Path(file).suffix != ".py" or Path(file).name == "__main__.py":
        return Path.cwd()
    return Path(file).resolve().parent


# ---------------------------------------------------------------- finding an app


def load(spec: str) -> App:
    """The app that `FILE.py[:attr]`, `module:attr` or `module:factory()` names.

    Without an attribute the file's only `App` is taken. Raises `UsageError` that says what was found.
    """
    target, _, attribute = spec.partition(":")
    if target.endswith(".py") or "/" in target:
        path = Path(target)
        if not path.is_file():
            hint = (
                "; give the file that holds the app" if path.suffix == ".py" else "; an app file ends in .py"
            )
            raise UsageError(f"no file {target}{hint}")
        module = _import_file(path.resolve())
    else:
        if target not in sys.modules and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(target)
        except ModuleNotFoundError as error:
            if error.name and (target == error.name or target.startswith(error.name + ".")):
                raise UsageError(f"no module {target}; for a file write {target}.py") from None
            raise
    app = _pick(module, attribute, spec)
    file = getattr(module, "__file__", None)
    app.file = Path(file).resolve() if file else None
    return app


def _import_file(path: Path) -> ModuleType:
    name = path.stem if path.stem.isidentifier() else "secondpass_app"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def _pick(module: ModuleType, attribute: str, spec: str) -> App:
    if not attribute:
        apps = {name: found for name, found in module.__dict__.items() if isinstance(found, App)}
        if not apps:
            raise UsageError(
                f"{spec} holds no App; write `app = App(...)` in it, or name a factory: {spec}:make()"
            )
        if len({id(a) for a in apps.values()}) > 1:
            raise UsageError(
                f"{spec} holds several apps ({', '.join(apps)}); say which: {spec}:{next(iter(apps))}"
            )
        return next(iter(apps.values()))
    called = attribute.endswith("()")
    found = getattr(module, attribute.removesuffix("()"), None)
    if called and callable(found):
        found = found()
    if not isinstance(found, App):
        got = "is missing" if found is None else f"is a {type(found).__name__}"
        hint = f"; call it: {spec}()" if callable(found) and not called else ""
        raise UsageError(f"{spec}: {attribute} {got}, not an App{hint}")
    return found


__all__ = ["MAIN", "App", "load"]
