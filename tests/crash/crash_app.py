"""The app that the crash tests kill: every kind of state and output, errors, counters, several emissions.

The tests copy this file beside its input, so that each run has its own store. Every output carries the
position it was made at (`at`): a test tells from an output alone which record it belongs to.
"""

from collections.abc import Iterator
from typing import Any, Literal

from secondpass import App, Event, Task, Timetable, every, lookup, output, table, timer, value
from secondpass.connectors import Csv, JsonLines


class Reading(Event):
    n: int
    cid: int
    time: float
    value: float


class Scored(Event):
    n: int
    cid: int
    time: float
    value: float
    part: int
    at: int


class Page(Event):
    n: int
    at: int
    time: float
    total: float
    draw: float


class Weight(Event):
    cid: int
    factor: float


def weights(version: int) -> dict[int, Weight]:
    """What the file of weights holds in its n-th version."""
    return {cid: Weight(cid=cid, factor=1.0 + version) for cid in range(40) if (cid + version) % 3}


class Suppress(Task[Reading]):
    """A table of scalars with a time to live, and a counter."""

    window_s: float = 20.0
    last_seen = table(int, float, ttl_s="window_s")

    def keys(self, event: Reading) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Reading) -> Reading | None:
        seen = event.cid in self.last_seen
        self.last_seen[event.cid] = event.time
        if seen and event.n % 4 == 0:
            self.count("suppressed")
            return None
        return event


class Recent(Task[Reading]):
    """A table of lists changed in place; a negative value raises after the change."""

    recent = table(int, list[float], factory=list)
    by_line = table(str, int)

    def keys(self, event: Reading) -> tuple[int | str, ...]:
        return (event.cid, f"line-{event.n % 700}")

    def handle(self, event: Reading) -> Reading:
        recent = self.recent[event.cid]
        recent.append(event.value)
        del recent[:-4]
        line = f"line-{event.n % 700}"
        if line in self.by_line and event.n % 3 == 0:
            del self.by_line[line]
        else:
            self.by_line[line] = event.n
        if event.value < 0:
            raise ValueError(f"a negative value in line {event.n}")
        return event.replace(value=round(sum(recent) / len(recent), 6))


class Split(Task[Reading]):
    """A generator: none, one or two events out of one, and an error after the first."""

    def handle(self, event: Reading) -> Iterator[Scored]:
        for part in range(event.n % 3):
            if part == 1 and event.n % 23 == 0:
                raise RuntimeError(f"line {event.n} cannot be split")
            self.count(f"part {part}")
            yield event.to(Scored, part=part, at=self.position)


class Score(Task[Scored]):
    """A value, a named output, randomness, a lookup; where it raises the event passes."""

    weights = lookup(int, Weight)
    total = value(float, 0.0)
    worst = value(tuple[int, ...], ())
    pages = output(Page)

    def handle(self, event: Scored) -> Scored:
        factor = self.weights[event.cid].factor if event.cid in self.weights else 1.0
        self.total = round(self.total + event.value * factor, 6)
        if event.n % 101 == 0:
            raise KeyError(event.n)
        if event.value > 60:
            self.worst = (*self.worst[-3:], event.n)
        if event.n % 7 == 0:
            draw = self.random.random()
            self.pages.emit(Page(n=event.n, at=self.position, time=self.now, total=self.total, draw=draw))
        return event


class Silence(Task[Scored]):
    """Timers that are set, moved, taken back, fail and set others; and a schedule."""

    after_s: float = 4.0
    fired = table(int, int, default=0)
    pages = output(Page)

    def handle(self, event: Scored) -> Scored:
        if event.n % 5 == 0:
            self.silent.cancel(event.cid)
        else:
            self.silent.at(event.time + self.after_s, event.cid)
        if event.n % 103 == 0:
            raise ValueError(event.n)
        return event

    @timer
    def silent(self, cid: int) -> Scored:
        self.fired[cid] += 1
        self.pages.emit(Page(n=cid, at=self.position, time=self.now, total=0.0, draw=self.random.random()))
        if cid < 1000 and self.fired[cid] % 3:
            self.silent.at(self.now + self.after_s / 2, cid + 1000)
        if self.fired[cid] % 7 == 6:
            raise RuntimeError(f"no timer for {cid}")
        return Scored(n=-1, cid=cid, time=self.now, value=1.0, part=0, at=self.position)

    @every("7s")
    def report(self) -> Scored:
        return Scored(n=-2, cid=0, time=self.now, value=float(len(self.fired)), part=0, at=self.position)


def crash(*tasks: Task[Any], timetables: tuple[Timetable, ...] = ()) -> App:
    return App(
        "crash",
        source=JsonLines("in.jsonl", Reading),
        tasks=tasks,
        timetables=timetables,
        sink=JsonLines("out.jsonl"),
        sinks={"pages": JsonLines("pages.jsonl")},
        lookups={"weights": Csv("weights.csv", Weight, key="cid", reload_s=0.2)},
    )


app = crash(Suppress(), Recent(), Split(), Score().options(on_error="pass"))


# The same app with the same store: where its tasks run changes nothing.


def on_workers() -> App:
    return crash(*(task.options(place="workers") for task in app.tasks))


def mixed() -> App:
    places: tuple[Literal["inline", "workers"], ...] = ("inline", "workers", "inline", "workers")
    return crash(*(task.options(place=place) for task, place in zip(app.tasks, places, strict=True)))


def timed() -> App:
    """The same with timers, whose times come soon enough for a stream that stands still."""
    return crash(*app.tasks, Silence(after_s=0.4))


def clocked() -> App:
    """The same with timers and timetables, which switch two tasks at every minute of the clock."""
    return crash(
        *timed().tasks,
        timetables=(
            Timetable("even", "Recent", start="*/2 * * * *", stop="1-59/2 * * * *"),
            Timetable("third", "Silence", start="*/3 * * * *", stop="1-59/3 * * * *"),
        ),
    )
