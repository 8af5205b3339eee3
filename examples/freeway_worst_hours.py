"""The worst hours of a network of freeways: each new lowest mean speed of any sensor, as it happens.

`python examples/freeway_worst_hours.py speeds.csv` writes worst_hours.jsonl.
"""

import csv
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from secondpass import App, Event, Task, output, table, value
from secondpass.connectors import JsonLines


class Speed(Event):
    sensor: str
    time: float
    mph: float


class WorstHours(Task[Speed]):
    """Put out the mean of a sensor's last `readings` speeds whenever none was lower before."""

    readings: int = 12
    last = table(str, deque[float], factory=deque)  # changed in place, and kept like everything else
    lowest = value(float, 1000.0)
    worst = output(Speed)

    def handle(self, event: Speed) -> Speed:
        last = self.last[event.sensor]
        last.append(event.mph)
        if len(last) > self.readings:
            last.popleft()
        mean = sum(last) / self.readings
        if len(last) == self.readings and mean < self.lowest:
            self.lowest = mean
            self.worst.emit(event.replace(mph=mean))
        return event


def speeds(path: str | Path) -> Iterator[Speed]:
    with Path(path).open(newline="") as file:
        for step, row in enumerate(csv.DictReader(file)):
            for sensor, mph in row.items():
                yield Speed(sensor=sensor, time=300.0 * step, mph=float(mph))


def app_for(path: str | Path) -> App:
    worst = JsonLines("worst_hours.jsonl")
    return App("worst-hours", source=partial(speeds, path), tasks=[WorstHours()], sinks={"worst": worst})


if __name__ == "__main__":
    print(app_for(sys.argv[1]).run())
