"""Alarms of linked devices: a setting that is a mapping, several event types in one stream, aware times."""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from secondpass import ALL, App, Event, Task, output, table


class Place(msgspec.Struct, frozen=True):
    lat: float
    lon: float


class Raised(Event, tag=True, rename={"time": "raised_at"}):
    device: int
    time: datetime
    severity: int = 0
    place: Place | None = None
    parts: tuple[str, ...] = ()


class Cleared(Event, tag=True, rename={"time": "cleared_at"}):
    device: int
    time: datetime


class Outage(Event):
    device: int
    time: float
    devices: frozenset[int]


class Correlate(Task[Raised | Cleared]):
    """Pass the first alarm of a group of linked devices; page when three of them are down."""

    links: Mapping[int, frozenset[int]]
    page_at: int = 3

    down = table(int, Raised)
    outages = output(Outage)

    def keys(self, event: Raised | Cleared) -> frozenset[int]:
        return ALL if isinstance(event, Cleared) else self.group(event.device)

    def group(self, device: int) -> frozenset[int]:
        return self.links.get(device, frozenset()) | {device}

    def handle(self, event: Raised | Cleared) -> Raised | None:
        if isinstance(event, Cleared):
            self.down.pop(event.device, None)
            for device, alarm in list(self.down.items()):
                if alarm.severity == 0 and alarm.place is None:
                    del self.down[device]
            return None
        known = frozenset(device for device in self.group(event.device) if device in self.down)
        self.down[event.device] = event
        if len(known) + 1 == self.page_at:
            self.outages.emit(Outage(device=event.device, time=self.now, devices=known | {event.device}))
        return None if known else event


START = datetime(2026, 3, 1, tzinfo=UTC)

app = App(
    "alarms",
    source=[Raised(device=d, time=START, severity=2) for d in (1, 2, 3)] + [Cleared(device=1, time=START)],
    tasks=[Correlate(links={1: frozenset({2, 3}), 2: frozenset({1}), 3: frozenset({1, 2})})],
    sinks={"outages": print},
)
