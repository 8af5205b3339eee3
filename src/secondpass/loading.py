"""Finding the app that `FILE.py[:attr]`, `module:attr` or `module:factory()` names."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import CodeType, ModuleType

from secondpass.app import App
from secondpass.errors import UsageError


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
    app.spec = spec
    file = getattr(module, "__file__", None)
    app.file = Path(file).resolve() if file else None
    return app


class _AsItStands(importlib.machinery.SourceFileLoader):
    """Loads the source itself: a cached one is recognised by size and second, which an edit may keep."""

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002 - importlib's signature
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path) -> ModuleType:
    name = path.stem if path.stem.isidentifier() else "secondpass_app"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    found = importlib.util.spec_from_file_location(name, path, loader=_AsItStands(name, str(path)))
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
