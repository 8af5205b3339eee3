"""An app with workers that follows its input while its events, and somebody outside, end its processes.

A writer appends some hundred events a second; some of them end, exhaust or never leave the process that handles them,
on workers and in the hub. From outside hub, nursery and workers are killed, stopped and interrupted, and the disk fails.
None may hold more the longer it goes on. At the end all is compared with the plain loop: no event is lost or counted
twice, those that always end their process are set aside, and no other.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import PATIENCE_S, Faulty, Run
from faulty_app import Item
from harness import HERE, all_gone, memory_group
from soaking import DISK_FAILURES, Family, Faults, harm

SECONDS = float(os.environ.get("SECONDPASS_SOAK_SECONDS") or 12) / 2
LINES_PER_S = 100
POISON = 0.004
FAULTS_PER_MINUTE = 20
"""At least; an hour of `make soak`, half of which is this, then has 600."""
MEMORY = 700 << 20
"""What all processes of the app may use together, where a control group can be made."""
ON_WORKERS = ("segv", "exit", "abort", "thread-exit", "memory", "loop")
IN_THE_HUB = ("segv@First", "exit@First")
ERRORS = ("unpicklable@Keyed", "exit-like@Serial")
OUTSIDE = ("kill hub", "interrupt hub", "terminate hub", "stop hub", "fail disk")
SIGNALS = {"interrupt hub": signal.SIGINT, "terminate hub": signal.SIGTERM}
OWN_CODES = (3, -signal.SIGSEGV, -signal.SIGKILL)
"""How a hub ends that one of its inline tasks ends; where a task stops the app the code is 3 too."""


class Writer:
    """Appends events by the clock, some of which harm whoever handles them."""

    def __init__(self, case: Faulty, rng: random.Random, faults: Faults, *, hog: bool) -> None:
        self._case, self._rng, self._faults = case, rng, faults
        self._words = [f"{what}@{task}" for what in ON_WORKERS for task in ("Keyed", "Batch", "Serial")]
        self._words += [*IN_THE_HUB, *(("hog@Keyed", "hog@Serial", "hog@First") if hog else ())]
        self._began = time.monotonic()
        self.poison: list[int] = []
        """The events that always end their process."""

    def write(self) -> None:
        due = int((time.monotonic() - self._began) * LINES_PER_S)
        self._case.add([self._item(n) for n in range(len(self._case.items), due)])

    def _item(self, n: int) -> Item:
        return Item(n=n, cid=self._rng.randrange(40), time=n / 4, fault=self._fault(n))

    def _fault(self, n: int) -> str:
        kind = self._rng.random()
        if kind >= POISON:
            return self._rng.choice(ERRORS) if kind < 2 * POISON else ""
        word = self._rng.choice(self._words)
        what, _, task = word.partition("@")
        self._faults[f"event: {what}{' inline' if task == 'First' else ''}"] += 1
        if self._rng.random() < 0.5:
            return f"once:{word}"
        self.poison.append(n)
        return word


def follow(
    writer: Writer, family: Family, run: Run, rng: random.Random, faults: Faults, seconds: float
) -> None:
    """Write, look, and harm nursery and workers for so long, or until the hub ends."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s and run.process.poll() is None:
        writer.write()
        processes = family.look(run.process.pid)
        if processes and rng.random() < 0.03:
            harm(processes, rng, faults)
        time.sleep(0.02)


class Hub:
    """Whoever runs the app at the moment."""

    def __init__(self, case: Faulty) -> None:
        self._case = case
        self._stopped: Run | None = None
        self._fails = False
        self.run = self._start()

    def _start(self, **env: str) -> Run:
        self._fails = bool(env)
        return self._case.start(
            "--follow", "--take-over", FAULTY="quietly", SECONDPASS_EPOCH_RECORDS="50", **env
        )

    def again(self, **env: str) -> None:
        """Start another one, after it was stopped or has ended."""
        going = self.run.process.poll() is None
        stopped, self._stopped = self._stopped, self.run if going else None
        if stopped is not None:
            # It goes on, finds that it has been replaced, and ends.
            stopped.process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                stopped.process.wait(5)
            stopped.process.kill()
            stopped.process.wait()
        self.run = self._start(**env)

    def has_ended(self) -> bool:
        """Whether it has ended by itself; raises if that is none of the ways that were to be expected."""
        code = self.run.process.poll()
        if code is None:
            return False
        told = re.search("^error:", self.run.err, re.MULTILINE)
        in_a_task = code in OWN_CODES and not told
        assert in_a_task or self._fails, f"exit code {code}:\n{self.run.err[-3000:]}"
        return True

    def harm(self, what: str, rng: random.Random) -> None:
        """Do something to it, and start another one."""
        if what == "stop hub":
            self.run.process.send_signal(signal.SIGSTOP)
        else:
            processes = self.run.family()
            self.run.process.send_signal(SIGNALS.get(what, signal.SIGKILL))
            self.run.process.wait(PATIENCE_S)
            all_gone(processes, 3.0)
        self.again(**({"SECONDPASS_TEST_FAIL": rng.choice(DISK_FAILURES)} if what == "fail disk" else {}))


@pytest.mark.slow
@pytest.mark.usefixtures("memory_kills")
def test_an_app_with_workers_withstands_its_events_and_what_is_done_to_it(
    tmp_path: Path, rng: random.Random, seed: int, record_property: Callable[[str, object], None]
) -> None:
    case, faults = Faulty(tmp_path / "case", "soaked"), Faults()
    case.entry = (str(HERE / "runner.py"),)  # what happens seldom happens often there
    family = Family(case.store)
    longest_s = max(1.0, min(60.0, SECONDS / 10))
    try:
        with memory_group(MEMORY) as enter:
            case.enter = enter
            writer = Writer(case, rng, faults, hog=enter is not None)
            writer.write()
            (case.directory / "in.jsonl").touch()
            hub = Hub(case)
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                follow(writer, family, hub.run, rng, faults, rng.uniform(0.5, longest_s))
                if hub.has_ended():
                    hub.again()
                else:
                    what = rng.choice(OUTSIDE)
                    faults[what] += 1
                    hub.harm(what, rng)
            ends = time.monotonic() + 60 + SECONDS / 10
            while not _caught_up(case):
                assert time.monotonic() < ends, "it does not catch up"
                if hub.has_ended():
                    hub.again()
                time.sleep(0.1)
            hub.run.process.kill()
            case.run("--take-over")
            case.check()
            assert case.convicted() == writer.poison
            record_property(
                "soak", f"{faults}\n{len(case.items)} events, {len(writer.poison)} set aside\n{family}"
            )
            family.check(hogs=sum(n for kind, n in faults.items() if kind.startswith("event: hog")))
            assert SECONDS < 60 or faults.per_minute() > FAULTS_PER_MINUTE
    except BaseException as error:
        error.add_note(f"SEED={seed}: {faults}\n{family}")
        raise
    finally:
        case.end()


def _caught_up(case: Faulty) -> bool:
    with case.opened() as store:
        return store.progress.position == len(case.items)
