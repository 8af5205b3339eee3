"""What an event on its way to a worker and back costs: the hub's CPU, the worker's, a start, a large array.

    python benchmarks/shipping.py [--events N] [--rounds N] [--profile]

The hub's CPU is that of its own process inside `Chain.run`, in a real run on two workers: reading, committing and
delivering are outside of it. The split of that time comes from a run in which each step is timed, less the clock's
own cost. The worker's is that of answering the very bundles of such a run again, with tasks that do no work.
`--profile` adds what cProfile says of both.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from harness import machine
from heavy_tasks import Detection, Heavy, HeavySuppress, spins_for, write_events

from secondpass import App
from secondpass.connectors import JsonLines
from secondpass.engine import bundle, channel, flow, lanes
from secondpass.engine.crew import Crew
from secondpass.engine.executor import Done, Parcel
from secondpass.engine.flow import Flow
from secondpass.engine.lanes import WorkerLane
from secondpass.engine.loop import Hub
from secondpass.engine.recipe import recipe_for
from secondpass.engine.schedule import Schedule
from secondpass.engine.worker import Worker
from secondpass.engine.workers import LocalProcesses

WORKERS = 2


class Shipped(NamedTuple):
    """What a run spent on what it sent to workers."""

    events: int
    bundles: int
    bytes: int
    hub_s: float
    """CPU of the hub in `Chain.run`."""
    whole_s: float
    """CPU of the hub from the first event to the last, reading and committing too."""
    others_s: float
    """CPU of nursery and workers."""


class Watched:
    """What `Chain.run` takes in a run: CPU of this thread, and wall time."""

    def __init__(self, profile: cProfile.Profile | None = None) -> None:
        self.cpu_s = self.wall_s = 0.0
        self.hub: Hub | None = None
        self._profile = profile

    def on_start(self, hub: Hub) -> None:
        run, profile = hub.chain.run, self._profile

        def timed(epoch: Any, careful: bool) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            if profile is not None:
                profile.enable()
            try:
                return run(epoch, careful)
            finally:
                if profile is not None:
                    profile.disable()
                self.cpu_s += time.thread_time() - cpu
                self.wall_s += time.perf_counter() - wall

        hub.chain.run = timed
        self.hub = hub


def ship(directory: Path, tasks: list[Any], profile: cProfile.Profile | None = None) -> Shipped:
    """Run an app on workers, and see what it costs this process."""
    store = Path(tempfile.mkdtemp(dir=directory))
    source = JsonLines(directory / "events.jsonl", Detection)
    app = App("ship", source=source, tasks=tasks, sink=JsonLines(store / "out.jsonl"))
    watched = Watched(profile)
    began, others = time.process_time(), _others_s()
    app.run(store=store / "store", workers=WORKERS, on_start=watched.on_start)
    whole = time.process_time() - began
    hub = watched.hub
    assert hub is not None
    assert hub.chain.crew is not None
    gauges = hub.chain.placement.gauges
    shipped = sum(gauge.shipped for gauge in gauges)
    sent = sum(gauge.bytes for gauge in gauges)
    bundles = hub.chain.crew.next_number() - 1
    return Shipped(shipped, bundles, sent, watched.cpu_s, whole, _others_s() - others)


def _others_s() -> float:
    """CPU of processes that have ended: the nursery, which waits for its workers before it ends."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---------------------------------------------------------------- where the hub's time goes


