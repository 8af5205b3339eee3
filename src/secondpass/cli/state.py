"""`secondpass state`: what tasks remember, from the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, limit_option, store_option
from secondpass.cli.places import find_store, is_app
from secondpass.cli.shapes import Cell, StateReport, TableReport, document, line
from secondpass.errors import SettingsError

if TYPE_CHECKING:
    from secondpass.cli.reading import Stated, StoredCell

CELLS_SHOWN = 20
_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool}


@click.group(context_settings=HELP)
def state() -> None:
    """List and look up what tasks remember."""


@state.command("ls", context_settings=HELP)
@click.argument("words", metavar="[APP] [TASK.TABLE]", nargs=-1)
@store_option
@limit_option(f"Show so many cells.  [default: {CELLS_SHOWN}; all with --json]")
@json_option
@debug_option
def ls(words: tuple[str, ...], store: Path | None, limit: int | None, as_json: bool) -> None:
    """List tables and values, or the cells of one table in key order.

    What has expired is not shown. With --json the cells of a table are one line of JSON each.
    """
    app, rest = _app_and_rest(words, 1)
    directory = find_store(app, store)
    if rest:
        _list_cells(directory, rest[0], limit, as_json=as_json)
    else:
        _list_tables(directory, as_json=as_json)


def _list_tables(directory: Path, *, as_json: bool) -> None:
    from secondpass.cli.reading import load_cells, reading, stated

    with reading(directory) as store:
        tables = stated(store)
        cells = load_cells(store, tables)
    found = [
        TableReport(
            task=t.task,
            name=t.name,
            kind="value" if t.is_value else "table",
            key=t.key,
            value=t.value,
            cells=len(cells[t.task, t.name]),
        )
        for t in tables
    ]
    if as_json:
        text.say(document(StateReport(store=str(directory), tables=found)))
    elif not found:
        text.say(f"no task of {shown(directory)} has state")
    else:
        rows = [
            [f"{t.task}.{t.name}", _type(t), "" if t.kind == "value" else text.count(t.cells or 0)]
            for t in found
        ]
        text.say(text.table(["state", "type", "cells"], rows, right="llr"))


def _type(table: TableReport) -> str:
    return table.value if table.kind == "value" else f"{table.key} -> {table.value}"


def _list_cells(directory: Path, name: str, limit: int | None, *, as_json: bool) -> None:
    table, cells = _table(directory, name)
    if as_json:
        text.say([line(_cell(table, cell)) for cell in cells[:limit]])
        return
    shown_cells = cells[: limit or CELLS_SHOWN]
    if table.is_value:
        text.say(
            _json(shown_cells[0].value) if shown_cells else f"{name} has its default: it was never assigned"
        )
        return
    headers, right = ["key", "written", "value"], "lll"
    rows = [[_json(c.key), text.stream_time(c.written), _json(c.value)] for c in shown_cells]
    if not table.expires:
        headers, rows = ["key", "value"], [[key, value] for key, _, value in rows]
    text.say(text.table(headers, rows, right=right))
    if len(cells) > len(shown_cells):
        text.say(f"... {text.count(len(cells) - len(shown_cells))} more: --limit {len(cells)}")


@state.command("get", context_settings=HELP)
@click.argument("words", metavar="[APP] TASK.TABLE [KEY]", nargs=-1, required=True)
@store_option
@json_option
@debug_option
def get(words: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Print one cell's value as JSON.

    KEY is JSON (17, "north", [3, 4]); what is no JSON is taken as text. A value needs no key.
    """
    app, rest = _app_and_rest(words, 2)
    if not rest:
        raise click.UsageError("say which table or value: TASK.TABLE; `secondpass state ls` lists them")
    directory = find_store(app, store)
    table, cells = _table(directory, rest[0])
    cell = _find(table, cells, rest[0], rest[1:])
    text.say(document(_cell(table, cell)) if as_json else _json(cell.value))


def _find(table: Stated, cells: list[StoredCell], name: str, key: list[str]) -> StoredCell:
    if table.is_value:
        if key:
            raise SettingsError(f"{name} is a value, it has no keys")
        if not cells:
            raise SettingsError(f"{name} was never assigned; it has its default, which the app's code says")
        return cells[0]
    if not key:
        raise SettingsError(f"{name} is a table; say which key: secondpass state get {name} KEY")
    wanted = _parse(key[0])
    for cell in cells:
        # The text itself comes second: in a table of str, 17 means "17".
        if _same(cell.key, wanted) or (isinstance(cell.key, str) and cell.key == key[0]):
            return cell
    kind = _KINDS.get(table.key or "")
    if kind is not None and (not isinstance(wanted, kind) or isinstance(wanted, bool) != (kind is bool)):
        raise SettingsError(f"{name} has no cell {key[0]}: its keys are {table.key}")
    expired = "; it may have expired" if table.expires else ""
    raise SettingsError(f"{name} has no cell {key[0]} among {text.plural(len(cells), 'cell')}{expired}")


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _parse(key: str) -> Any:
    try:
        return msgspec.json.decode(key)
    except msgspec.DecodeError:
        return key


def _app_and_rest(words: tuple[str, ...], most: int) -> tuple[str | None, list[str]]:
    """APP is the first word if it reads as one."""
    found = list(words)
    app = found.pop(0) if found and (len(found) > most or is_app(found[0])) else None
    if len(found) > most:
        raise click.UsageError(f"unexpected argument {found[most]!r}")
    return app, found


def _table(directory: Path, name: str) -> tuple[Stated, list[StoredCell]]:
    """A table or value by its name, with its cells."""
    from secondpass.cli.reading import load_cells, reading, stated

    with reading(directory) as store:
        tables = stated(store)
        fitting = [t for t in tables if f"{t.task}.{t.name}" == name]
        fitting = fitting or [
            t for t in tables if t.name == name
        ]  # the task may be left out where one has it
        if len(fitting) != 1:
            have = ", ".join(f"{t.task}.{t.name}" for t in fitting or tables) or "none"
            raise SettingsError(f"{name}: which state? The store {shown(directory)} has {have}")
        return fitting[0], load_cells(store, fitting)[fitting[0].task, fitting[0].name]


def _cell(table: Stated, cell: StoredCell) -> Cell:
    from secondpass.cli.reading import plain

    return Cell(
        task=table.task, table=table.name, key=cell.key, value=plain(cell.value), written=cell.written
    )


def _json(value: Any) -> str:
    from secondpass.cli.reading import plain

    return line(plain(value))
