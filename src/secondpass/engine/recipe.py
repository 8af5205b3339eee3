"""How another process finds the tasks of a chain.

Tasks cross to another process by reference: a pickle names their classes, and the other process imports them from
the same files. So a recipe holds, beside the pickle, what imports depend on (`sys.path`, `sys.argv`, the working
directory) and the modules that are to be loaded first:

- the file that the app was loaded from, under the same name as in the hub;
- the main script, under its own name, where tasks or events are defined in it: it also stands in for `__main__`;
- what no import finds by its name.

Where the tasks cannot be pickled (a lambda, a class that a factory makes), an app that was loaded by its spec is
loaded by it again, and the chain it gives is compared with the hub's.

Invariants: nothing is loaded from a file that is not the one the hub has loaded. No app is run by loading it: an
`App.run()` on the way ends the loading of the module there, since what stands behind it happened after the run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import pickle
import sys
import types
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from secondpass import loading
from secondpass.app import App
from secondpass.description import describe
from secondpass.errors import SettingsError, UsageError
from secondpass.event import Event
from secondpass.feeder import Feeder
from secondpass.record import error_text
from secondpass.task import FunctionTask, Task

WORKER, SCOUT = "secondpass.engine.worker:Worker", "secondpass.engine.scout:Scout"
WITHOUT_WORKERS = ", or run with workers=0"
"""The last advice of `NotPortable`, which is none after a crash."""
_STAND_IN = "secondpass_main"


class NotPortable(SettingsError):
    """No other process can load the tasks."""


class Module(msgspec.Struct, frozen=True):
    """A module that is to be there before the tasks are."""

    name: str
    file: str
    digest: bytes
    by_file: bool
    """Whether it is loaded from the file itself, since no import finds it by its name."""
    main: bool = False
    """Whether it stands in for `__main__`."""
    source: bytes = b""
    """What was loaded, where that is known: the file may have changed since."""


class Recipe(msgspec.Struct, frozen=True):
    """What another process needs to have the same tasks."""

    path: list[str]
    argv: list[str]
    directory: str
    modules: list[Module] = []
    tasks: bytes = b""
    """The pickled tasks; empty where the app is loaded by its spec."""
    spec: str = ""
    chain: bytes = b""
    """The description of the chain that the spec must give again."""
    worker: str = WORKER
    """The class that answers bundles."""


# ---------------------------------------------------------------- the hub's side


def recipe_for(app: App) -> Recipe:
    """How another process finds this app's tasks; raises `NotPortable` where it cannot."""
    common = _common()
    try:
        pickled, names = _pickle(app)
        return msgspec.structs.replace(common, tasks=pickled, modules=_modules(app, names))
    except NotPortable:
        spec: str | None = getattr(app, "spec", None)
        if not spec:
            raise
        return msgspec.structs.replace(common, spec=spec, chain=_chain(app.tasks))


def recipe_of(app: App, content: tuple[Feeder, str]) -> Recipe:
    """How another process finds a source of this app; raises `NotPortable` where it cannot."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(content)
    except Exception as error:  # noqa: BLE001 - whatever a class of the app's raises
        raise NotPortable(
            f"the source {content[0].name} cannot be loaded by another process ({error_text(error)}); put it into a file, "
            f"at its top level, or leave out process=True"
        ) from None
    return msgspec.structs.replace(_common(), tasks=file.getvalue(), modules=_modules(app, pickler.names))


def _common() -> Recipe:
    if not sys.executable:
        raise _not_portable("this program has a Python built in, so that no other process can be started")
    directory = str(Path.cwd())
    # An empty entry means the working directory, wherever that is by then.
    path = [entry or directory for entry in sys.path if isinstance(entry, str)]  # pyright: ignore[reportUnnecessaryIsInstance] - imports skip others
    return Recipe(path, list(sys.argv), directory)


def _not_portable(reason: str) -> NotPortable:
    return NotPortable(
        f"the tasks cannot be loaded by another process: {reason}; put them into a file, at its top level{WITHOUT_WORKERS}"
    )


class _Pickler(pickle.Pickler):
    """Notes the modules to which the pickle refers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names: set[str] = set()

    def reducer_override(self, obj: Any, /) -> Any:
        if isinstance(obj, (type, types.FunctionType)):
            self.names.add(obj.__module__ or "builtins")
        return NotImplemented


