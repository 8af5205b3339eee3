"""The app that the crash tests of the log kill: it takes its log, and counts what it takes."""

from typing import Any

from secondpass import App, Event, Task, table, value
from secondpass.connectors import JsonLines


class Sent(Event):
    n: int
    by: str
    time: float


class Seen(Event):
    n: int
    by: str
    at: int
    total: int
    before: int


class Number(Task[Sent]):
    """Each event gets its position, its number among all, and that of its producer's last one."""

    total = value(int, 0)
    last = table(str, int, default=-1)

    def handle(self, event: Sent) -> Seen:
        self.total += 1
        before, self.last[event.by] = self.last[event.by], event.n
        if event.n % 17 == 16:
            raise ValueError(f"number {event.n} of {event.by}")
        return event.to(Seen, at=self.position, total=self.total, before=before)


def pushed(**options: Any) -> App:
    return App("pushed", tasks=[Number()], sink=JsonLines("out.jsonl"), **options)


app = pushed(keep_log="4kB")
