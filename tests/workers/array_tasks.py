"""Tasks over events with large arrays, for `test_arrays.py`; workers import them from here."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from secondpass import Event, Task, output, table
from secondpass.codec import SealedMap
from secondpass.event import freeze, owned


class Frame(Event):
    n: int
    time: float
    pixels: np.ndarray
    more: Mapping[str, np.ndarray] = {}


class Seen(Event):
    """What a worker has seen of an array."""

    n: int
    time: float
    base: str
    owned_as_it_is: bool
    maps: int
    pid: int


def message_maps() -> int:
    """How many messages this process has mapped."""
    return Path("/proc/self/maps").read_text().count("secondpass-message")


class Double(Task[Frame]):
    """Puts out new arrays: one that is not contiguous, an empty one, and the one that came."""

    shown = output(Frame)

    def handle(self, event: Frame) -> list[Frame]:
        new = event.replace(
            pixels=(event.pixels * 2).reshape(4, -1).T,
            more={"came": event.pixels, "empty": np.zeros((0, 3)), "small": event.pixels[:3], **event.more},
        )
        if event.n % 4 == 0:
            self.shown.emit(event)
        return [new, event] if event.n % 3 == 0 else [new]


class Sums(Task[Frame]):
    """Keeps an array in a cell, and changes it in place."""

    total = table(int, np.ndarray)

    def keys(self, event: Frame) -> tuple[int]:
        return (event.n % 3,)

    def handle(self, event: Frame) -> Frame:
        key, flat = event.n % 3, event.pixels.reshape(-1)
        if key not in self.total:
            self.total[key] = np.zeros(len(flat))
        self.total[key][:] += flat
        return event.replace(pixels=self.total[key])


class Look(Task[Frame]):
    """Says where an event's array lies, and how many messages are mapped."""

    def handle(self, event: Frame) -> Seen:
        mine = freeze(event.pixels) is event.pixels and owned(event.replace()).pixels is event.pixels
        return Seen(
            n=event.n,
            time=event.time,
            base=type(event.pixels.base).__name__,
            owned_as_it_is=mine and isinstance(event.pixels.base, SealedMap),
            maps=message_maps(),
            pid=os.getpid(),
        )


class KilledOnce(Task[Frame]):
    """Ends its worker from outside at one event, the first time."""

    flag: str

    def handle(self, event: Frame) -> Frame:
        if event.n == 5 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return event.replace(pixels=event.pixels + 1)


class Untyped(Task):
    """Passes a mapping on as another one."""

    def handle(self, event: Mapping) -> dict:
        return {**event, "more": np.arange(100_000)}
