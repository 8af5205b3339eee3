"""Finding a store without importing the app: at `--store`, beside the app's file, or the only one here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from secondpass.cli.apps import shown
from secondpass.errors import SecondpassError, SettingsError

FOLDER = ".secondpass"
FILE = "store.db"


def find_store(app: str | None, store: Path | None) -> Path:
    """The directory of the store that is meant; raises `SettingsError` that lists the candidates."""
    if store is not None:
        if not (store / FILE).is_file():
            raise SettingsError(
                f"there is no store in {shown(store)}; `secondpass run APP --store {store}` makes one"
            )
        return store
    found = find_stores(app)
    if len(found) == 1:
        return found[0]
    if found:
        which = "\n".join(f"  --store {shown(d)}" for d in found)
        raise SettingsError(f"there are several stores; say which:\n{which}")
    raise _nothing_found(app)


def find_stores(app: str | None) -> list[Path]:
    """All stores that APP (or nothing) may mean."""
    base, wanted = _where(app)
    found = stores_below(base)
    return found if wanted is None else [d for d in found if wanted(d)]


def stores_below(base: Path) -> list[Path]:
    """The stores in a directory's `.secondpass`."""
    return sorted(path.parent for path in (base / FOLDER).glob(f"*/{FILE}"))


def app_of(directory: Path) -> dict[str, Any] | None:
    """The name and file of the app that a store belongs to; None where it cannot be read."""
    from secondpass.store.database import Store

    try:
        store = Store.open_to_read(directory)
    except SecondpassError:
        return None
    try:
        return store.meta("app")
    except SecondpassError:
        return None
    finally:
        store.close()


def file_of(directory: Path) -> str:
    """The app's file, to show how it is run."""
    found = app_of(directory)
    return "APP" if found is None or found["file"] is None else shown(found["file"])


def is_app(text: str) -> bool:
    """Whether an argument reads as APP, where something else may stand too."""
    target = text.partition(":")[0]
    return target.endswith(".py") or "/" in text or ":" in text or (Path(FOLDER) / text / FILE).is_file()


def _where(app: str | None) -> tuple[Path, Callable[[Path], bool] | None]:
    """The directory whose `.secondpass` is looked into, and which of its stores fit."""
    if app is None:
        return Path(), None
    target, _, _ = app.partition(":")
    if target.endswith(".py"):
        path = Path(target).resolve()
        if not path.is_file():
            raise SettingsError(
                f"no file {target}; give the app's file, or the store's directory with --store"
            )
        # Its name alone: the folder may have been moved since the last run.
        return Path(target).parent, lambda d: _file(d) in (path.name, None)
    if ":" in app or "." in app:
        tail = target.replace(".", "/")
        return Path(), lambda d: (_path(d) or "").removesuffix(".py").removesuffix("/__init__").endswith(tail)
    return Path(), lambda d: d.name == app or (app_of(d) or {}).get("name") == app


def _path(directory: Path) -> str | None:
    return (app_of(directory) or {}).get("file")


def _file(directory: Path) -> str | None:
    path = _path(directory)
    return None if path is None else Path(path).name


def _nothing_found(app: str | None) -> SettingsError:
    base, _ = _where(app)
    others = stores_below(base)
    where = shown(base.absolute() / FOLDER)
    if app is None or not others:
        return SettingsError(
            f"there is no store in {where}; `secondpass run {app or 'APP'}` makes one, and --store DIR names one elsewhere"
        )
    which = "\n".join(
        f"  --store {shown(d)}  (of {(app_of(d) or {}).get('file') or 'an unknown app'})" for d in others
    )
    return SettingsError(f"no store in {where} belongs to {app}; there are:\n{which}")
