"""An app to give commands to: many cheap events, a chain with state, code that can stand in for other code."""

from __future__ import annotations

import os

from secondpass import App, Event, Task, output, table, value
from secondpass.connectors import JsonLines


class Seen(Event):
    n: int
    time: float
    by: str = ""


class First(Task[Seen]):
    """Drops what came before within some seconds."""

    window_s: float = 2.0
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Seen) -> tuple[int]:
        return (event.n % 7,)

    def handle(self, event: Seen) -> Seen | None:
        if event.n % 7 in self.last:
            return None
        self.last[event.n % 7] = event.time
        return event


class Count(Task[Seen]):
    """Marks each event with how many it has seen."""

    step: int = 1
    total = value(int, 0)
    odd = output(Seen)

    def handle(self, event: Seen) -> Seen:
        self.total += self.step
        if event.n % 2:
            self.odd.emit(event)
        return event.replace(by=f"{event.by}{self.name}{self.total} ")


class Marked(Task[Seen]):
    """Without state, for any worker."""

    mark: str = "m"

    def handle(self, event: Seen) -> Seen:
        return event.replace(by=event.by + self.mark)


class Other(Task[Seen]):
    """Other code for the state of `Count`."""

    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 100
        return event.replace(by=f"{event.by}other{self.total} ")


class Wrong(Task[Seen]):
    """Other code that fails."""

    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        raise ValueError("not this one")


class Known(Task[Seen]):
    """Says what it remembers of others, and writes now and then."""

    window_s: float = 3.0
    last = table(int, float, ttl_s="window_s")
    whole = table(int, list[int], factory=list, ttl_s="window_s")

    def handle(self, event: Seen) -> Seen:
        draw = self.random.randrange
        asked, written = draw(150), draw(150)
        by = f"{self.last.get(asked)} {asked in self.whole}"
        if event.n % 3:
            self.last[written] = event.time
            self.whole[written] = [event.n]
        elif event.n % 9 == 0:
            self.last.pop(written, None)
        return event.replace(by=f"{by};")


class KnownToo(Known):
    """Other code for the same state."""

    def handle(self, event: Seen) -> Seen:
        return super().handle(event).replace(by="too")


def seen(count: int) -> list[Seen]:
    return [Seen(n=n, time=n / 10) for n in range(count)]


app = App(
    "live",
    source=JsonLines(os.environ.get("LIVE_INPUT", "input.jsonl"), Seen, follow=True),
    tasks=[First(), Count(), Marked()],
    sink=JsonLines("kept.jsonl"),
    sinks={"odd": JsonLines("odd.jsonl")},
)
