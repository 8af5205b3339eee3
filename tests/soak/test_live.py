"""Processes push events into an app while its tasks are started, stopped, set and replaced, and everything is killed.

SECONDPASS_LIVE_EVENTS says how many events in all (20,000 normally; `make soak` asks for ten million), and commands and
kills are in proportion: a thousand commands and two hundred kills to ten million events, a few at least. At the end every
acknowledged event is in the log once, and outputs, state and dead letters equal the plain loop over the recorded log.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fed_app
import msgspec
import pytest

from secondpass import reference
from secondpass.change import plain_state
from secondpass.control import Control
from secondpass.engine.compare import codecs_of
from secondpass.engine.live import recorded_change
from secondpass.engine.outbox import decode_event, decode_events
from secondpass.engine.pushed import LogSource
from secondpass.store.database import Store
from secondpass.store.log import standing
from secondpass.store.spool import Command, Spool

EVENTS = int(os.environ.get("SECONDPASS_LIVE_EVENTS") or 20_000)
FEEDS = 4
COMMANDS = max(40, EVENTS // 10_000)
KILLS = max(12, EVENTS // 50_000)
FEED = "import sys, fed_app; fed_app.main(*sys.argv[1:])"
HERE = Path(__file__).resolve().parent


class Running:
    """The app and those that feed it, each a process that is started again when it has been killed."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.store = folder, folder / "store"
        self._workers = workers
        self.hub: subprocess.Popen[bytes] | None = None
        self.feeds: dict[str, subprocess.Popen[bytes]] = {}
        self.fed: set[str] = set()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as said:
            return subprocess.Popen([sys.executable, *arguments], stdout=said, stderr=said, cwd=HERE)

    def look(self) -> None:
        """Start what does not run, and see which feeds have come to their end."""
        if self.hub is None or self.hub.poll() is not None:
            if self.hub is not None and self.hub.returncode not in (0, -signal.SIGKILL):
                raise AssertionError(f"the app ended with {self.hub.returncode}:\n{self.said()}")
            self.hub = self._start(
                "-m", "secondpass", "run", "fed_app.py", "--quiet", "--store", str(self.store),
                "--workers", str(self._workers),
            )  # fmt: skip
        for i in range(FEEDS):
            name = f"feed {i}"
            process = self.feeds.get(name)
            if process is not None and process.poll() == 0:
                self.fed.add(name)
            elif process is None or process.poll() is not None:
                if process is not None and process.returncode != -signal.SIGKILL:
                    raise AssertionError(f"{name} ended with {process.returncode}:\n{self.said()}")
                count = str(EVENTS // FEEDS)
                self.feeds[name] = self._start(
                    "-c", FEED, str(self.store), name, count, str(self.acked(name))
                )

    def share(self) -> float:
        """How much of all events is in the log."""
        found = standing(self.store)
        return 0.0 if found is None else found.durable / EVENTS

    def acked(self, name: str) -> Path:
        return self.folder / f"{name}.acked"

    def kill_one(self, rng: random.Random) -> None:
        """End the hub, one of its workers or one of the feeds, without a word."""
        import psutil

        assert self.hub is not None
        victims: list[Any] = [self.hub, *(p for p in self.feeds.values() if p.poll() is None)]
        try:
            victims += psutil.Process(self.hub.pid).children(recursive=True)
        except psutil.Error:
            pass  # it has just ended
        victim = rng.choice(victims)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return

    def end(self) -> None:
        for process in [self.hub, *self.feeds.values()]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def said(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-3000:]


def command(rng: random.Random) -> Command:
    """Some command to the chain; many of them are refused, and that is recorded."""
    task = rng.choice(("Suppress", "Count", "Mark", "X"))
    made: list[Command] = [
        Command("start", task=task, fresh=rng.random() < 0.2),
        Command("stop", task=task),
        Command("set", task="Suppress", settings={"window_s": rng.choice((5.0, 20.0, 60.0))}),
        Command("set", task="Count", settings={"step": rng.randint(1, 9)}),
        Command(
            "add", task="X", cls="fed_app:Mark", settings={"mark": "x"}, before=rng.choice((None, "Count"))
        ),
        Command("remove", task=rng.choice(("X", "Mark"))),
        Command("add", task="Mark", cls="fed_app:Mark", settings={"mark": "again"}),
        Command("replace", task="Count", cls="fed_app:Count", settings={"step": 3}, trial=rng.choice((0, 5))),
        Command("replace", task="Mark"),  # from the app's file, which is read again
        Command("drop-state", task=task),
        Command("pause"),
        Command("resume"),
    ]
    return rng.choice(made)


def log_of(store: Path) -> list[Any]:
    """All records of the log, in order."""
    reader = LogSource(store, ended=lambda: True).open(None)
    found: list[Any] = []
    try:
        while (batch := reader.read(10_000)) is not None:
            found += batch.events
    finally:
        reader.close()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_pushed_is_done_once_whatever_is_commanded_and_killed(
    tmp_path: Path, seed: int, workers: int, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(f"{seed} live {workers}")
    running = Running(tmp_path, workers)
    asked = kills = 0
    try:
        running.look()
        until = time.monotonic() + 60 + EVENTS / 500
        while not (running.store / "store.db").exists():
            assert time.monotonic() < until, running.said()
            time.sleep(0.01)
        spool, control = Spool(running.store), Control(running.store)
        given: list[str] = []

        def give(command: Command) -> None:
            # By the socket where the hub lives, beside the store where it has just been killed.
            given.append(control._leave(command, wait=False).command)

        paused = False
        while len(running.fed) < FEEDS or asked < COMMANDS or kills < KILLS:
            assert time.monotonic() < until, (
                f"{running.fed}, {asked} commands, {kills} kills\n{running.said()}"
            )
            running.look()
            share = 1.0 if len(running.fed) == FEEDS else running.share()  # all along the stream
            if paused:
                give(Command("resume"))
                paused = False
            elif asked < COMMANDS * share and rng.random() < 0.7:
                asking = command(rng)
                give(asking)
                asked += 1
                paused = asking.kind == "pause"
            if kills < KILLS * share and rng.random() < 0.5:
                running.kill_one(rng)
                kills += 1
            time.sleep(rng.uniform(0, 0.1))
        running.look()
        give(Command("resume"))
        records = log_of(running.store)
        taken, waiting = 0, []
        while True:
            assert time.monotonic() < until, f"{taken} of {len(records)}, waiting {waiting}\n{running.said()}"
            running.look()
            store = Store.open_to_read(running.store)
            try:
                places = store.progress.sources
                taken = places[0]["offset"]["next"] + places[0]["skip"] if places and places[0] else 0
                waiting = spool.waiting()
            finally:
                store.close()
            if taken == len(records) and not waiting:
                break
            time.sleep(0.05)
        control.end()
        assert running.hub is not None
        running.hub.wait(30)
    finally:
        running.end()
    _each_once(running, records)
    told = [entry["command"] for entry in control.history() if "command" in entry]
    assert sorted(told[:-1]) == sorted(given), "each command is done, or left out, once"
    _equals_the_plain_loop(running.store, records)
    record_property(
        "soak", f"{len(records)} events, {asked} commands, {kills} kills, {workers} workers, SEED={seed}"
    )


def _each_once(running: Running, records: list[Any]) -> None:
    """What was acknowledged is in the log, and nothing is there twice or in another order."""
    by_feed: dict[str, list[int]] = {}
    for record in records:
        by_feed.setdefault(record.feed, []).append(record.n)
    for i in range(FEEDS):
        name = f"feed {i}"
        acked = [int(line) for line in running.acked(name).read_text().split()]
        assert acked == sorted(acked)
        assert by_feed[name] == list(range(EVENTS // FEEDS))


def _equals_the_plain_loop(directory: Path, records: list[Any]) -> None:
    store = Store.open_to_read(directory)
    try:
        log = list(records)
        for position, kind, details in store.history():
            if kind == "command":
                log.insert(position, recorded_change(details))
        want = reference.run(fed_app.app.tasks, log)
        assert store.progress.position == len(log)
        for stream, events in want.streams.items():
            kept = store.progress.kept_from.get(stream, 0)
            found = [event for row in store.outputs(stream) for event in decode_events(row.body)]
            assert found == events[kept:], stream
            assert store.progress.numbers.get(stream, 0) == len(events)
        letters = [(s.position, s.task, s.error, decode_event(s.event)) for _, _, s in store.letters()]
        assert letters == [(d.position, d.task, d.error, d.event) for d in want.dead_letters]
        cells = store.load(codecs_of(tuple(want.tasks)))
        for task in want.tasks:
            shape = type(task)._shape
            values = {n: cells[task.name, n][None] for n in shape.values if cells[task.name, n]}
            tables = {n: cells[task.name, n] for n in shape.tables}
            assert plain_state(task, tables, values, store.progress.now) == want.state[task.name], task.name
        tallies = {n: msgspec.convert(t, reference.Tally) for n, t in store.progress.tallies.items()}
        assert tallies == want.tallies
    finally:
        store.close()
