"""A quick start: untyped events, bare tasks, functions without a class in sight."""

from secondpass import App, Task, UntypedEvent, output, table, value


class First(Task):
    """Pass the first event of every sensor in `window_s`."""

    window_s: float = 60.0
    known = table(str, bool, ttl_s="window_s")
    total = value(int, 0)
    repeats = output()

    def handle(self, event: UntypedEvent) -> UntypedEvent | None:
        self.total += 1
        if event["sensor"] in self.known:
            self.repeats.emit(event)
            return None
        self.known[event["sensor"]] = True
        return event.replace(first=True)


def slow(event: UntypedEvent) -> UntypedEvent | None:
    return event if event["speed"] < 40.0 else None


app = App(
    "untyped",
    source=[{"sensor": "a", "time": 0.0, "speed": 30.0}, {"sensor": "a", "time": 1.0, "speed": 20.0}],
    tasks=[slow, First(window_s=30.0), lambda event: event.replace(level="high")],
    sink=print,
)
