"""A rehearsal gives what the plain loop gives for the changed chain, and no difference for the chain that ran."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blocks
import cases
import engine_runs
import pytest
from engine_runs import INTAKE_TIME, Scripted, exactly

from secondpass import App, reference
from secondpass.engine.difference import LETTERS
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.outbox import decode_event, decode_events, encode_event, encode_json
from secondpass.engine.rehearse import rehearse
from secondpass.engine.rehearsed import Rehearsed, changes_of
from secondpass.engine.replay import Base, Replay, records_of
from secondpass.engine.rerun import Rerun
from secondpass.engine.sentagain import SentAgain
from secondpass.errors import SecondpassError
from secondpass.record import DeadLetter, Firing, Retry, Tick
from secondpass.store.reader import StoreReader
from secondpass.task import with_settings

CASES = int(os.environ.get("SECONDPASS_DIFFERENTIAL_CASES") or 150)
PARTS = 5


@pytest.fixture
def directory() -> Iterator[Path]:
    with engine_runs.memory_folder() as folder:
        yield folder


def ran(case: cases.Case, directory: Path) -> tuple[App, Path] | None:
    """A case's app and its store, after it ran with whatever its seed does to it."""
    rng = random.Random(f"{case.seed} ways")
    if cases.refused_whole(case) or any(spec.kind is blocks.Break for spec in case.chain):
        return None  # a chain that is mended on the way is another one in its second half
    with engine_runs.pressed(random.Random(rng.random())), engine_runs.snapshots_now_and_then(rng):
        assert cases._in_store_differs(case, rng, directory) is None
    sources = [Scripted(records, f"source {i}") for i, records in enumerate(case.sources)]
    return App("case", sources=sources, tasks=case.tasks()), directory / "store"


def another(case: cases.Case, rng: random.Random) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Settings and tasks left out, for a rehearsal."""
    spec = rng.choice(case.chain)
    wanted = {"ttl_s": 7.5, "every": 3, "factor": 3.0, "at_most": 1, "spread": 4}
    fitting = [name for name in spec.settings if name in wanted]
    if fitting and rng.random() < 0.8:
        name = rng.choice(fitting)
        return {spec.name: {name: wanted[name]}}, []
    return {}, [spec.name]


def log_of(app: App, store: StoreReader) -> list[Any]:
    """The recorded log, as the plain loop takes it."""
    replay, log = Replay(store, app, Base()), []
    for item in replay:
        if isinstance(item, Epoch):
            for _, record, _ in records_of(item):
                log.append(record.event if isinstance(record, DeadLetter) else record)
    replay.close()
    return log


def founded(number: int, set_aside: list[DeadLetter], store: StoreReader) -> bool:
    """Whether a recorded letter is among those that a changed chain sets aside."""
    recorded = [(n, letter) for n, _, letter in store.letters()]
    mine = recorded[number][1]
    there = [(n, letter) for n, letter in recorded if place_of(letter) == place_of(mine)]
    others = [letter for letter in set_aside if place_of(letter) == place_of(mine)]
    for n, letter in list(there):
        same = next((o for o in others if (encode_event(o.event), o.raw) == (letter.event, letter.raw)), None)
        if same is not None:
            if n == number:
                return True
            there.remove((n, letter))
            others = [o for o in others if o is not same]
    timers = isinstance(decode_event(mine.event), Firing)
    ahead = [n for n, letter in there if isinstance(decode_event(letter.event), Firing) is timers]
    return ahead.index(number) < sum(isinstance(o.event, Firing) is timers for o in others)


def place_of(letter: Any) -> tuple[int, str]:
    return letter.position, letter.task


def without_unfounded(tasks: list[Any], log: list[Any], store: StoreReader) -> list[Any]:
    """A changed chain's log: no dead letter is sent again that it does not set aside."""
    for at, record in enumerate(log):
        if isinstance(record, Retry):
            before = reference.run(tasks, log[:at], intake_time=INTAKE_TIME).dead_letters
            if not founded(record.letter, before, store):
                log[at] = Tick(-math.inf)  # it takes a position, and does nothing
    return log


def rerun(app: App, store: StoreReader, settings: Any, without: Any, workers: int) -> Any:
    """What the engine gives: by stream, (position, event) of each output."""
    base, streams, letters = Base(), {name: [] for name in app.streams}, []
    replay = Replay(store, app, base)
    changes = changes_of(app, store, settings, without, 0, replay.end)
    standing = Rehearsed(app, base, changes, 0, SentAgain(store, 0))
    found = Rerun(app, replay, standing, workers)

    def on_epoch(epoch: Epoch, outcome: Outcome) -> None:
        for name, (events, where) in outcome.streams.items():
            streams[name] += [(epoch.first + i, event) for event, i in zip(events, where, strict=True)]
        letters.extend(outcome.letters)

    found.run(replay.end, on_epoch)
    found.close()
    return streams, letters


