"""What failing events cost: one in a hundred raises, against the same stream without errors.

    python benchmarks/errors.py [--events N] [--rounds N]

The bound is ten times the clean run: after a first error an epoch goes on call by call, each of them kept
whole or undone whole.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from harness import main

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines


class Detection(Event):
    cid: int
    time: float
    bad: bool = False


class Suppress(Task[Detection]):
    last_seen = table(int, float)
    recent = table(int, list[float], factory=list)

    def handle(self, event: Detection) -> Detection | None:
        last = self.last_seen.get(event.cid)
        for cid in (event.cid - 1, event.cid, event.cid + 1):
            self.last_seen[cid] = event.time
        recent = self.recent[event.cid]
        recent.append(event.time)
        del recent[:-8]
        if event.bad:
            raise ValueError("a bad event")
        return event if last is None or event.time - last >= 300.0 else None


def case(name: str):
    def run(directory: Path) -> None:
        shutil.rmtree(directory / "store", ignore_errors=True)
        source = JsonLines(directory / f"{name}.jsonl", Detection)
        summary = App("errors", source=source, tasks=[Suppress()]).run(store=directory / "store")
        assert (summary.dead_letters > 0) == (name == "errors"), summary

    return run


def prepare(directory: Path, given) -> None:
    rng, time = random.Random(1), 0.0
    with (directory / "clean.jsonl").open("w") as clean, (directory / "errors.jsonl").open("w") as errors:
        for n in range(given.events):
            time += rng.random()
            start = f'{{"cid":{rng.randrange(1000)},"time":{time:.2f}'
            clean.write(start + ',"bad":false}\n')
            errors.write(start + (',"bad":true}\n' if n % 100 == 99 else ',"bad":false}\n'))


if __name__ == "__main__":
    cases = {"one event in a hundred fails": case("errors"), "no event fails": case("clean")}
    main(__file__, cases, [("one event in a hundred fails", "no event fails")], prepare)
