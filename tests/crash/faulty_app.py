"""Apps whose tasks do their worker harm where an event says so; in a process without FAULTY set they do none.

The tests copy this file beside its input. `fault` holds words, done in turn; `once:` before one lets it happen to the
first process that meets the event and to no other, `@Batch` behind it in that task only. What a fault changes of the
*answer* (an error, a value that cannot be encoded) happens everywhere, so that the plain loop in the tests' own
process says what must come out.
"""

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from secondpass import ALL, App, Event, Task, every, output, table, timer, value
from secondpass.connectors import JsonLines

HARMFUL = bool(os.environ.get("FAULTY"))
NOTING = os.environ.get("FAULTY") != "quietly"
LIMIT_S = 0.3
MEMORY_BYTES = 160 << 20
_hoard: list[bytearray] = []

# What loading this file does to a process that loads it for workers: the nursery, or a worker by itself.
_load, _line = os.environ.get("FAULTY_LOAD", ""), " ".join(sys.orig_argv)
if _load.startswith("thread"):
    # With a thread at work the nursery cannot fork, and each worker loads the file for itself.
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if (
    "import main_of_worker"
    if _load == "thread raise"
    else "secondpass.engine.nursery"
    if _load == "raise"
    else "\0"
) in _line:
    with Path("loads").open("ab") as _file:
        _file.write(b".")
    raise ImportError("no such library on workers")


class Item(Event):
    n: int
    cid: int
    time: float
    fault: str = ""


class Loose(Event):
    """Has a field that may hold what nothing can encode."""

    n: int
    time: float
    what: Any = None


class Trap(Event):
    """Ends a worker that decodes it."""

    n: int
    cid: int
    time: float
    fault: str = ""

    def __post_init__(self) -> None:
        if HARMFUL and self.fault == "decode" and "secondpass.engine.nursery" in _line:
            note(f"calls-{self.n}")
            os._exit(3)


class Tagged(Event):
    """Has elements in an order of each process's own."""

    n: int
    cid: int
    time: float
    fault: str = ""
    tags: frozenset[str] = frozenset()


class Note(Event):
    n: int
    time: float
    total: int


class Unpicklable(Exception):
    """Holds a lock, and cannot be made from its own arguments."""

    def __init__(self, n: int, what: str) -> None:
        super().__init__(f"{what} in line {n}")
        self.lock = threading.Lock()


def harm(event: Item, task: str = "") -> None:
    """Do what the event says."""
    if HARMFUL and NOTING:
        note(f"calls-{event.n}")
    for word in event.fault.split():
        word, _, place = word.partition("@")
        if place and place != task:
            continue
        once, _, what = word.rpartition(":")
        if what == "unpicklable":
            raise Unpicklable(event.n, "an error with a lock")
        if what == "exit-like":
            raise SystemExit(7)
        if HARMFUL and (not once or first(f"once-{event.n}-{what}")):
            _DO[what](event.n)


def note(name: str) -> None:
    """Make a file a byte longer: tests count calls by it, whatever becomes of the process."""
    with Path(name).open("ab") as file:
        file.write(b".")


def first(name: str) -> bool:
    """Whether nobody was here before."""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def loop(n: int) -> None:
    note(f"looping-{n}")
    while True:
        pass


def slow(n: int) -> None:
    note(f"slow-{n}-{os.getpid()}")
    time.sleep(0.25)


def exit_from_a_thread(n: int) -> None:
    threading.Thread(target=lambda: os._exit(3)).start()
    time.sleep(10)


def exhaust(n: int) -> None:
    _hoard.append(bytearray(1 << 40))


def hog(n: int) -> None:
    """Use more memory than the kernel has for us; where no limit is set, it has."""
    bytearray(1 << 30)


def print_much(n: int) -> None:
    for _ in range(100):
        sys.stdout.write("x" * (1 << 20))


_DO: dict[str, Callable[[int], object]] = {
    "segv": lambda n: ctypes.string_at(0),
    "exit": lambda n: os._exit(3),
    "abort": lambda n: os.abort(),
    "loop": loop,
    "memory": exhaust,
    "hog": hog,
    "print": print_much,
    "slow": slow,
    "odd": lambda n: None,
    "nap": lambda n: time.sleep(0.003),
    "thread-exit": exit_from_a_thread,
}


