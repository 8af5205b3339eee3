"""How far one hub reaches: many workers, simulated, over the real dependency order and the real pacer.

    python benchmarks/simulate_workers.py [--event-us N] [--bundle-us N] [--bundle-ms N] [--quick]

Only time is simulated. What an event, a bundle and a look at a worker cost the hub, and what an event costs a worker
beside its work, are parameters; `shipping.py` measures them. Events have the keys of a camera and of its two
neighbours, drawn evenly. "Of the workers" is the part of what so many workers could do if nothing held them up. The
limit is whoever was busy; or waiting, where neither was: for earlier events with the same keys, or for an epoch's last.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from typing import NamedTuple

from secondpass.engine.crew import IN_HAND
from secondpass.engine.lanes import BUNDLE_S
from secondpass.engine.pacer import Pacer
from secondpass.engine.schedule import Schedule, Sent

US, MS = 1e-6, 1e-3


class Costs(NamedTuple):
    """Seconds that things take."""

    hub_event: float
    hub_bundle: float
    """Half of it to send it, half to receive its answer."""
    hub_look: float
    """At one worker, whenever the hub looks whom to give something."""
    worker_event: float
    """Beside the work."""
    way: float
    """Of a bundle or of an answer, while nobody works on it."""
    bundle: float
    """So long a bundle should take."""
    commit: float
    """From an epoch's last answer until the next one's first bundle may go."""


class Epoch(NamedTuple):
    """How an epoch went."""

    events: int
    seconds: float
    hub_s: float
    worked_s: float
    bundles: int
    width: float


class Simulation:
    """A hub and its workers over epochs of events with neighbour keys."""

    def __init__(self, costs: Costs, workers: int, task_s: float, cids: int, seed: int = 1) -> None:
        self._costs = costs
        self._workers = workers
        self._task_s = task_s
        self._cids = cids
        self._random = random.Random(seed)

    def run(self, seconds: float) -> list[Epoch]:
        """Epochs as the pacer makes them, until so much time has passed in epochs of full length."""
        pacer, found, passed = Pacer(), list[Epoch](), 0.0
        pacer.ran(256, 0.5, heavy=True)
        while passed < seconds and len(found) < 200:
            epoch = self.epoch(pacer.limit())
            pacer.ran(epoch.events, epoch.seconds, heavy=True)
            if epoch.seconds > 0.3:
                passed += epoch.seconds
                found.append(epoch)
            elif pacer.limit() <= epoch.events:
                found.append(epoch)  # it grows no further
                passed += epoch.seconds
        return found

    def epoch(self, events: int) -> Epoch:
        costs, workers = self._costs, range(self._workers)
        order = Schedule()
        draw = self._random.randrange
        order.add([frozenset((c - 1, c, c + 1)) for c in [draw(self._cids) for _ in range(events)]])
        # A third of what the hub does for an event it does before the first bundle goes.
        now = events * costs.hub_event / 3
        hub_s, worked_s, bundles = now, 0.0, 0
        cost_s = self._task_s + costs.worker_event
        wanted = int(costs.bundle / cost_s)
        hands: list[deque[Sent]] = [deque() for _ in workers]
        free_at = [0.0] * self._workers
        answers: list[tuple[float, int]] = []
        while order.undone:
            took = costs.hub_look * self._workers * IN_HAND
            for depth in range(IN_HAND):
                for worker in [w for w in workers if len(hands[w]) == depth]:
                    behind = hands[worker][-1] if hands[worker] else None
                    if not order.ready() and behind is None:
                        continue
                    size = max(1, min(wanted, order.undone // (2 * self._workers)))
                    sent = order.take(size, behind)
                    if sent is None:
                        continue
                    took += len(sent.nodes) * costs.hub_event / 3 + costs.hub_bundle / 2
                    work_s = len(sent.nodes) * cost_s
                    begun = max(now + took + costs.way, free_at[worker])
                    free_at[worker] = begun + work_s
                    worked_s += work_s
                    bundles += 1
                    hands[worker].append(sent)
                    heapq.heappush(answers, (free_at[worker] + costs.way, worker))
            now += took
            hub_s += took
            now = max(now, answers[0][0])
            took = 0.0
            while answers and answers[0][0] <= now:
                _, worker = heapq.heappop(answers)
                nodes = hands[worker].popleft().nodes
                took += len(nodes) * costs.hub_event / 3 + costs.hub_bundle / 2
                order.done(nodes)
            now += took
            hub_s += took
        return Epoch(events, now + costs.commit, hub_s, worked_s, bundles, events / order.height_max)


def row(costs: Costs, workers: int, task_s: float, cids: int, seconds: float) -> str:
    found = Simulation(costs, workers, task_s, cids).run(seconds)
    events, took = sum(e.events for e in found), sum(e.seconds for e in found)
    rate = events / took
    could = workers / (task_s + costs.worker_event)
    hub, work = sum(e.hub_s for e in found) / took, sum(e.worked_s for e in found) / took / workers
    width = sum(e.width for e in found) / len(found)
    busiest = max((hub, "the hub"), (work, "the workers"))
    limit = busiest[1] if busiest[0] > 0.85 else "waiting"
    bundle = events / sum(e.bundles for e in found)
    return (
        f"| {task_s * 1e3:g} ms | {cids:,} | {workers} | {rate:,.0f} | {rate / could:.0%} | {hub:.0%} | {work:.0%} "
        f"| {bundle:.1f} | {width:,.0f} | {limit} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--event-us", type=float, default=8.0)
    parser.add_argument("--bundle-us", type=float, default=110.0)
    parser.add_argument("--look-us", type=float, default=0.1)
    parser.add_argument("--worker-event-us", type=float, default=9.0)
    parser.add_argument("--way-us", type=float, default=30.0)
    parser.add_argument(
        "--bundle-ms", type=float, default=BUNDLE_S / MS, help="how long a bundle should take"
    )
    parser.add_argument("--commit-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=1.0, help="of simulated time, for each row")
    parser.add_argument("--quick", action="store_true", help="two rows")
    given = parser.parse_args()
    costs = Costs(
        given.event_us * US,
        given.bundle_us * US,
        given.look_us * US,
        given.worker_event_us * US,
        given.way_us * US,
        given.bundle_ms * MS,
        given.commit_ms * MS,
    )
    print(
        f"simulated; {given.event_us:g} us of the hub for an event and {given.bundle_us:g} us for a bundle, "
        f"{given.worker_event_us:g} us of a worker for an event beside its work\n\n"
        "| an event's work | cameras | workers | events/s | of the workers | hub busy | workers busy "
        "| events in a bundle | could run at once | limit |\n|-|-|-|-|-|-|-|-|-|-|",
        flush=True,
    )
    for task_ms in (1,) if given.quick else (0.1, 1, 10):
        for cids in (1099,) if given.quick else (1099, 100_000):
            for workers in (8, 32) if given.quick else (8, 32, 128):
                print(row(costs, workers, task_ms * MS, cids, given.seconds), flush=True)


if __name__ == "__main__":
    main()
