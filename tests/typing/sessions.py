"""Sessions of an access log: mutable cells, counters, values, `float | None`, iteration."""

from collections import Counter, deque
from collections.abc import Iterator

from secondpass import App, Event, Task, table, value


class Request(Event):
    client: str
    time: float
    path: str


class Session(Event):
    client: str
    start: float
    end: float
    paths: tuple[str, ...]


class Sessions(Task[Request]):
    """Emit a client's session at its first request after `gap_s` of silence."""

    gap_s: float = 1800.0
    sweep_s: float = 600.0

    started = table(str, float)
    ended = table(str, float | None)
    paths = table(str, list[str], factory=list)
    pace_s = table(tuple[str, int], deque[float], factory=lambda: deque(maxlen=16))
    popular = table(str, int, default=0)
    by_status = table(str, Counter[str], factory=Counter)
    swept = value(float, 0.0)
    longest = value(Session | None, None)

    def handle(self, event: Request) -> Iterator[Session]:
        if self.now - self.swept >= self.sweep_s:
            self.swept = self.now
            for client in [c for c, end in self.ended.items() if end is not None and self.over(end)]:
                yield self.close(client)
        end = self.ended.get(event.client)
        if end is not None and self.over(end):
            yield self.close(event.client)
        if end is not None:
            self.pace_s[event.client, len(event.path)].append(event.time - end)
        self.started.setdefault(event.client, event.time)
        self.ended[event.client] = event.time
        self.paths[event.client].append(event.path)
        self.popular[event.path] += 1
        self.by_status[event.client].update([event.path])

    def over(self, end: float) -> bool:
        return self.now - end >= self.gap_s

    def close(self, client: str) -> Session:
        start = self.started.pop(client)
        end = self.ended.pop(client) or start
        session = Session(client=client, start=start, end=end, paths=tuple(self.paths.pop(client, [])))
        if self.longest is None or end - start > self.longest.end - self.longest.start:
            self.longest = session
        return session


app = App(
    "sessions",
    source=[
        Request(client=c, time=t, path=p)
        for c, t, p in [("a", 0.0, "/"), ("a", 9.0, "/x"), ("b", 4000.0, "/")]
    ],
    tasks=[Sessions(gap_s=900.0)],
    sink=print,
)
