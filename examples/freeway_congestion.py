"""Where congestion begins on a network of freeways, from the five-minute speeds of its loop detectors.

`python examples/freeway_congestion.py speeds.csv weights.csv` prints each onset that no neighbour told of.
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from secondpass import App, Event, Task, table


class Speed(Event):
    sensor: int  # its column in the file
    time: float
    mph: float


class FirstOnset(Task[Speed]):
    """Pass a speed that fell below `limit_mph`, unless one was passed from the same or a neighbouring
    sensor at most `window_s` before."""

    neighbours: Mapping[int, frozenset[int]]  # each sensor among its own
    limit_mph: float = 40.0
    window_s: float = 900.0
    slow = table(int, bool, default=True)
    passed = table(int, float)

    def keys(self, event: Speed) -> frozenset[int]:
        return self.neighbours[event.sensor]

    def handle(self, event: Speed) -> Speed | None:
        was_slow, is_slow = self.slow[event.sensor], event.mph < self.limit_mph
        self.slow[event.sensor] = is_slow
        if was_slow or not is_slow:
            return None
        if any(event.time - self.passed.get(near, -1e9) <= self.window_s for near in self.keys(event)):
            return None
        self.passed[event.sensor] = event.time
        return event


def numbers(path: str, header: int) -> list[list[float]]:
    rows = [*csv.reader(Path(path).read_text().splitlines())][header:]
    return [[float(cell) for cell in row] for row in rows]


def app_for(speeds: str, weights: str, window_s: float = 900.0) -> App:
    near = {i: frozenset(j for j, w in enumerate(row) if w > 0) for i, row in enumerate(numbers(weights, 0))}
    steps = enumerate(numbers(speeds, 1))
    events = [Speed(i, 300.0 * step, mph) for step, row in steps for i, mph in enumerate(row)]
    tasks = [FirstOnset(neighbours=near, window_s=window_s)]
    return App("congestion", source=events, tasks=tasks, sink=print)


if __name__ == "__main__":
    app_for(sys.argv[1], sys.argv[2]).run()
