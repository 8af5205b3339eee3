"""`secondpass dead-letters`: events that were set aside, and what becomes of them.

Listing reads the store. Sending again and dropping are commands to the app: a running one does them within moments,
the next run otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import msgspec

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.commanding import Meant
from secondpass.cli.group import HELP
from secondpass.cli.options import (
    command_options,
    confirmed,
    debug_option,
    json_option,
    store_option,
    stored_app_argument,
)
from secondpass.cli.places import find_store
from secondpass.cli.shapes import CommandReport, Letter, LetterGroup, LetterList, document, line
from secondpass.errors import ChangeRefused, SettingsError

if TYPE_CHECKING:
    from secondpass.control import Control, Done
    from secondpass.store.format import StoredLetter

F = TypeVar("F", bound=Callable[..., Any])
Found = tuple[int, str, "StoredLetter"]

_BEFORE = "none: it was set aside before the chain"
_DIGITS = re.compile(r"\d+")


@click.group("dead-letters", context_settings=HELP)
def dead_letters() -> None:
    """List, show, retry and drop events that were set aside."""


# ---------------------------------------------------------------- list and show


@dead_letters.command("list", context_settings=HELP)
@stored_app_argument
@store_option
@click.option("--task", metavar="NAME", help="Those of one task only.")
@click.option(
    "--status",
    type=click.Choice(["open", "sent", "dropped", "all"]),
    default="open",
    help="Those that are still open, that were sent again, or dropped.  [default: open]",
)
@click.option("--each", is_flag=True, help="One line for each instead of one for alike ones.")
@json_option
@debug_option
def list_(
    app: str | None, store: Path | None, task: str | None, status: str, each: bool, as_json: bool
) -> None:
    """List dead letters, alike ones together, the oldest first.

    Those of one task whose errors differ in digits only are alike. With --json and --each every dead
    letter is one line of JSON.
    """
    directory = find_store(app, store)
    found = _letters(directory, task, None if status == "all" else status)
    if each:
        _list_each(found, as_json=as_json)
        return
    groups = _grouped(found)
    if as_json:
        report = LetterList(store=str(directory), status=status, count=len(found), groups=groups)
        text.say(document(report))
    elif not groups:
        text.say(f"no {'' if status == 'all' else status + ' '}dead letters in {shown(directory)}")
    else:
        rows = [
            [text.count(g.count), g.oldest, g.oldest_position, g.task or "(input)", g.error] for g in groups
        ]
        text.say(text.table(["count", "oldest", "position", "task", "error"], rows, right="rrrll"))
        text.say("")
        text.say(f"secondpass dead-letters show {app or ''}{' ' if app else ''}{groups[0].oldest}")


def _list_each(found: list[Found], *, as_json: bool) -> None:
    from secondpass.cli.letters import letter_of

    if as_json:
        text.say([line(_jsonable(letter_of(*f))) for f in found])
        return
    rows = [[n, status, s.position, s.task or "(input)", s.error] for n, status, s in found]
    text.say(text.table(["number", "status", "position", "task", "error"], rows, right="rlrll"))


def _grouped(found: list[Found]) -> list[LetterGroup]:
    alike: dict[tuple[str, str], list[Found]] = {}
    for letter in found:
        stored = letter[2]
        alike.setdefault((stored.task, _DIGITS.sub("#", stored.error)), []).append(letter)
    return [
        LetterGroup(
            task=letters[0][2].task or None,
            error=letters[0][2].error,
            count=len(letters),
            oldest=letters[0][0],
            newest=letters[-1][0],
            oldest_position=letters[0][2].position,
        )
        for letters in alike.values()
    ]


def _letters(directory: Path, task: str | None, status: str | None) -> list[Found]:
    from secondpass.cli.reading import reading

    with reading(directory) as store:
        found, renames = list(store.letters(status)), store.renames()
    if task is None:
        return found
    wanted = "" if task == "(input)" else task
    return [f for f in found if wanted in (f[2].task, renames.now(f[2].task, f[2].position))]


@dead_letters.command("show", context_settings=HELP)
@click.argument("words", metavar="[APP] NUMBER", nargs=-1, required=True)
@store_option
@json_option
@debug_option
def show(words: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Show one dead letter: the event, the error, the traceback."""
    app, numbers = _app_and_numbers(words)
    if len(numbers) != 1:
        raise click.UsageError("give the number of one dead letter")
    directory = find_store(app, store)
    letter, task = _one(directory, numbers[0])
    if as_json:
        text.say(document(_jsonable(letter)))
        return
    rows = [
        ("status", letter.status),
        ("position", text.count(letter.position)),
        ("task", f"{letter.task}, now {task}" if letter.task and task != letter.task else task or _BEFORE),
        ("error", click.style(text.one_line(letter.error), fg="red")),
    ]
    if letter.source:
        rows.append(("source", f"{letter.source}, at {letter.offset}"))
    rows.append(
        ("event", line(letter.event)) if letter.event is not None else ("input", text.one_line(letter.raw))
    )
    text.say([click.style(f"dead letter {letter.number}", bold=True), *text.fields(rows, indent="  ")])
    if letter.traceback:
        text.say(["", text.printable(letter.traceback)])
    if letter.status == "open":
        words_ = " ".join([*([app] if app else []), str(letter.number)])
        text.say(["", f"secondpass dead-letters retry {words_}"])