def _pickle(app: App) -> tuple[bytes, set[str]]:
    """The pickled tasks, and the modules to which they refer."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(app.tasks)
    except Exception:
        for task in app.tasks:
            try:
                _Pickler(io.BytesIO()).dump(task)
            except Exception as error:  # noqa: BLE001 - whatever the settings' own classes raise
                raise _not_portable(_why_not(task, error)) from None
        raise
    return file.getvalue(), pickler.names


def _why_not(task: Task[Any], error: Exception) -> str:
    target: Any = task.function if isinstance(task, FunctionTask) else type(task)
    qualname = str(getattr(target, "__qualname__", ""))
    if "<lambda>" in qualname:
        return f"the task {task.name} is a lambda"
    if "<locals>" in qualname:
        return f"the task {task.name} is defined inside a function, {qualname.partition('.<locals>')[0]}"
    return f"the task {task.name} cannot be pickled ({error_text(error)})"


def _modules(app: App, names: set[str]) -> list[Module]:
    """The modules to load first: the app's own, the main script, and those that no import finds."""
    found: list[Module] = []
    home = _home(app)
    if home is not None:
        found.append(home)
    main = sys.modules["__main__"]
    if "__main__" in names or (home is None and _defines_types(main)):
        stand_in = _main_module(main)
        if stand_in is not None:
            found.append(stand_in)
        elif "__main__" in names:
            raise _not_portable(
                "they are defined at a prompt, in a notebook or with `python -c`, where no other process can read them"
            )
    for name in sorted(names - {"__main__"} - {module.name for module in found}):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] in ("secondpass", *sys.stdlib_module_names):
            continue
        loaded_by = getattr(getattr(module, "__spec__", None), "loader", None)
        if isinstance(loaded_by, loading._AsItStands):
            found.append(Module(name, file, b"", by_file=True, source=loaded_by.source or b""))
        elif module is not None and Path(file).suffix == ".py" and Path(file).is_file():
            found.append(Module(name, file, _digest(file), by_file=not _importable(module)))
    return found


def _home(app: App) -> Module | None:
    """The module that the app was loaded from: what it does when it is loaded may matter to its tasks."""
    if app.file is None:
        return None
    for name, module in list(sys.modules.items()):
        loaded_by = getattr(getattr(module, "__spec__", None), "loader", None)
        if isinstance(loaded_by, loading._AsItStands) and Path(loaded_by.path) == app.file:
            return Module(name, str(app.file), b"", by_file=True, source=loaded_by.source or b"")
    target = str(getattr(app, "spec", None) or "").partition(":")[0]
    file = getattr(sys.modules.get(target), "__file__", None)
    return Module(target, file, _digest(file), by_file=False) if file else None


def _defines_types(module: types.ModuleType) -> bool:
    """Whether tasks or events are defined in a module."""
    return any(
        isinstance(found, type) and issubclass(found, (Task, Event)) and found.__module__ == module.__name__
        for found in list(vars(module).values())
    )


def _main_module(main: types.ModuleType) -> Module | None:
    """The main script as a module of its own name; None where it has no file."""
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    name = spec.name if spec is not None else Path(file or "").stem
    if file is None or not Path(file).is_file():
        return None
    file = str(Path(file).resolve())
    own = all(part.isidentifier() for part in name.split(".")) and name != "__main__"
    if not own or name in sys.stdlib_module_names or name == "secondpass":
        name = _STAND_IN  # a script may be called like a module that others import
    return Module(name, file, _digest(file), by_file=True, main=True)


