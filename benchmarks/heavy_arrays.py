"""Events with a numpy array, for `shipping.py`; worker processes import them from here."""

from __future__ import annotations

import numpy as np

from secondpass import Event, Task


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
