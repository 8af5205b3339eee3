"""One report for each incident on a road, however many cameras see it and however often they say so.

`secondpass run examples/roadside_detections.py` writes kept.jsonl.
"""

from pathlib import Path

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines


class Detection(Event):
    cid: int  # camera position
    time: float  # event time, seconds


class SuppressNeighbours(Task[Detection]):
    """Drop a detection when the same or a neighbouring camera reported within `window_s`."""

    window_s: float = 300.0
    last_seen = table(int, float, ttl_s="window_s")

    def keys(self, event: Detection) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        for cid in self.keys(event):
            self.last_seen[cid] = event.time
        return event if last is None else None


app = App(
    "roadside",
    source=JsonLines(Path(__file__).parent / "data" / "detections.jsonl", Detection),
    tasks=[SuppressNeighbours(window_s=300.0)],
    sink=JsonLines("kept.jsonl"),
)
