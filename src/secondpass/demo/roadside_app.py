"""Incidents on a motorway, from the reports of its cameras: an app to read, copy and change.

A detector on every camera reports what looks like an incident, and again every two seconds while it lasts.
Neighbouring cameras see the same incident; glare and shadows make reports of nothing.
"""

from collections import deque
from pathlib import Path

from secondpass import App, Event, Task, output, table
from secondpass.connectors import JsonLines


class Detection(Event):
    """What a detector reports."""

    cid: int  # camera: its number along the road, plus 1000 on the other carriageway
    time: float  # seconds since midnight
    kind: str  # what it looks like


class Page(Detection):
    """A call to a person."""

    since: float  # when the incident was confirmed


class NearbyTask(Task[Detection]):
    """A task that touches the cells of an event's camera and of its neighbours."""

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)


class ConfirmByRepetition(NearbyTask):
    """Drop a report until there are `reports` of them, here or next door, within `within_s`."""

    reports: int = 8
    within_s: float = 30.0
    recent = table(int, deque[float], factory=deque)

    def handle(self, event: Detection) -> Detection | None:
        begin = event.time - self.within_s
        here = self.recent[event.cid]
        here.append(event.time)
        while here[0] <= begin:
            here.popleft()
        seen = sum(time > begin for cid in self.keys(event) for time in self.recent.get(cid, ()))
        return event if seen >= self.reports else None


class EscalateByDuration(NearbyTask):
    """Page once for an incident that lasts longer than `after_s`; pauses up to `gap_s` belong to it."""

    after_s: float = 300.0
    gap_s: float = 300.0
    since = table(int, float, ttl_s="gap_s")
    paged = table(int, bool, ttl_s="gap_s")
    pages = output(Page)

    def handle(self, event: Detection) -> Detection:
        near = self.keys(event)
        since = min(self.since.get(cid, event.time) for cid in near)
        paged = any(cid in self.paged for cid in near)
        if not paged and event.time - since > self.after_s:
            self.pages.emit(event.to(Page, since=since))
            paged = True
        self.since[event.cid] = since
        if paged:
            for cid in near:
                self.paged[cid] = True
        return event


class SuppressNeighbours(NearbyTask):
    """Drop a report when this camera or a neighbour reported within `window_s`."""

    window_s: float = 300.0
    last = table(int, float, ttl_s="window_s")

    def handle(self, event: Detection) -> Detection | None:
        known = any(cid in self.last for cid in self.keys(event))
        self.last[event.cid] = event.time
        return None if known else event


def make_app(folder: Path) -> App:
    """The app over the files in a folder."""
    # Confirmation comes first, so that a false report neither pages nor hides a true one. Suppression
    # comes last: repetition is counted and duration measured while the repeats are still there.
    return App(
        "roadside",
        source=JsonLines(folder / "detections.jsonl", Detection),
        tasks=[ConfirmByRepetition(), EscalateByDuration(), SuppressNeighbours()],
        sink=JsonLines(folder / "incidents.jsonl"),
        sinks={"pages": JsonLines(folder / "pages.jsonl")},
    )


app = make_app(Path(__file__).parent)
