"""Tasks whose keys, counts, errors and log lines are of unusual kinds; workers import them from here."""

from __future__ import annotations

import enum
import math
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from secondpass import ALL, Event, Task, table, value


class Seen(Event):
    n: int
    time: float


class Name(str):
    """A string of its own class."""

    __slots__ = ()


class Colour(enum.Enum):
    RED = "red"


class Rash:
    def __hash__(self) -> int:
        raise LookupError("no hash today")


def _local(n: int) -> Any:
    class Local:
        pass

    return Local()


KEYS: dict[str, Callable[[int], Iterable[Any]]] = {
    "a tuple more": lambda n: (n % 7, ("row", n // 2)),
    "numbers beyond 64 bits": lambda n: (n % 7, n + 2**65),
    "numbers of numpy": lambda n: np.arange(n % 7, n % 7 + 2),
    "True for one": lambda n: (True, 0.0, *range(7)),
    "a class": lambda n: (n % 7, Seen),
    "a function without a name": lambda n: (n % 7, lambda: n),
    "a module": lambda n: (n % 7, math),
    "what only this process has": lambda n: (n % 7, _local(n)),
    "a lone surrogate": lambda n: (n % 7, "\udcff"),
    "a map that raises": lambda n: map((0, n % 7).__getitem__, range(3 if n % 4 == 0 else 2)),
    "what cannot be hashed by chance": lambda n: (n % 7, Rash()) if n % 4 == 0 else (n % 7,),
    "all, or pairs": lambda n: ALL if n % 5 == 0 else ((n, "x"), n % 7),
}


class Counts(Task[Seen]):
    """Counts by a number, and declares more keys than it touches."""

    kind: str
    counted = table(int, int, default=0)

    def keys(self, event: Seen) -> Any:
        return KEYS[self.kind](event.n)

    def handle(self, event: Seen) -> Seen:
        self.counted[event.n % 7] += 1
        return event.replace(time=float(self.counted[event.n % 7]))


class Equal(Task[Seen]):
    """Finds the cell of a whole number by the float that equals it."""

    counted = table(int, int, default=0)

    def keys(self, event: Seen) -> tuple[Any, ...]:
        return (float(event.n % 3),)

    def handle(self, event: Seen) -> Seen:
        key: Any = float(event.n % 3)
        self.counted[key if key in self.counted else event.n % 3] += 1
        return event.replace(time=float(self.counted[event.n % 3]))


class Seldom(Task[Seen]):
    """Touches all of its state at some events, and none of it at the others."""

    total = value(int, 0)
    counted = table(int, int, default=0)

    def keys(self, event: Seen) -> Any:
        return () if event.n % 2 else ALL

    def handle(self, event: Seen) -> Seen:
        if event.n % 2:
            return event
        self.total += 1
        self.counted[event.n % 7] += self.total
        return event.replace(time=float(self.total * 1000 + self.counted[event.n % 7]))


class Named(Task[Seen]):
    """Counts by text, under a key that is a string of its own class."""

    counted = table(str, int, default=0)

    def keys(self, event: Seen) -> tuple[Any, ...]:
        return (Name("abc"[event.n % 3]),)

    def handle(self, event: Seen) -> Seen:
        self.counted["abc"[event.n % 3]] += 1
        return event.replace(time=float(self.counted["abc"[event.n % 3]]))


class Last(Task[Seen]):
    """Has no table: a value under `ALL`, beside keys that are tuples."""

    last = value(int, 0)

    def keys(self, event: Seen) -> Any:
        return ALL if event.n % 4 == 0 else ((event.n, "x"),)

    def handle(self, event: Seen) -> Seen:
        if event.n % 4 == 0:
            self.last = event.n
        return event


class Undeclared(Task[Seen]):
    """Touches what its keys look like once they are text, and are not."""

    colour: bool
    counted = table(str, int, default=0)

    def keys(self, event: Seen) -> tuple[Any, ...]:
        return (Colour.RED,) if self.colour else (uuid.UUID(int=event.n),)

    def handle(self, event: Seen) -> Seen:
        self.counted["red" if self.colour else str(uuid.UUID(int=event.n))] += 1
        return event


class Wordless(Exception):
    def __str__(self) -> str:
        return str(self.args[7])


class Odd(Task[Seen]):
    """Does something odd at its fifth event."""

    what: str

    def handle(self, event: Seen) -> Seen:
        if event.n == 5:
            getattr(self, "_" + self.what)()
        return event

    def _wordless_error(self) -> None:
        raise Wordless

    def _surrogate_error(self) -> None:
        raise ValueError("no file \udcff.txt")

    def _wrong_format(self) -> None:
        self.log.warning("%d events", "many")

    def _surrogate_line(self) -> None:
        self.log.warning("no file %s", "\udcff.txt")

    def _surrogate_trace(self) -> None:
        try:
            raise ValueError("\udcff.txt")
        except ValueError:
            self.log.exception("no file")

    def _numpy_count(self) -> None:
        self.count("pixels", np.arange(5).sum())

    def _named_count(self) -> None:
        self.count(Name("pixels"), True)

    def _large_count(self) -> None:
        self.count("pixels", 2**70)

    def _surrogate_count(self) -> None:
        self.count("\udcff", 1)

    def _half_count(self) -> None:
        self.count("pixels", 1.5)  # pyright: ignore[reportArgumentType]

    def _nameless_count(self) -> None:
        self.count(3, 4)  # pyright: ignore[reportArgumentType]