class Split:
    """CPU seconds by step, each without what the steps inside it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._inside = [0.0]

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clock, inside, seconds, calls = time.thread_time, self._inside, self.seconds, self.calls

        def timed(*given: Any, **named: Any) -> Any:
            inside.append(0.0)
            began = clock()
            try:
                return function(*given, **named)
            finally:
                took = clock() - began
                own = took - inside.pop()
                inside[-1] += took
                seconds[name] = seconds.get(name, 0.0) + own
                calls[name] = calls.get(name, 0) + 1

        return timed


STEPS: list[tuple[Any, str, str]] = [
    (Flow, "run", "the flow's own loop, choosing workers"),
    (WorkerLane, "give", "taking events in: `keys`, lists"),
    (Schedule, "add", "dependency order: adding"),
    (Schedule, "take", "dependency order: choosing a bundle"),
    (WorkerLane, "message", "bundle: positions, keys"),
    (WorkerLane, "_cells", "bundle: finding its cells"),
    (lanes, "encode_events", "bundle: encoding"),
    (lanes, "encode_keys", "bundle: encoding keys"),
    (lanes, "parcel", "bundle: encoding"),
    (LocalProcesses, "submit", "sending: bookkeeping"),
    (channel._Outgoing, "write", "sending: the system"),
    (LocalProcesses, "wait", "waiting: select, bookkeeping"),
    (channel.Channel, "receive", "receiving: the system, framing"),
    (flow, "decode_answer", "answer: decoding"),
    (WorkerLane, "receive", "answer: its cells into the epoch's"),
    (Schedule, "done", "dependency order: what is done"),
    (WorkerLane, "step", "releasing in order"),
]


@contextmanager
def splitting(split: Split) -> Generator[None]:
    """Time each step of the flow."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in STEPS]
    for (owner, name, function), (_, _, step) in zip(kept, STEPS, strict=True):
        setattr(owner, name, split.timing(step, function))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def clock_cost_s() -> float:
    """What timing one call adds to the step that it is in: less than all of it is counted twice."""
    split = Split()
    timed = split.timing("nothing", lambda: None)
    began = time.thread_time()
    for _ in range(20_000):
        timed()
    return (time.thread_time() - began) / 20_000


# ---------------------------------------------------------------- the worker


def worker_us(directory: Path, task: Any, profile: Any = None) -> tuple[float, int]:
    """CPU of a worker for one event, answering the bundles that the first of them got; and how many events."""
    kept: list[Parcel] = []
    submit = Crew.submit

    def keeping(self: Crew, worker: int, flight: Any, message: Parcel, limit_s: float | None) -> None:
        if worker == 0:
            kept.append(message)
        submit(self, worker, flight, message, limit_s)

    Crew.submit = keeping  # type: ignore[method-assign]  # notes what goes out
    try:
        ship(directory, [task])
    finally:
        Crew.submit = submit  # type: ignore[method-assign]  # as it was
    idle = type(task)(spins=0).options(place="workers")
    best, events = float("inf"), sum(len(bundle.decode_bundle(m.body).positions) for m in kept)
    for i in range(4):
        cells = memoryview(bytearray(16)).cast("q")

        def mark(number: int, index: int, cells: memoryview = cells) -> None:
            cells[0], cells[1] = number, index

        worker = Worker((idle,), mark)
        profiled = profile if i == 3 else None
        began = time.thread_time()
        if profiled is not None:
            profiled.enable()
        for message in kept:
            worker.answer(message)
        if profiled is not None:
            profiled.disable()
        else:
            best = min(best, time.thread_time() - began)
    return best / events * 1e6, events


# ---------------------------------------------------------------- a start


def starts_ms(directory: Path, rounds: int) -> tuple[list[float], list[float]]:
    """From a worker's first bundle to its answer: with the nursery's start, and once that is there."""
    (directory / "one.jsonl").write_bytes((directory / "events.jsonl").read_bytes()[:100])
    task = Heavy(spins=0).options(place="workers")
    app = App("start", source=JsonLines(directory / "one.jsonl", Detection), tasks=[task])
    message: list[Parcel] = []
    submit = Crew.submit

    def keeping(self: Crew, worker: int, flight: Any, made: Parcel, limit_s: float | None) -> None:
        message.append(made)
        submit(self, worker, flight, made, limit_s)

    Crew.submit = keeping  # type: ignore[method-assign]  # notes what goes out
    try:
        app.run(store=None, workers=1)
    finally:
        Crew.submit = submit  # type: ignore[method-assign]  # as it was
    number = bundle.decode_bundle(message[0].body).number
    cold, warm = list[float](), list[float]()
    for _ in range(rounds):
        workers = LocalProcesses(recipe_for(app), 4)
        try:
            for worker in range(4):
                began = time.perf_counter()
                workers.submit(worker, number, message[0])
                (found,) = workers.wait(30.0)
                assert isinstance(found, Done)
                (warm if worker else cold).append((time.perf_counter() - began) * 1000)
        finally:
            workers.close()
    return cold, warm


