"""The tasks of `every_core.py` and `shipping.py`, in a module that worker processes import.

The work of an event is a loop of a fixed count, found once for the machine (`spins_for`) and the same in every
case: no clock is looked at while it runs, so two processes that share a core do not each seem to work.
"""

from __future__ import annotations

import random
import time
from itertools import accumulate
from pathlib import Path

from secondpass import Event, Task, table

WINDOW_S = 300.0
FIRST_CID, CIDS = 131000000201, 1099


class Detection(Event):
    cid: int
    time: float
    note: str


def burn(spins: int) -> int:
    """Pure Python that takes so long as it takes; its result makes sure that it ran."""
    x = 1
    for _ in range(spins):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return x


def spins_for(seconds: float) -> int:
    """How many turns of `burn` take so much CPU time on this machine, which is loaded by others at times."""
    spins = 20_000
    burn(spins)
    best = min(_cpu_s(spins) for _ in range(25))
    return max(1, round(spins * seconds / best))


def _cpu_s(spins: int) -> float:
    began = time.process_time()
    burn(spins)
    return time.process_time() - began


class Heavy(Task[Detection]):
    """Work without state."""

    spins: int

    def handle(self, event: Detection) -> Detection:
        burn(self.spins)
        return event


class Suppress(Task[Detection]):
    """A camera's detections within the window after its own or a neighbour's are dropped; it costs next to nothing."""

    window_s: float = WINDOW_S
    last_seen = table(int, float)

    def handle(self, event: Detection) -> Detection | None:
        at = event.time
        last = self.last_seen.get(event.cid)
        for cid in (event.cid - 1, event.cid, event.cid + 1):
            self.last_seen[cid] = at
        return event if last is None or at - last >= self.window_s else None


class HeavySuppress(Suppress):
    """The same with work, and with the keys that let events far from each other run at once."""

    spins: int

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Detection) -> Detection | None:
        burn(self.spins)
        return super().handle(event)


class HeavyOneKey(Task[Detection]):
    """Work where every event has the same key: nothing can run at once."""

    spins: int
    seen = table(int, int, default=0)

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (0,)

    def handle(self, event: Detection) -> Detection | None:
        burn(self.spins)
        self.seen[0] += 1
        return event if self.seen[0] % 3 else None


class HeavyOwnKey(Task[Detection]):
    """Work where an event's key is its camera: as skewed as the stream is."""

    spins: int
    seen = table(int, int, default=0)

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Detection) -> Detection | None:
        burn(self.spins)
        self.seen[event.cid] += 1
        return event if self.seen[event.cid] % 3 else None


def write_events(path: Path, events: int, skew: float = 0.0, seed: int = 1) -> list[int]:
    """A file of detections of 100 bytes each; gives their cameras.

    With `skew`, the camera of rank r comes with a frequency of 1 / r ** skew (Zipf).
    """
    rng = random.Random(seed)
    bounds = list(accumulate(rank**-skew for rank in range(1, CIDS + 1)))
    cids = [FIRST_CID + n for n in rng.choices(range(CIDS), cum_weights=bounds, k=events)]
    at = 1632192265.0
    with path.open("w") as file:
        for cid in cids:
            at += rng.random() * 0.5
            line = f'{{"cid":{cid},"time":{at:.2f},"note":"'
            file.write(line + "x" * (97 - len(line)) + '"}\n')
    return cids
