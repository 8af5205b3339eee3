"""Finding the app that `FILE.py[:attr]`, `module:attr` or `module:factory()` names."""

from __future__ import annotations

import builtins
import enum
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

from msgspec import structs

from secondpass.app import App
from secondpass.codec import describe, is_struct
from secondpass.description import AGAIN, what_it_does
from secondpass.errors import UsageError

at_rest: Callable[[str], NoReturn] | None = None
"""While a module is loaded for what is defined in it: called in place of what it would do to an app's log."""


def load(spec: str) -> App:
    """The app that `FILE.py[:attr]`, `module:attr` or `module:factory()` names.

    Without an attribute the file's only `App` is taken. Raises `UsageError` that says what was found.
    """
    target, _, attribute = spec.partition(":")
    if not target:
        raise UsageError(f"{spec!r} names no file; give the file that holds the app")
    path = Path(target)
    if target.endswith(".py") or "/" in target or target.startswith("."):
        if path.is_dir():
            raise _is_directory(target)
        if not path.is_file():
            hint = (
                "; give the file that holds the app" if path.suffix == ".py" else "; an app file ends in .py"
            )
            raise UsageError(f"no file {target}{hint}")
        if path.suffix != ".py":
            raise _is_no_python(target)
        module = _import_file(path.resolve())
    else:
        if target not in sys.modules and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(target)
        except ModuleNotFoundError as error:
            if error.name and (target == error.name or target.startswith(error.name + ".")):
                if path.is_file():
                    raise _is_no_python(target) from None
                raise UsageError(f"no module {target}; for a file write {target}.py") from None
            raise
        if getattr(module, "__file__", None) is None and path.is_dir():
            raise _is_directory(target)  # which Python takes for a package without code
    app = _pick(module, attribute, spec)
    app.spec = spec
    file = getattr(module, "__file__", None)
    app.file = Path(file).resolve() if file else None
    return app


def _is_directory(target: str) -> UsageError:
    return UsageError(f"{target} is a directory; give the file that holds the app")


def _is_no_python(target: str) -> UsageError:
    return UsageError(f"{target} is no Python file; an app's file ends in .py")


class _AsItStands(importlib.machinery.SourceFileLoader):
    """Loads the source itself: a cached one is recognised by size and second, which an edit may keep.

    The source is kept, for another process that is to load the same, whatever becomes of the file.
    """

    def __init__(self, name: str, path: str, source: bytes | None = None) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002 - importlib's signature
        if self.source is None:
            self.source = self.get_data(self.path)
        return self.source_to_code(self.source, self.path)

    def exec_module(self, module: ModuleType) -> None:
        first = sys.modules.get(self.name.partition(AGAIN)[0]) if AGAIN in self.name else None
        if first is not None:
            module.__dict__["__builtins__"] = {**vars(builtins), "__build_class__": _keeping_types_of(first)}
        super().exec_module(module)


def _keeping_types_of(first: ModuleType) -> Callable[..., type]:
    """How classes are made in a module that is loaded another time: what has not changed stays the same object.

    Events of the running stream are of the classes that were there first; a task that is loaded again must know them.
    """

    def build(body: Callable[..., Any], name: str, *bases: Any, **options: Any) -> type:
        made = builtins.__build_class__(body, name, *bases, **options)
        there: Any = first
        for part in made.__qualname__.split("."):
            there = getattr(there, part, None)
        return there if same_class(there, made) else made

    return build


def same_class(there: Any, made: type) -> bool:
    """Whether two Struct or Enum classes are the same: fields, options, members, methods."""
    if not isinstance(there, type) or there.__bases__ != made.__bases__:
        return False
    if issubclass(made, enum.Enum) and issubclass(there, enum.Enum):
        return {m.name: m.value for m in made} == {m.name: m.value for m in there} and _methods(
            made
        ) == _methods(there)
    if not (is_struct(made) and is_struct(there)):
        return False
    fields = [
        [
            (f.name, f.encode_name, describe(f.type), repr(f.default), repr(f.default_factory))
            for f in structs.fields(tp)
        ]
        for tp in (there, made)
    ]
    return (
        fields[0] == fields[1]
        and repr(made.__struct_config__) == repr(there.__struct_config__)
        and _methods(made) == _methods(there)
    )


def _methods(tp: type) -> dict[str, Any]:
    """What a class's functions do, as far as their code tells."""
    found: dict[str, Any] = {}
    for name, part in vars(tp).items():
        function = getattr(part, "fget", None) or getattr(part, "__func__", part)
        code = getattr(function, "__code__", None)
        if code is not None and code.co_filename != __file__:
            found[name] = what_it_does(code)
    return found


def load_again(app: App, file: Path | None = None) -> App:
    """The app as its file has it now, or as another file has it, beside the one that was loaded before.

    Raises `UsageError` where it has no file.

    Tasks are new; event classes that have not changed are those that were there.
    """
    if app.file is None or app.spec is None:
        raise UsageError(
            "the app was not loaded from a file, so there is none to read again; pass the task itself, from the process "
            "that runs the app: app.control.replace(task)"
        )
    target, _, attribute = app.spec.partition(":")
    first = _loaded_name(app.file) or target
    number = 1 + sum(name.startswith(first + AGAIN) for name in list(sys.modules))
    module = _import_file(file or app.file, f"{first}{AGAIN}{number}")
    found = _pick(module, attribute if file is None else "", app.spec if file is None else str(file))
    found.spec, found.file = app.spec, app.file
    return found


def _loaded_name(file: Path) -> str | None:
    """The name under which a file was loaded first."""
    for name, module in list(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if isinstance(loader, _AsItStands) and Path(loader.path) == file:
            return name
    return None


def _import_file(path: Path, name: str = "") -> ModuleType:
    name = name or (path.stem if path.stem.isidentifier() else "secondpass_app")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    found = importlib.util.spec_from_file_location(name, path, loader=_AsItStands(name, str(path)))
    if found is None or found.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    is_pythons = name in sys.stdlib_module_names
    loaded = sys.modules.get(name)
    if is_pythons and loaded is not None and not _is_loaded_by_us(loaded):
        raise _hides(path, name)  # somebody uses it, and would find the app in its place
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        if AGAIN in name:
            del sys.modules[name]
        if (hidden := hides_pythons(error)) is not None:
            sys.modules.pop(name, None)
            raise hidden from None
        raise
    return module


def _is_loaded_by_us(module: ModuleType) -> bool:
    return isinstance(getattr(module.__spec__, "loader", None), _AsItStands)


def _hides(path: Path, name: str) -> UsageError:
    return UsageError(f"{path.name} hides Python's own module {name}; give the file another name")


def hides_pythons(error: BaseException | None) -> UsageError | None:
    """The refusal, where an error comes of a file that has the name of one of Python's modules."""
    while error is not None:
        name = error.name if isinstance(error, ImportError) else None
        module = error.obj if isinstance(error, AttributeError) else sys.modules.get(name or "")
        if isinstance(module, ModuleType) and _is_loaded_by_us(module):
            name = module.__name__
            if name in sys.stdlib_module_names:
                return _hides(Path(module.__file__ or name), name)
        error = error.__cause__ or error.__context__
    return None


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