def _importable(module: types.ModuleType) -> bool:
    """Whether an import in a new process finds this file by the module's name."""
    name = module.__name__
    parent = sys.modules.get(name.rpartition(".")[0])
    path = getattr(parent, "__path__", None)
    if ("." in name and path is None) or isinstance(
        getattr(module.__spec__, "loader", None), loading._AsItStands
    ):
        return False
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found.origin == module.__file__
    return False


def _digest(file: str) -> bytes:
    from hashlib import blake2b  # a run needs it once

    return blake2b(Path(file).read_bytes(), digest_size=16).digest()


def _chain(tasks: tuple[Task[Any], ...]) -> bytes:
    """The chain's description, in bytes that are the same in every process: sets have an order there."""
    chain = [
        {**describe(task), "settings": {k: getattr(task, k) for k in type(task)._shape.settings}}
        for task in tasks
    ]
    return msgspec.msgpack.Encoder(enc_hook=_named, order="deterministic").encode(chain)


def _named(value: Any) -> str:
    """What no codec knows: the code of a function is described already, and others have a representation."""
    return value.__qualname__ if hasattr(value, "__qualname__") else repr(value)


# ---------------------------------------------------------------- the other process's side


class _RunReached(BaseException):  # no handler for an app's errors may catch it
    """The module that is being loaded would run an app now."""


def load_tasks(recipe: Recipe) -> tuple[Task[Any], ...]:
    """The tasks of a recipe, in a process that does nothing else; raises whatever loading them raises."""
    return load_recipe(recipe)


def load_recipe(recipe: Recipe) -> Any:
    """What a recipe holds, likewise."""
    sys.path[:] = recipe.path
    sys.argv[:] = recipe.argv
    with contextlib.suppress(OSError):  # it may be gone, as it may be for the hub
        os.chdir(recipe.directory)
    with apps_at_rest():
        for module in recipe.modules:
            _load(module)
        if not recipe.spec:
            return pickle.loads(recipe.tasks)  # noqa: S301 - made by the hub, and passed by descriptor
        tasks = loading.load(recipe.spec).tasks
    if _chain(tasks) != recipe.chain:
        raise UsageError(
            f"{recipe.spec} gives another chain each time it is loaded: its tasks, their code or their settings "
            f"are not those that the app was started with; let it give the same each time, or run with workers=0"
        )
    return tasks


@contextlib.contextmanager
def apps_at_rest() -> Generator[None]:
    """No app is run, and nothing appended to its log, by loading the module that it stands in."""

    def stop(self: App, **options: Any) -> NoReturn:  # noqa: ARG001 - the signature of `App.run`
        raise _RunReached(f"{self.name}: a module that is imported runs the app")

    def feed(what: str) -> NoReturn:
        raise _RunReached(f"a module that is imported {what}")

    kept = App.run
    App.run, loading.at_rest = stop, feed
    try:
        yield
    finally:
        App.run, loading.at_rest = kept, None


def _load(module: Module) -> None:
    if not module.source and _digest(module.file) != module.digest:
        raise UsageError(f"{module.file} has changed since the app was started; start the app again")
    if not module.by_file:
        importlib.import_module(module.name)
        return
    parent = module.name.rpartition(".")[0]
    if parent:
        with contextlib.suppress(ImportError):  # what was loaded by its file may have no package
            importlib.import_module(parent)
    loaded = sys.modules.get(module.name)
    if loaded is None or getattr(loaded, "__file__", None) != module.file:
        loader = loading._AsItStands(module.name, module.file, module.source or None)
        found = importlib.util.spec_from_file_location(module.name, module.file, loader=loader)
        assert found is not None
        loaded = importlib.util.module_from_spec(found)
        sys.modules[module.name] = loaded
        if module.main:
            sys.modules["__main__"] = loaded
        with contextlib.suppress(_RunReached):
            loader.exec_module(loaded)
    if module.main:
        sys.modules["__main__"] = loaded
