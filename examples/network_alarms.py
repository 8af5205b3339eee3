"""The first alarm of each outage in a network, where linked devices that fail together raise hundreds.

`python examples/network_alarms.py alarms.csv links.csv` writes first_alarms.jsonl, and so does
`secondpass run "examples/network_alarms.py:app_for()"` beside files of these names.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from secondpass import App, Event, Task, table
from secondpass.connectors import Csv, JsonLines


class Alarm(Event, rename={"time": "start_timestamp"}):
    alarm_id: int  # what kind of alarm
    device_id: int
    time: float
    end_timestamp: float


class FirstOfLinked(Task[Alarm]):
    """Drop an alarm when one was kept at the same or a linked device at most `window_s` before."""

    links: Mapping[int, frozenset[int]]
    window_s: float = 300.0
    same_kind: bool = False  # whether only alarms of its own kind count

    kept = table(tuple[int, int], float)

    def keys(self, event: Alarm) -> list[tuple[int, int]]:
        kind = event.alarm_id if self.same_kind else 0
        return [(device, kind) for device in (event.device_id, *self.links.get(event.device_id, ()))]

    def handle(self, event: Alarm) -> Alarm | None:
        here, *_ = near = self.keys(event)
        if any(event.time - self.kept.get(cell, float("-inf")) <= self.window_s for cell in near):
            return None
        self.kept[here] = event.time
        return event


def read_links(path: str | Path) -> dict[int, frozenset[int]]:
    links: dict[int, set[int]] = defaultdict(set)
    for a, b in list(csv.reader(Path(path).read_text().splitlines()))[1:]:
        links[int(a)].add(int(b))
        links[int(b)].add(int(a))
    return {device: frozenset(linked) for device, linked in links.items()}


def app_for(alarms: str | Path = "alarms.csv", links: str | Path = "links.csv") -> App:
    tasks = [FirstOfLinked(links=read_links(links), window_s=300.0)]
    return App("alarms", source=Csv(alarms, Alarm), tasks=tasks, sink=JsonLines("first_alarms.jsonl"))


if __name__ == "__main__":
    print(app_for(*sys.argv[1:]).run())
