"""The dead letters that were sent again, and which of them a changed chain sets aside too.

At one position and task there may be several. Those of the same event are the same; what is left on both sides is taken
in order, a timer's for a timer's only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from secondpass.engine.names import type_name
from secondpass.engine.outbox import stored_letter, type_in
from secondpass.record import DeadLetter, Firing
from secondpass.store.format import StoredLetter
from secondpass.store.reader import StoreReader

Place = tuple[int, str]
"""Where a dead letter was set aside: its position and task."""
Numbered = tuple[int, StoredLetter]


class SentAgain:
    """The dead letters from a position on that were sent again, beside those that a changed chain sets aside."""

    def __init__(self, store: StoreReader, first: int) -> None:
        self._store = store
        self._missing: set[int] = set()
        self._one_at: dict[Place, int] = {}
        """By place: the number of one of them. What else was set aside there is read when it is needed."""
        for _, _, details in store.history_of("retry"):
            number: int = details["letter"]
            letter = _letter(store, number)
            if letter.position >= first:
                self._missing.add(number)
                self._one_at[letter.position, letter.task] = number

    def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """The changed chain sets these aside, all of their positions at once."""
        places: dict[Place, list[StoredLetter]] = {}
        for letter in letters:
            if (letter.position, letter.task) in self._one_at:
                places.setdefault((letter.position, letter.task), []).append(stored_letter(letter))
        for place, found in places.items():
            self._missing.difference_update(_matched(self._recorded(place), found))

    def is_missing(self, number: int) -> bool:
        """Whether this one was sent again and the changed chain does not set it aside."""
        return number in self._missing

    def _recorded(self, place: Place) -> list[Numbered]:
        """All that was set aside at a place, in order: letters of one position have consecutive numbers."""
        one = self._one_at[place]
        with self._store.snapshot():
            before = list(self._from(one - 1, -1, place))[::-1]
            return [*before, *self._from(one, 1, place)]

    def _from(self, number: int, step: int, place: Place) -> Iterator[Numbered]:
        while 0 <= number < self._store.progress.letters:
            letter = _letter(self._store, number)
            if letter.position != place[0]:
                return
            if letter.task == place[1]:
                yield number, letter
            number += step


def _letter(store: StoreReader, number: int) -> StoredLetter:
    found = store.letter(number)
    assert found is not None, "a dead letter is never deleted"
    return found[1]


def _matched(recorded: list[Numbered], found: list[StoredLetter]) -> Iterator[int]:
    """The numbers of the recorded letters that are among those found, each of which stands for one."""
    recorded, found, same = _paired(recorded, found, _what)
    yield from same
    yield from _paired(recorded, found, _is_timers)[2]


def _paired(
    recorded: list[Numbered], found: list[StoredLetter], key: Callable[[StoredLetter], Any]
) -> tuple[list[Numbered], list[StoredLetter], list[int]]:
    """What is left on both sides where those of one key are taken together, in order; and what was taken."""
    waiting: dict[Any, deque[Numbered]] = {}
    for one in recorded:
        waiting.setdefault(key(one[1]), deque()).append(one)
    left: list[StoredLetter] = []
    taken: list[int] = []
    for letter in found:
        alike = waiting.get(key(letter))
        if alike:
            taken.append(alike.popleft()[0])
        else:
            left.append(letter)
    numbers = set(taken)
    return [one for one in recorded if one[0] not in numbers], left, taken


def _what(letter: StoredLetter) -> tuple[bytes, bytes]:
    return letter.event, letter.raw


def _is_timers(letter: StoredLetter) -> bool:
    return type_in(letter.event) == type_name(Firing)
