"""Events, and cells, with a numpy array, for `shipping.py`; worker processes import them from here."""

from __future__ import annotations

import numpy as np

from secondpass import Event, Task, table


class Frame(Event):
    n: int
    time: float
    pixels: np.ndarray


class Look(Task[Frame]):
    """Reads two of its numbers; with `back`, the array goes back in a new event, else nothing does."""

    back: bool

    def handle(self, event: Frame) -> Frame | None:
        first, last = event.pixels[0], event.pixels[-1]
        if not self.back:
            return event if first > last else None
        return Frame(n=event.n, time=event.time, pixels=event.pixels)


class Step(Event):
    n: int
    time: float


class Background(Task[Step]):
    """A cell with an array; with `back`, it is changed in place, else only read."""

    back: bool
    size: int
    frames = table(int, np.ndarray)

    def keys(self, event: Step) -> tuple[int]:
        return (event.n % 2,)

    def handle(self, event: Step) -> None:
        key = event.n % 2
        if key not in self.frames:
            self.frames[key] = np.arange(self.size, dtype="f8")
        elif self.back:
            self.frames[key][0] += 1.0