def bare_ms(code: str) -> float:
    """How long a new Python takes for some code: what no start can be faster than."""
    taken: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", code], check=True)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


# ---------------------------------------------------------------- large arrays


def arrays(directory: Path, megabytes: int, events: int) -> list[str]:
    """Events with a large array there and back, beside copying its bytes once."""
    try:
        import numpy
    except ImportError:
        return ["skipped: numpy is not installed here"]
    from heavy_arrays import Background, Frame, Look, Step

    array = numpy.arange(megabytes * 125_000, dtype="f8")
    copies: list[float] = []
    for _ in range(9):
        began = time.perf_counter()
        array.copy()
        copies.append(time.perf_counter() - began)
    copy_ms = statistics.median(copies) * 1000
    rows: list[str] = []
    for name, back in (("there", False), ("there and back", True)):
        frames = [Frame(n=n, time=float(n), pixels=array) for n in range(events)]
        watched, seen = Watched(), list[int]()
        task = Look(back=back).options(place="workers")

        def sink(event: Any, seen: list[int] = seen) -> None:
            seen.append(event.n)

        app = App("arrays", source=frames, tasks=[task], sink=sink)
        app.run(store=None, workers=WORKERS, on_start=watched.on_start)
        assert len(seen) == (events if back else 0)
        wall_ms, hub_ms = watched.wall_s * 1000 / events, watched.cpu_s * 1000 / events
        rows.append(
            f"| {megabytes} MB array, {name} | {wall_ms:.1f} ms | {hub_ms:.1f} ms | {copy_ms:.1f} ms "
            f"| {wall_ms / copy_ms:.1f} x |"
        )
    for name, back in (("there", False), ("there and back", True)):
        watched = Watched()
        steps = [Step(n=n, time=float(n)) for n in range(events)]
        task = Background(back=back, size=len(array)).options(place="workers")
        App("cells", source=steps, tasks=[task]).run(store=None, workers=WORKERS, on_start=watched.on_start)
        wall_ms, hub_ms = watched.wall_s * 1000 / events, watched.cpu_s * 1000 / events
        rows.append(
            f"| {megabytes} MB cell, {name} | {wall_ms:.1f} ms | {hub_ms:.1f} ms | {copy_ms:.1f} ms "
            f"| {wall_ms / copy_ms:.1f} x |"
        )
    return rows


# ---------------------------------------------------------------- all of it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secondpass-bench-") as name:
        report(Path(name), given.events, given.rounds, profile=given.profile)


