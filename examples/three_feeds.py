"""Feed a stream from a thread, from a process and from jobs of a pool: all with the same call, all at once.

`secondpass run examples/three_feeds.py` writes alarms.jsonl; `python examples/three_feeds.py` does the same.
"""

import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines


class Reading(Event):
    feed: str
    n: int
    value: float


class Alarm(Task[Reading]):
    """Pass a value that is higher than all of its feed before."""

    highest = table(str, float, default=0.0)

    def keys(self, event: Reading) -> tuple[str, ...]:
        return (event.feed,)

    def handle(self, event: Reading) -> Reading | None:
        if event.value <= self.highest[event.feed]:
            return None
        self.highest[event.feed] = event.value
        return event


app = App("three-feeds", tasks=[Alarm()], sink=JsonLines("alarms.jsonl"))


def feed(name: str, count: int) -> None:
    """What a gateway would do with what it receives: durable when `append` returns, so it may be acknowledged."""
    for n in range(0, count, 10):
        app.log.append([Reading(feed=name, n=i, value=float(i * 7919 % 1000)) for i in range(n, n + 10)])


@app.source
def feeds() -> None:
    """Starts the three and ends with them; feeds that go on for ever need no such function."""
    spawn = get_context("spawn")  # a process of its own; a fork may be used too
    thread = threading.Thread(target=feed, args=("thread", 200))
    process = spawn.Process(target=feed, args=("process", 200))
    thread.start()
    process.start()
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        list(pool.map(feed, ["job 1", "job 2", "job 3"], [200] * 3))
    thread.join()
    process.join()


if __name__ == "__main__":
    app.run()
