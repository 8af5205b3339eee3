"""Sessions from a web server's access log: what one client asked for, until it paused for half an hour.

`secondpass run examples/access_log_sessions.py` writes sessions.jsonl.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from secondpass import App, Event, Task, table, value
from secondpass.connectors import JsonLines

LINE = re.compile(r'(?P<client>\S+) \S+ \S+ \[(?P<time>[^]]+)\] "\S+ (?P<path>\S+)[^"]*" \d+ ')


class Request(Event):
    client: str
    time: float
    path: str


class Session(Event):
    client: str
    start: float
    end: float
    entry: str  # the first page
    requests: int = 0


class Sessions(Task[Request]):
    """Emit a session once its client has paused for `gap_s`, looking every `sweep_s`."""

    gap_s: float = 1800.0
    sweep_s: float = 60.0
    going = table(str, Session)
    swept = value(float, 0.0)

    def handle(self, event: Request) -> Iterator[Session]:
        old = self.going.get(event.client)
        if event.time - self.swept >= self.sweep_s or (old and event.time - old.end >= self.gap_s):
            self.swept = event.time
            for client in [c for c, s in self.going.items() if event.time - s.end >= self.gap_s]:
                yield self.going.pop(client)
        new = Session(client=event.client, start=event.time, end=event.time, entry=event.path)
        old = self.going.get(event.client, new)
        self.going[event.client] = old.replace(end=event.time, requests=old.requests + 1)


def request(line: str) -> Request | str:
    """What a line means; one that is no request stays as it is, and becomes a dead letter."""
    if not (found := LINE.match(line)):
        return line
    time = datetime.strptime(found["time"], "%d/%b/%Y:%H:%M:%S %z").timestamp()
    return Request(found["client"], time, found["path"])


lines = (Path(__file__).parent / "data" / "access.log").read_text().splitlines()
app = App("sessions", source=[*map(request, lines)], tasks=[Sessions()], sink=JsonLines("sessions.jsonl"))