def near(cid: int) -> tuple[int, ...]:
    return (cid - 1, cid, cid + 1)


class Keyed(Task[Item]):
    """Touches its own key and both neighbours'."""

    counts = table(int, int, default=0)
    recent = table(int, list[int], factory=list)
    notes = output(Note)

    def keys(self, event: Item) -> tuple[int, ...]:
        return near(event.cid)

    def handle(self, event: Item) -> Item | None:
        for cid in near(event.cid):
            self.counts[cid] += 1
        recent = self.recent[event.cid]
        recent.append(event.n)
        del recent[:-4]
        harm(event, "Keyed")
        self.count("handled")
        if event.n % 5 == 0:
            self.notes.emit(Note(n=event.n, time=self.now, total=self.counts[event.cid]))
        return None if self.counts[event.cid] % 7 == 0 and not event.fault else event


class Barrier(Keyed):
    """Looks at all of its state now and then."""

    def keys(self, event: Item) -> Any:
        return ALL if event.n % 50 == 0 else super().keys(event)

    def handle(self, event: Item) -> Item | None:
        if event.n % 50 == 0:
            self.notes.emit(Note(n=event.n, time=self.now, total=sum(self.counts.values())))
            for cid in list(self.recent):
                if cid % 3 == event.n % 3:
                    del self.recent[cid]
        return super().handle(event)


class Stateless(Task[Item]):
    def handle(self, event: Item) -> Iterator[Item]:
        harm(event)
        for part in range(event.n % 3):
            yield event.replace(n=event.n * 10 + part, fault="")


class Batch(Task[Item]):
    def handle_batch(self, events: list[Item]) -> list[Item | None]:
        for event in events:
            harm(event, "Batch")
        return [
            None if event.n % 11 == 0 and not event.fault else event.replace(cid=event.cid + 100)
            for event in events
        ]


class Serial(Task[Item]):
    """State without keys."""

    total = value(int, 0)
    by_cid = table(int, int, default=0)

    def handle(self, event: Item) -> Item:
        self.total += event.n
        self.by_cid[event.cid] += self.total
        harm(event, "Serial")
        return event.replace(cid=self.by_cid[event.cid] % 1000)


class Hungry(Task[Item]):
    """Keeps some memory of every event that one process handles, of the little that there is."""

    bytes_each: int = 0
    total = value(int, 0)

    def setup(self) -> None:
        if HARMFUL:
            limit_memory()

    def handle(self, event: Item) -> Item:
        self.total += 1
        harm(event)
        if HARMFUL:
            _hoard.append(bytearray(self.bytes_each))
        return event


