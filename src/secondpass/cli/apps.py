"""Finding the user's app: importing their file, and saying it well when that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from secondpass.app import App
from secondpass.cli.exits import AppBroken
from secondpass.errors import SecondpassError, UsageError
from secondpass.loading import load, load_again


def load_app(spec: str) -> App:
    """The app that APP names; raises `UsageError`, `AppBroken` where its own code is at fault."""
    with _told_well(_file_of(spec)):
        return load(spec)


def load_beside(app: App, file: Path) -> App:
    """The app as another file has it; raises the same."""
    with _told_well(shown(file)):
        return load_again(app, file.resolve())


@contextlib.contextmanager
def _told_well(file: str) -> Generator[None]:
    try:
        yield
    except UsageError as error:
        if _comes_from_users_code(error):
            raise AppBroken(f"{error}\n  while {file} was imported") from error
        raise
    except SecondpassError:
        raise  # the app's module ran something that failed: the error says what
    except (Exception, SystemExit) as error:
        raise AppBroken(
            f"{file} cannot be imported: it raised {type(error).__name__}; mend it and run again"
        ) from error


def _file_of(spec: str) -> str:
    return spec.partition(":")[0]


def _comes_from_users_code(error: BaseException) -> bool:
    """Whether the app's module was running when the error was raised."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>" and not trace.tb_frame.f_globals.get(
            "__name__", ""
        ).startswith("secondpass."):
            return True
        trace = trace.tb_next
    return False


def describe_sink(sink: Any) -> str:
    """Where a stream's outputs go, in a few words."""
    path = getattr(sink, "path", None)
    if isinstance(path, (str, Path)):
        return "standard output" if str(path) == "-" else shown(path)
    if hasattr(sink, "deliver") or hasattr(sink, "sink"):
        return repr(sink)
    return f"the function {getattr(sink, '__qualname__', type(sink).__name__)}"


def writes_to_stdout(app: App) -> bool:
    """Whether a sink of the app writes to standard output, which is then not ours."""
    return any(str(getattr(sink, "path", "")) == "-" for sink in app.sinks.values())


def shown(path: str | Path) -> str:
    """A path as one would type it here: relative where it lies below."""
    full = Path(path).absolute()
    try:
        return str(full.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
