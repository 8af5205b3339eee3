"""What is printed: numbers, sizes, durations and tables, plain and aligned."""

from __future__ import annotations

import datetime
import math
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import click

from secondpass.errors import OutputError

DASH = "-"
"""Stands where there is nothing to say."""

_UNITS = ("B", "kB", "MB", "GB", "TB")
_GAP = "  "


def count(n: int) -> str:
    """A number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{n:,}"


def positions(begin: int, end: int) -> str:
    """The positions from one to before another.

    >>> positions(0, 1000), positions(3, 4), positions(3, 3)
    ('positions 0 to 999', 'position 3 to 3', 'no position from 3 on')
    """
    if begin == end:
        return f"no position from {count(begin)} on"
    return f"{'positions' if end - begin != 1 else 'position'} {count(begin)} to {count(end - 1)}"


def plural(n: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "event"), plural(2000, "event")
    ('1 event', '2,000 events')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def size(n: float) -> str:
    """An amount of bytes.

    >>> size(512), size(3_293_184)
    ('512 B', '3.3 MB')
    """
    unit = 0
    while n >= 1000 and unit < len(_UNITS) - 1:
        n, unit = n / 1000, unit + 1
    return f"{n:.0f} {_UNITS[unit]}" if unit == 0 or n >= 100 else f"{n:.1f} {_UNITS[unit]}"


def duration(s: float) -> str:
    """Seconds, in the units that one would say them in.

    >>> duration(0.0123), duration(4.56), duration(200), duration(7260)
    ('12 ms', '4.6 s', '3 min 20 s', '2 h 1 min')
    """
    if s < 0.0995:
        return f"{s * 1000:.0f} ms"
    if s < 59.95:
        return f"{s:.1f} s"
    minutes, seconds = divmod(round(s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def remaining(s: float) -> str:
    """Seconds to go, without a precision that nobody has.

    >>> remaining(0.2), remaining(11.04), remaining(200)
    ('1 s', '11 s', '3 min 20 s')
    """
    return f"{max(1, round(s))} s" if s < 59.5 else duration(s)


def rate(per_s: float) -> str:
    """Events per second, to three digits.

    >>> rate(444965.2), rate(3.25)
    ('445,000/s', '3.2/s')
    """
    if per_s < 100:
        return f"{per_s:.1f}/s"
    digits = 3 - len(str(int(per_s)))
    return f"{round(per_s, digits):,.0f}/s"


def percent(part: float, whole: float) -> str:
    """A share of a whole.

    >>> percent(41, 100), percent(1, 1000)
    ('41%', '<1%')
    """
    if whole <= 0:
        return DASH
    share = part / whole
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def stream_time(s: float | None) -> str:
    """A stream's time, as a date where it can be one.

    >>> stream_time(1632192265.17), stream_time(12.5), stream_time(None)
    ('2021-09-21 02:44:25Z', '12.5 s', '-')
    """
    if s is None or not math.isfinite(s):
        return DASH
    if s < 1e8:
        return f"{s:g} s"
    return datetime.datetime.fromtimestamp(s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(s: float) -> str:
    """How long something is past.

    >>> ago(0.4), ago(65)
    ('now', '1 min 5 s ago')
    """
    return "now" if s < 1 else f"{duration(s)} ago"


def width() -> int | None:
    """The columns of the terminal; None where the output is no terminal and lines have no end."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None


def cells(text: str) -> int:
    """How many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(1 for c in text if unicodedata.east_asian_width(c) in "WF")
    return len(text) + wide - sum(1 for c in text if unicodedata.combining(c))


def cut(text: str, columns: int) -> str:
    """A text that takes so many columns at most.

    >>> cut("a long text", 6), cut("short", 6)
    ('a lon…', 'short')
    """
    if cells(text) <= columns:
        return text
    kept = ""
    for letter in text:
        if cells(kept + letter) > columns - 1:
            break
        kept += letter
    return kept + "…"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: str = "", indent: str = ""
) -> list[str]:
    """Lines of a table: headers dimmed, columns aligned, the last one cut at the terminal's edge.

    `right` has one letter for each column: `r` aligns it right, any other left.

    >>> for line in table(["task", "events"], [["A", "1,000"], ["Longer", "7"]], right="lr"):
    ...     print(click.unstyle(line))
    task    events
    A        1,000
    Longer       7
    """
    texts = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max([cells(h), *(cells(row[i]) for row in texts)]) for i, h in enumerate(headers)]
    columns = width()
    if columns is not None and texts:
        before = len(indent) + sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
        widths[-1] = max(min(widths[-1], columns - before), min(8, widths[-1]))
        texts = [[*row[:-1], cut(row[-1], widths[-1])] for row in texts]
    lines = [click.style(_line(headers, widths, right, indent), dim=True)]
    return [*lines, *(_line(row, widths, right, indent) for row in texts)]


def _line(row: Sequence[str], widths: Sequence[int], right: str, indent: str) -> str:
    parts: list[str] = []
    for i, text in enumerate(row):
        space = " " * max(0, widths[i] - cells(text))
        parts.append(space + text if right[i : i + 1] == "r" else text + space)
    return (indent + _GAP.join(parts)).rstrip()


def one_line(text: str) -> str:
    r"""A text without what would break a line or move the cursor.

    >>> one_line("a\nb\x1b[31m")
    'a b?[31m'
    """
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else "?" for c in text)


def fields(rows: Sequence[tuple[str, str]], *, indent: str = "") -> list[str]:
    """Lines of `name  value`, the values aligned.

    >>> for line in fields([("store", ".secondpass/x"), ("events", "7")]):
    ...     print(click.unstyle(line))
    store   .secondpass/x
    events  7
    """
    wide = max((cells(name) for name, _ in rows), default=0)
    return [
        indent + click.style(name + " " * (wide - cells(name)), dim=True) + _GAP + value
        for name, value in rows
    ]


def say(lines: str | Sequence[str], *, err: bool = False) -> None:
    """Print lines: results on standard output, all else with `err` on standard error."""
    for line in [lines] if isinstance(lines, str) else lines:
        try:
            click.echo(line, err=err)
        except BrokenPipeError:
            raise  # whoever reads has enough
        except OSError as error:
            raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


def hint(text: str) -> None:
    """Advice on standard error."""
    click.echo(click.style("hint:", fg="yellow", bold=True) + " " + text, err=True)


def warn(text: str) -> None:
    """Something that is probably not meant, on standard error."""
    click.echo(click.style("warning:", fg="yellow", bold=True) + " " + text, err=True)


def printable(text: str) -> str:
    """A text of several lines without what would move the cursor or change colours."""
    return "\n".join(one_line(line) for line in text.splitlines())