def limit_memory() -> None:
    """Let this process have little more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Odd(Task[Item]):
    """Returns what cannot be encoded, where the event says so."""

    def handle(self, event: Item) -> Loose:
        harm(event)
        what = threading.Lock() if event.fault == "odd" else None
        return Loose(n=event.n, time=event.time, what=what)


class Alone(Task[Item]):
    """Notes in which processes it was set up."""

    def setup(self) -> None:
        if HARMFUL:
            note(f"setup-{os.getpid()}")

    def handle(self, event: Item) -> Item:
        harm(event)
        return event


class AloneKeyed(Alone):
    counts = table(int, int, default=0)

    def keys(self, event: Item) -> tuple[int, ...]:
        return (event.cid,)

    def handle(self, event: Item) -> Item:
        self.counts[event.cid] += 1
        harm(event)
        return event


class Slow(Alone):
    """Takes its time to be set up."""

    def setup(self) -> None:
        super().setup()
        if HARMFUL:
            time.sleep(0.05)
            note(f"ready-{os.getpid()}")

    def handle(self, event: Item) -> Item:
        if HARMFUL:
            note(f"worked-{os.getpid()}")
            time.sleep(0.003)
        return event


class Unready(Task[Item]):
    """Cannot be set up."""

    how: str = "raise"

    def setup(self) -> None:
        if not HARMFUL:
            return
        note(f"setup-{os.getpid()}")
        if self.how == "raise":
            raise RuntimeError("no such model")
        if self.how == "segv":
            ctypes.string_at(0)
        os._exit(5)

    def handle(self, event: Item) -> Item:
        return event


class First(Task[Item]):
    """Cheap, before the task that matters: it runs in the hub."""

    seen = table(int, int, default=0)

    def handle(self, event: Item) -> Item:
        self.seen[event.cid] += 1
        if event.fault.endswith("@First"):
            harm(event, "First")
        return event


class Clocked(Task[Item]):
    """Does harm in `handle` (`@Clocked`), or by a timer two and a half seconds later (`@Timer`)."""

    counts = table(int, int, default=0)
    waiting = table(int, str)
    notes = output(Note)

    def handle(self, event: Item) -> Item | list[Item]:
        self.counts[event.cid] += 1
        self.waiting[event.n] = event.fault
        self.due.at(event.time + 2.5, event.n)
        harm(event, "Clocked")
        return [event, event] if event.n % 4 == 0 else event

    @timer
    def due(self, n: int) -> Item:
        found = Item(n=n, cid=-1, time=self.now, fault=self.waiting.pop(n))
        self.counts[-1] += 1
        self.notes.emit(Note(n=n, time=self.now, total=self.counts[-1]))
        harm(found, "Timer")
        self.count("fired")
        return found

    @every(10.0)
    def sum_up(self) -> Item:
        return Item(n=-1, cid=self.counts[-1], time=self.now)


class Last(Task[Item]):
    """Hears what the others put out."""

    heard = table(int, int, default=0)

    def handle(self, event: Item) -> Item:
        self.heard[event.n] += 1
        if event.fault.endswith("@Last"):
            harm(event, "Last")
        return event


class Trapped(Task[Trap]):
    total = value(int, 0)

    def handle(self, event: Trap) -> Trap:
        self.total += 1
        return event


class Tags(Task[Tagged]):
    counts = table(str, int, default=0)

    def keys(self, event: Tagged) -> frozenset[str]:
        return event.tags

    def handle(self, event: Tagged) -> Item:
        for tag in event.tags:
            self.counts[tag] += 1
        found = event.to(Item)
        harm(found)
        return found


def made(name: str, *tasks: Task[Any], kind: type[Event] = Item, **sinks: Any) -> App:
    return App(
        name,
        source=JsonLines("in.jsonl", kind),
        tasks=tasks,
        sink=JsonLines(f"{name}.jsonl"),
        sinks={stream: JsonLines(f"{name}-{stream}.jsonl") for stream in sinks},
    )


keyed = made("keyed", First(), Keyed().options(place="workers"), notes=True)
bounded = made("bounded", First(), Keyed().options(place="workers", limit_s=LIMIT_S), notes=True)
passing = made(
    "passing", First(), Keyed().options(place="workers", on_error="pass", limit_s=LIMIT_S), notes=True
)
stopping = made("stopping", First(), Keyed().options(place="workers", on_error="stop"), notes=True)
barrier = made("barrier", First(), Barrier().options(place="workers"), notes=True)
stateless = made("stateless", Stateless().options(place="workers"))
batch = made("batch", Batch().options(place="workers"))
serial = made("serial", Serial().options(place="workers"))
leaking = made("leaking", Hungry(bytes_each=12 << 20).options(place="workers"))
limited = made("limited", Hungry().options(place="workers"))
clocked = made("clocked", First(), Clocked(), Last(), notes=True)
clocked_passing = made(
    "clocked_passing",
    First(),
    Clocked().options(on_error="pass"),
    Last().options(on_error="pass"),
    notes=True,
)
clocked_stopping = made("clocked_stopping", First(), Clocked().options(on_error="stop"), Last(), notes=True)
trapped = made("trapped", Trapped().options(place="workers"), kind=Trap)
tagged = made("tagged", Tags().options(place="workers"), kind=Tagged)
odd = made("odd", Odd().options(place="workers"))
slow_setup = made("slow_setup", Slow().options(place="workers"))
alone = made("alone", Alone().options(copies=1), Stateless().options(place="workers"))
alone_keyed = made("alone_keyed", AloneKeyed().options(copies=1))
everything = made(
    "everything",
    First(),
    Keyed().options(place="workers"),
    Batch().options(place="workers"),
    Serial().options(place="workers"),
    notes=True,
)
soaked = made(
    "soaked",
    First(),
    *(task.options(place="workers", limit_s=1.0) for task in (Keyed(), Batch(), Serial())),
    notes=True,
)
unready = {
    how: made(f"unready-{how}", First(), Unready(how=how).options(place="workers"))
    for how in ("raise", "segv", "exit")
}
unready_raise, unready_segv, unready_exit = unready.values()
