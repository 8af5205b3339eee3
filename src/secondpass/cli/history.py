"""`secondpass history`: what was done to an app, from its store."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import click

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, store_option, stored_app_argument
from secondpass.cli.places import find_store
from secondpass.cli.shapes import HistoryLine, line

SHOWN = 20


@click.command(context_settings=HELP)
@stored_app_argument
@store_option
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Show the last so many.  [default: {SHOWN}; all with --json]",
)
@json_option
@debug_option
def history(app: str | None, store: Path | None, last: int | None, as_json: bool) -> None:
    """Show what was done to an app: when, by whom and why.

    Starts with what had changed since the run before, commands, those that were left out with the reason, retries
    of dead letters, verdicts. The oldest comes first; with --json each is one line.
    """
    from secondpass.cli.reading import plain
    from secondpass.control import Control

    directory = find_store(app, store)
    wanted = last if as_json or last else SHOWN
    entries = Control(directory).history(wanted)
    lines = [line_of(entry) for entry in entries]
    if as_json:
        for found in lines:
            found.details = plain(found.details)
        text.say([line(found) for found in lines])
        return
    rows: list[list[str]] = []
    for found in lines:
        rows.append([text.count(found.position), moment(found.at), found.what, found.by or "", found.reason])
        if found.kind == "start":
            rows += [["", "", f"  {change}", "", ""] for change in found.details["changes"]]
    text.say(text.table(["position", "when", "what", "by", "why"], rows, right="rllll"))
    if len(entries) == SHOWN and last is None:
        text.hint(f"these are the last {SHOWN} of {shown(directory)}; --last N shows more")


def line_of(entry: dict[str, Any]) -> HistoryLine:
    """An entry of the history, in words."""
    details = {name: value for name, value in entry.items() if name not in ("kind", "position")}
    kind: Any = entry["kind"]
    pid = entry.get("pid")
    return HistoryLine(
        kind=kind,
        position=entry["position"],
        at=entry.get("at") or None,
        by=entry.get("by") or (None if pid is None else f"process {pid}"),
        task=entry.get("task") or None,
        what=_what(kind, entry),
        reason=entry.get("reason") or entry.get("error") or "",
        details=details,
    )


def _what(kind: str, entry: dict[str, Any]) -> str:
    if kind == "start":
        return "start of a run"
    if kind == "verdict":
        return f"verdict on an event of {entry['task']}"
    if kind == "command":
        return in_words(entry)
    if kind == "loaded":
        return f"lookup {entry['lookup']} loaded, {text.plural(entry['rows'], 'row')}"
    if kind in ("retry", "drop"):
        return f"{kind} dead letter {entry['letter']}"
    if kind not in ("left out", "timetable"):
        return kind
    asked = in_words(entry) if "asked" in entry else f"command on dead letter {entry['letter']}"
    return f"left out: {asked}" if kind == "left out" else f"{asked}: nothing to do"


def in_words(entry: dict[str, Any]) -> str:
    """A command to the chain or to the app, as one would give it."""
    asked, task = entry["asked"], entry.get("task", "")
    if asked == "reload":
        return f"lookup {task} loaded again"
    if asked == "set" and "was" in entry:
        now = entry["to"]["settings"]
        changed = ", ".join(f"{n} {line(was)} -> {line(now[n])}" for n, was in entry["was"].items())
        return f"set {task}: {changed or 'nothing new'}"
    said = {"drop-state": "drop", "end": "end the run"}.get(asked, asked)
    if task:
        said += f" {task}"
    if entry.get("state"):
        said += f".{entry['state']}"
    if entry.get("before"):
        said += f" before {entry['before']}"
    if entry.get("fresh"):
        said += " afresh"
    if entry.get("stopped"):
        said += ", stopped"
    if entry.get("tried"):
        said += f", tried on {text.plural(entry['tried'], 'event')}"
    return said


def moment(at: float | None) -> str:
    """A moment of the wall clock, in UTC."""
    if at is None:
        return text.DASH
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