def _one(directory: Path, number: int) -> tuple[Letter, str]:
    """A dead letter, and what its task is called now."""
    from secondpass.cli.letters import letter_of
    from secondpass.cli.reading import reading

    with reading(directory) as store:
        found, renames = store.letter(number), store.renames()
        letters = store.progress.letters
    if found is None:
        have = f"they have the numbers 0 to {letters - 1}" if letters else "there are none"
        raise SettingsError(f"there is no dead letter {number} in {shown(directory)}; {have}")
    letter = letter_of(number, *found)
    return letter, renames.now(letter.task or "", letter.position)


def _jsonable(letter: Letter) -> Letter:
    from secondpass.cli.reading import plain

    return msgspec.structs.replace(letter, event=plain(letter.event))


# ---------------------------------------------------------------- retry and drop


def _choice(function: F) -> F:
    """Which dead letters are meant: numbers, one task's, or all."""
    function = click.option("--all", "all_", is_flag=True, help="All open ones.")(function)
    function = click.option("--task", metavar="NAME", help="All open ones of one task.")(function)
    return click.argument("words", metavar="[APP] [NUMBER]...", nargs=-1)(function)


@dead_letters.command("retry", context_settings=HELP)
@_choice
@click.option(
    "--event", metavar="JSON", help="Send this instead: fields given here replace those of the event."
)
@command_options
def retry(
    words: tuple[str, ...],
    all_: bool,
    task: str | None,
    event: str | None,
    reason: str,
    store: Path | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Send dead letters again, to the task that failed.

    A running app does it within moments, otherwise the next run does.
    """
    app, numbers = _app_and_numbers(words)
    directory = find_store(app, store)
    chosen = _chosen(directory, numbers, task, all_)
    mended = _mended(event, chosen)
    for number, _, stored in chosen:
        if not stored.event and mended is None:
            raise SettingsError(
                f"dead letter {number} was no event when it was read ({stored.error}); mend it with --event JSON, "
                f"or drop it"
            )
    numbers = [number for number, _, _ in chosen]
    _give(Meant(app, store, directory), "retry", numbers, mended, reason, no_wait=no_wait, as_json=as_json)


def _mended(event: str | None, chosen: list[Found]) -> dict[str, Any] | None:
    if event is None:
        return None
    if len(chosen) > 1:
        raise click.UsageError("--event mends one dead letter; give one number")
    try:
        return msgspec.json.decode(event, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise SettingsError(f"--event {event}: {error}; write a JSON object of fields") from None


@dead_letters.command("drop", context_settings=HELP)
@_choice
@click.option("--yes", is_flag=True, help="Do not ask.")
@command_options
def drop(
    words: tuple[str, ...],
    all_: bool,
    task: str | None,
    yes: bool,
    reason: str,
    store: Path | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Give dead letters up; they stay in the store, marked as dropped.

    A running app does it within moments, otherwise the next run does.
    """
    app, numbers = _app_and_numbers(words)
    directory = find_store(app, store)
    chosen = _chosen(directory, numbers, task, all_)
    if chosen and not numbers:
        confirmed(f"Drop {text.plural(len(chosen), 'dead letter')} of {shown(directory)}?", yes=yes)
    numbers = [number for number, _, _ in chosen]
    _give(Meant(app, store, directory), "drop", numbers, None, reason, no_wait=no_wait, as_json=as_json)


def _app_and_numbers(words: Iterable[str]) -> tuple[str | None, list[int]]:
    """APP is the first word that is no number."""
    found = list(words)
    app = found.pop(0) if found and not found[0].isdecimal() else None
    for word in found:
        if not word.isdecimal():
            raise click.UsageError(f"{word!r} is not the number of a dead letter")
    return app, list(dict.fromkeys(map(int, found)))


def _chosen(directory: Path, numbers: list[int], task: str | None, all_: bool) -> list[Found]:
    """The open dead letters that are meant."""
    if (bool(numbers), task is not None, all_).count(True) != 1:
        raise click.UsageError("say which: numbers, --task NAME, or --all")
    found = _letters(directory, task, None)
    if not numbers:
        return [letter for letter in found if letter[1] == "open"]
    by_number = {letter[0]: letter for letter in found}
    for number in numbers:
        if number not in by_number:
            _one(directory, number)  # raises what tells which there are
        if by_number[number][1] != "open":
            was = {"sent": "was sent again already", "dropped": "was dropped"}[by_number[number][1]]
            raise SettingsError(f"dead letter {number} {was}")
    return [by_number[number] for number in numbers]


def _give(
    meant: Meant,
    kind: Literal["retry", "drop"],
    numbers: list[int],
    event: dict[str, Any] | None,
    reason: str,
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Give a command for each, in order, and say what became of them once the last is done."""
    from secondpass.cli.commanding import waiting
    from secondpass.control import Control
    from secondpass.store.lock import holder_of

    control, names = Control(meant.directory), dict[str, int]()

    def give(number: int, *, wait: bool) -> Done:
        if kind == "retry":
            return control.retry_letter(number, event, reason=reason, wait=wait)
        return control.drop_letter(number, reason=reason, wait=wait)

    for number in numbers[:-1]:
        names[give(number, wait=False).command] = number
    report = CommandReport(
        store=str(meant.directory), kind=kind, letters=numbers, running=False, outcome="nothing to do"
    )
    if numbers:
        last, of_many = numbers[-1], len(numbers) > 1
        report.outcome = "done"
        with waiting(f"{kind} of {_these(numbers)}", meant):
            try:
                done = give(last, wait=not no_wait)
                names[done.command] = last
                if done.waits:
                    report.outcome = "asked for"
            except ChangeRefused as error:
                if not of_many:
                    raise
                report.left_out[last] = str(error)
    holder = holder_of(meant.directory)
    report.running = holder is not None
    if report.outcome == "asked for" and (holder is None or not no_wait):
        report.outcome = "left for the next run"
    if report.outcome == "done":
        _look_what_became(meant.directory, control, names, report)
    text.say(document(report) if as_json else _said(report, holder, meant))


def _look_what_became(
    directory: Path, control: Control, names: Mapping[str, int], report: CommandReport
) -> None:
    for entry in control.history(len(names) + 200):
        number = names.get(entry.get("command", ""))
        if number is not None and entry["kind"] == "left out":
            report.left_out[number] = entry["reason"]
        elif number is not None and entry["kind"] == "retry":
            report.positions[number] = entry["position"]
    if report.positions:
        places, letters = set(report.positions.values()), _letters(directory, None, None)
        report.failed_again = [number for number, _, letter in letters if letter.position in places]


def _these(numbers: list[int]) -> str:
    return f"dead letter {numbers[0]}" if len(numbers) == 1 else text.plural(len(numbers), "dead letter")


def _said(report: CommandReport, holder: dict[str, Any] | None, meant: Meant) -> str:
    done = {"retry": "sent again", "drop": "dropped"}[report.kind]
    if report.outcome == "nothing to do":
        return f"no open dead letters in {shown(meant.directory)}; nothing to do"
    if report.outcome == "asked for":
        pid = (holder or {}).get("pid", "just starting")
        return f"{_these(report.letters)} will be {done} by the running app within moments (process {pid})"
    if report.outcome != "done":
        return f"{_these(report.letters)} will be {done} by the next run: {meant.run}"
    done_ones = [number for number in report.letters if number not in report.left_out]
    found = [f"{_these(done_ones)} {done}"] if done_ones else []
    if len(done_ones) == 1 and report.positions:
        found[0] += f" at position {text.count(report.positions[done_ones[0]])}"
    if report.failed_again:
        found.append(f"failed again: {_these(report.failed_again)}")
    found += [f"dead letter {number} left out: {why}" for number, why in report.left_out.items()]
    return "; ".join(found)