def counted(
    was: dict[str, list[tuple[int, bytes]]], now: dict[str, list[tuple[int, bytes]]]
) -> dict[str, Any]:
    """By stream: same, gone, new and changed, counted plainly."""
    found = {}
    for name, lines in was.items():
        a, b = Counter(lines), Counter(now.get(name, []))
        gone, new = a - b, b - a
        per_position: Counter[int] = Counter()
        for (position, _), n in gone.items():
            per_position[position] += n
        others: Counter[int] = Counter()
        for (position, _), n in new.items():
            others[position] += n
        both = sum((per_position & others).values())
        found[name] = (sum((a & b).values()), sum(gone.values()) - both, sum(new.values()) - both, both)
    return found


def forget(store: StoreReader, app: App, rng: random.Random) -> None:
    """As if the first outputs had been handed to sinks and let go of."""
    kept_from = {
        name: rng.choice([*(row.first for row in store.outputs(name)), store.progress.numbers.get(name, 0)])
        for name in app.streams
    }
    read = store._read_progress

    def forgetful() -> None:
        read()
        store.progress.kept_from = kept_from

    store._read_progress = forgetful  # type: ignore[method-assign]
    forgetful()


def lines(outputs: list[tuple[int, Any]]) -> list[tuple[int, bytes]]:
    return [(position, encode_json([event])) for position, event in outputs]


def wrong(case: cases.Case, app: App, directory: Path, workers: int = 0) -> str | None:
    rng = random.Random(f"{case.seed} rehearsed")
    store = StoreReader.open_to_read(directory)
    try:
        if not store.progress.position:
            return None
        unchanged = rehearse(app, store, workers=workers)
        if unchanged.differences or unchanged.changes:
            return f"unchanged: {unchanged}"
        settings, without = another(case, rng)
        tasks = [
            with_settings(task, settings[task.name]) if task.name in settings else task
            for task in case.tasks()
            if task.name not in without
        ]
        log = without_unfounded(tasks, log_of(app, store), store)
        want = reference.run(tasks, log, intake_time=INTAKE_TIME)
        streams, letters = rerun(app, store, settings, without, workers)
        for name, events in want.streams.items():
            if not exactly([event for _, event in streams[name]], events):
                return f"{settings} {without}: {name}:\n  meant {events}\n  got   {streams[name]}"
        if not exactly(letters, want.dead_letters):
            return f"{settings} {without}: dead letters:\n  meant {want.dead_letters}\n  got   {letters}"
        was = {
            name: lines(
                [
                    (at, e)
                    for row in store.outputs(name)
                    for at, e in zip(row.positions, decode_events(row.body), strict=True)
                ]
            )
            for name in app.streams
        }
        found = rehearse(app, store, settings=settings, without=without, workers=workers)
        got = {
            s.name: (s.same, s.gone, s.new, s.changed)
            for s in found.streams
            if s.name != LETTERS and s.name in was
        }
        if got != counted(was, {name: lines(outputs) for name, outputs in streams.items()}):
            return f"{settings} {without}: counted {counted(was, {})}, got {got}"
        forget(store, app, rng)
        partly = rehearse(app, store, settings=settings, without=without, workers=workers)
        if repr((partly.streams, partly.first)) != repr((found.streams, found.first)):
            return f"{settings} {without}: where outputs were let go of {partly}, else {found}"
        return None
    except SecondpassError as error:
        return f"raised {type(error).__name__}: {error}"
    finally:
        store.close()


@pytest.mark.timeout(0 if CASES > 20_000 else 600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_rehearsal_gives_what_the_plain_loop_gives(part: int, seed: int, directory: Path) -> None:
    for number in range(part, CASES, PARTS):
        case = cases.generate(f"{seed} rehearsed {number}")
        found = ran(case, directory)
        if found is not None:
            told = wrong(case, *found)
            assert told is None, f"{told}\n{case}"


def test_a_rehearsal_on_workers_gives_what_the_plain_loop_gives(seed: int, directory: Path) -> None:
    done = 0
    for number in range(200):
        case = cases.generate(f"{seed} rehearsed on workers {number}")
        found = ran(case, directory) if len(case.log) > 20 else None
        if found is not None:
            told = wrong(case, *found, workers=2)
            assert told is None, f"{told}\n{case}"
            done += 1
        if done == 3:
            return
