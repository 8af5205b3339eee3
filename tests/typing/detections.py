"""Roadside detections: a keyed table with a time to live, and tasks that are plain functions."""

from collections.abc import Mapping
from enum import Enum

from secondpass import App, Event, Task, table


class Kind(Enum):
    STOPPED = "stopped"
    DEBRIS = "debris"


class Detection(Event, frozen=True):
    cid: int
    time: float
    kind: Kind = Kind.STOPPED
    confidence: float | None = None
    labels: Mapping[str, str] = {}  # read-only, copied for every event


class SuppressNeighbours(Task[Detection]):
    """Drop a detection when the same or a neighbouring camera reported within `window_s`."""

    window_s: float = 300.0
    reach: int = 1
    last_seen = table(int, float, ttl_s="window_s")

    def keys(self, event: Detection) -> tuple[int, ...]:
        return tuple(range(event.cid - self.reach, event.cid + self.reach + 1))

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        for cid in self.keys(event):
            self.last_seen[cid] = event.time
        if last is not None:
            self.count("suppressed")
            self.log.debug("camera %d: %.1f s after the last one", event.cid, event.time - last)
            return None
        return event


def sure(event: Detection) -> Detection | None:
    return event if event.confidence is None or event.confidence > 0.5 else None


def label(event: Detection) -> Detection:
    return event.replace(labels={**event.labels, "kind": event.kind.value.upper()})


app = App(
    "detections",
    source=[
        Detection(cid=c, time=float(t), confidence=p)
        for t, (c, p) in enumerate([(1, 0.9), (2, 0.8), (9, 0.1)])
    ],
    tasks=[sure, SuppressNeighbours(window_s=60.0).options(on_error="stop"), label],
    sink=print,
)