def report(directory: Path, events: int, rounds: int, *, profile: bool) -> None:
    write_events(directory / "events.jsonl", events)
    spins = spins_for(1e-4)
    print(
        f"{events:,} events of 100 bytes, {rounds} rounds, {spins} turns take 0.1 ms; {machine()}\n\n"
        "| events on their way | a bundle | bytes | hub, us of CPU | all of the hub | requirement | aim |\n"
        "|-|-|-|-|-|-|-|",
        flush=True,
    )
    found: dict[str, Shipped] = {}
    # How large the bundles are follows from what an event costs.
    for title, task in (
        ("neighbour keys, 0.1 ms", HeavySuppress(spins=spins)),
        ("neighbour keys, 0.02 ms", HeavySuppress(spins=spins // 5)),
        ("neighbour keys, 0.5 ms", HeavySuppress(spins=spins * 5)),
        ("no state, 0.1 ms", Heavy(spins=spins)),
    ):
        write_events(directory / "events.jsonl", events // 4 if title.endswith("0.5 ms") else events)
        runs = [ship(directory, [task.options(place="workers")]) for _ in range(rounds)]
        run = sorted(runs, key=lambda r: r.hub_s / r.events)[len(runs) // 2]
        found[title] = run
        goal = "15 us | 8 us" if title == "neighbour keys, 0.1 ms" else "|"
        print(
            f"| {title} | {run.events / run.bundles:.0f} | {run.bytes / run.events:.0f} "
            f"| {run.hub_s / run.events * 1e6:.1f} | {run.whole_s / run.events * 1e6:.1f} | {goal} |",
            flush=True,
        )
    small, large = found["neighbour keys, 0.5 ms"], found["neighbour keys, 0.02 ms"]
    per_bundle, per_event = _line(small, large)
    print(f"\nso about {per_event:.1f} us for an event and {per_bundle:.0f} us for a bundle\n")

    split = Split()
    with splitting(split):
        run = ship(directory, [HeavySuppress(spins=spins).options(place="workers")])
    clock_s = clock_cost_s()
    print("| step of the hub, neighbour keys, 0.1 ms | us for an event | share |\n|-|-|-|")
    total = sum(split.seconds.values())
    for step, seconds in sorted(split.seconds.items(), key=lambda s: -s[1]):
        print(f"| {step} | {seconds / run.events * 1e6:.2f} | {seconds / total:.0%} |")
    calls = sum(split.calls.values())
    print(
        f"\nadded up {total / run.events * 1e6:.1f} us, of which the clock itself about "
        f"{calls * clock_s / run.events * 1e6:.1f} us\n"
    )

    for title, task in (("neighbour keys", HeavySuppress(spins=spins)), ("no state", Heavy(spins=spins))):
        us, count = worker_us(directory, task.options(place="workers"))
        print(
            f"worker, {title}: {us:.1f} us of CPU for an event beside its work ({count:,} events)", flush=True
        )

    cold, warm = starts_ms(directory, max(3, rounds))
    python_ms, import_ms = bare_ms("pass"), bare_ms("import secondpass")
    print(
        "\n| start of a worker, to its first result | median | worst | requirement | aim |\n|-|-|-|-|-|\n"
        f"| cold: with the process that loads the tasks | {statistics.median(cold):.0f} ms | {max(cold):.0f} ms "
        "| 200 ms | 80 ms |\n"
        f"| one more, forked | {statistics.median(warm):.1f} ms | {max(warm):.1f} ms | 200 ms | 80 ms |\n\n"
        f"a new Python alone {python_ms:.0f} ms, with `import secondpass` {import_ms:.0f} ms\n",
        flush=True,
    )
    print("| an event | wall | CPU of the hub | copying it once | beside that |\n|-|-|-|-|-|")
    print("\n".join(arrays(directory, 10, 40)))
    if profile:
        _profiles(directory, spins)


def _line(small: Shipped, large: Shipped) -> tuple[float, float]:
    """Microseconds of a bundle and of an event, from runs with small and with large bundles."""
    a, b = small.bundles / small.events, large.bundles / large.events
    x, y = small.hub_s / small.events * 1e6, large.hub_s / large.events * 1e6
    per_bundle = (x - y) / (a - b) if a != b else 0.0
    return per_bundle, y - per_bundle * b


def _profiles(directory: Path, spins: int) -> None:
    for title in ("hub", "worker"):
        profiled = cProfile.Profile(time.thread_time)
        task = HeavySuppress(spins=spins).options(place="workers")
        if title == "hub":
            ship(directory, [task], profile=profiled)
        else:
            worker_us(directory, task, profiled)
        text = io.StringIO()
        pstats.Stats(profiled, stream=text).sort_stats("tottime").print_stats(28)
        print(f"\n{title}\n{text.getvalue()}")


if __name__ == "__main__":
    main()
