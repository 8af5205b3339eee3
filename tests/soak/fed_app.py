"""The app that the live soak feeds and commands; `main` is what each of the processes does that feed it.

It appends events of its own to the log of a store, in batches of many sizes, and notes each acknowledged one in a file. It
may be killed at any moment: started again, it goes on behind the last batch that the log knows of.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from secondpass import App, Event, Log, Task, output, table, value


class Reading(Event):
    feed: str
    n: int
    time: float


class Suppress(Task[Reading]):
    window_s: float = 20.0
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Reading) -> tuple[int]:
        return (event.n % 101,)

    def handle(self, event: Reading) -> Reading | None:
        seen = event.n % 101 in self.last
        self.last[event.n % 101] = event.time
        return None if seen and event.n % 3 else event


class Count(Task[Reading]):
    step: int = 1
    total = value(int, 0)
    odd = output(Reading)

    def handle(self, event: Reading) -> Reading:
        self.total += self.step
        if event.n % 997 == 0:
            raise ValueError(f"number {event.n} of {event.feed}")
        if self.total % 50 == 0:
            self.odd.emit(event)
        return event


class Mark(Task[Reading]):
    """Without state, for any worker."""

    mark: str = "m"

    def handle(self, event: Reading) -> Reading:
        return event.replace(feed=event.feed + self.mark)


app = App("fed", tasks=[Suppress(), Count(), Mark()])


def feed(store: Path, name: str, count: int, acked: Path) -> None:
    log, rng = Log(store), random.Random(os.urandom(8))
    last = log.last(name)
    n = 0 if last is None else last.event.n + 1
    sequence = 0 if last is None else last.sequence + 1
    with acked.open("ab", buffering=0) as file:
        if last is not None:
            file.write(b"%d\n" % last.event.n)  # the answer may have been lost, and nothing else
        while n < count:
            size = min(rng.choice((1, 7, 60, 500)), count - n)
            batch = [Reading(feed=name, n=i, time=i / 100) for i in range(n, n + size)]
            log.append(batch, producer=name, sequence=sequence)
            n += size
            sequence += 1
            file.write(b"%d\n" % (n - 1))


def main(store: str, name: str, count: str, acked: str) -> None:
    feed(Path(store), name, int(count), Path(acked))
