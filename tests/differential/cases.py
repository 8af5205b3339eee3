"""Generated cases: a chain, a log, and ways to run it; and what to print when a run differs."""

from __future__ import annotations

import datetime
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import blocks
from blocks import Alert, Bare, Note, Reading
from engine_runs import (
    INTAKE_TIME,
    Pace,
    Scripted,
    Workers,
    difference,
    in_memory,
    in_store,
    meant,
    misplaced,
    pressed,
    stored,
    without_ticks,
)

from secondpass import UntypedEvent
from secondpass.errors import SecondpassError
from secondpass.event import untyped
from secondpass.record import Refused, Retry, Tick
from secondpass.reference import Result
from secondpass.store.spool import Command, Spool
from secondpass.task import Task, from_function

MILLISECONDS = 1.6e12
"""A time in another unit."""


@dataclass(frozen=True)
class TaskSpec:
    """A task of a generated chain, by what makes it."""

    kind: Any
    name: str
    settings: dict[str, Any]
    on_error: str = "dead_letter"

    def make(self, *, mended: bool = False) -> Task[Any]:
        if not isinstance(self.kind, type):
            return from_function(self.kind).options(name=self.name, on_error=self.on_error)
        settings = dict(self.settings)
        on_error = self.on_error
        if self.kind is blocks.Break:
            settings["mended"] = mended
        return self.kind(**settings).options(name=self.name, on_error=on_error)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"{self.kind.__name__}({inner}).options(name={self.name!r}, on_error={self.on_error!r})"


@dataclass(frozen=True)
class Case:
    """A chain and what each source holds; `seed` chooses how it is run."""

    chain: tuple[TaskSpec, ...]
    sources: tuple[tuple[Any, ...], ...]
    seed: str
    ticks: tuple[tuple[int, float], ...] = ()
    """So many records come before each of them."""

    @property
    def log(self) -> list[Any]:
        log = merged(self.sources)
        for before, time in reversed(self.ticks):
            if before <= len(log):
                log.insert(before, Tick(time))
        return log

    def tasks(self, *, mended: bool = False) -> list[Task[Any]]:
        return [spec.make(mended=mended) for spec in self.chain]

    def __str__(self) -> str:
        lines = [f"seed {self.seed!r}", "tasks = ["]
        lines += [f"    {spec!r}," for spec in self.chain]
        lines.append(f"]\nticks = {self.ticks}")
        for i, records in enumerate(self.sources):
            lines.append(f"source {i} = [")
            lines += [f"    {record!r}," for record in records]
            lines.append("]")
        return "\n".join(lines)


# ---------------------------------------------------------------- generating


def generate(seed: str, *, timed: bool = True) -> Case:
    """The case that a seed means; one that is not `timed` has no timers, and no time that passes without an event."""
    rng = random.Random(seed)
    timers = () if timed else (blocks.Silent, blocks.Regular)
    kinds = [block for block in blocks.BLOCKS if block not in timers]
    chain = tuple(_task(rng, i, kinds) for i in range(rng.choice([1, 1, 2, 2, 3, 3, 4, 6])))
    count = rng.choice([0, 1, 3, 10, 20, 30, 40])
    # A schedule makes up for each of its moments: where times leap by decades, that never ends.
    often = any(spec.kind is blocks.Regular for spec in chain)
    records = _records(rng, count, 900.0 if often else 1632192265.17)
    parts = 1 if rng.random() < 0.7 else rng.randint(2, 3)
    sources: list[list[Any]] = [[] for _ in range(parts)]
    for record in records:
        sources[rng.randrange(parts)].append(record)
    return Case(
        chain,
        tuple(map(tuple, sources)),
        seed,
        _ticks(rng, records, 900.0 if often else 90_000.0) if timed else (),
    )


def _ticks(rng: random.Random, records: list[Any], longest_s: float) -> tuple[tuple[int, float], ...]:
    """Some times that pass without an event, behind the first record."""
    if not records or rng.random() < 0.5:
        return ()
    found: list[tuple[int, float]] = []
    for before in sorted(rng.randint(1, len(records)) for _ in range(rng.randint(1, 4))):
        time = getattr(records[before - 1], "time", None)
        if isinstance(time, float) and -1e308 < time < 1e11:
            found.append((before, time + rng.choice([0.05, 1.0, 30.0, 400.0, longest_s])))
    return tuple(found)


def _task(rng: random.Random, index: int, kinds: Sequence[Any]) -> TaskSpec:
    kind = rng.choice(kinds)
    settings: dict[str, Any] = {}
    on_error = rng.choice(["dead_letter", "dead_letter", "pass"])
    if kind is blocks.Drop:
        settings["every"] = rng.randint(2, 6)
    elif kind is blocks.Change:
        settings["factor"] = rng.choice([0.5, 2.0, -1.0])
    elif kind is blocks.Multiply:
        settings["at_most"] = rng.randint(1, 3)
    elif kind in (blocks.Spread, blocks.Score):
        settings["raises_every"] = rng.choice([0, 0, 2, 5, 17])
    elif kind in (blocks.Suppress, blocks.Fading):
        settings["ttl_s"] = rng.choice([0.1, 0.1, 1, 3.5, 300])
    elif kind is blocks.Fail:
        settings |= {"every": rng.choice([1, 2, 5, 19]), "after": rng.choice([0, 0, 10, 25])}
    elif kind is blocks.Near:
        settings |= {"every": rng.choice([0, 5, 11]), "ttl_s": rng.choice([0.1, 1, 300])}
    elif kind is blocks.Seldom:
        settings["every"] = rng.choice([1, 2, 3, 5])
    elif kind is blocks.Owned:
        settings["spread"] = rng.choice([2, 3, 5])
    elif kind is blocks.Silent:
        settings |= {"after_s": rng.choice([0.1, 0.1, 1.0, 40.0]), "every": rng.choice([0, 0, 4, 7])}
    elif kind is blocks.Regular:
        settings["span_s"] = rng.choice([0.1, 2.0, 5.0, 30.0, 300.0])
    elif kind is blocks.Break:
        settings |= {"every": rng.choice([0, 3, 11, 29]), "how": rng.randrange(5)}
        on_error = "stop"
    return TaskSpec(kind, f"{kind.__name__}{index}", settings, on_error)


def _records(rng: random.Random, count: int, late: float) -> list[Any]:
    step = rng.choice([0.05, 0.1, 1.0, 100.0])
    start = rng.choice([0.0, -5.0, late])
    keys = rng.choice([1, 3, 6])
    odd = rng.choice([0.0, 0.0, 0.1])
    time, found = start, []
    for n in range(count):
        move = rng.random()
        if move < 0.6:
            time = round(time + step * rng.randint(0, 3), 3)
        elif move < 0.75:
            time = round(time - step * rng.randint(0, 4), 3)
        if n and rng.random() < odd:
            found.append(_odd(rng, n))
        else:
            found.append(_event(rng, n, rng.randrange(keys), time))
    return found


def _event(rng: random.Random, n: int, k: int, time: float) -> Any:
    kind = rng.random()
    if kind < 0.7:
        return Reading(n=n, k=k, v=float(rng.randint(-3, 3)), time=time)
    if kind < 0.85:
        at = datetime.datetime.fromtimestamp(time, datetime.UTC)
        return Note(n=n, k=k, text=rng.choice(["", "ä", "x" * 40]), time=at, tags={"a": [1], "b": {"c": k}})
    if kind < 0.95:
        return untyped({"n": n, "k": k, "time": rng.choice([time, int(time)]), "more": [1, {"x": None}]})
    return Bare(n=n, k=k)


def _odd(rng: random.Random, n: int) -> Any:
    """What is refused at the door, before or after it has become an event."""
    if rng.random() < 0.5:
        return Refused("malformed", b"{" * n, n * 10, "scripted")
    return Reading(
        n=n, k=0, v=0.0, time=rng.choice([float("nan"), float("inf"), -float("inf"), MILLISECONDS])
    )


def merged(sources: Sequence[Sequence[Any]]) -> list[Any]:
    """Rule 9, written plainly: by (time, order of the sources, offset); what has no time follows its predecessor."""
    left = [list(s) for s in sources]
    before = [float("-inf")] * len(left)
    log: list[Any] = []
    while any(left):
        heads = [(_time_of(s[0], before[i]), i) for i, s in enumerate(left) if s]
        time, i = min(heads)
        before[i] = time
        log.append(left[i].pop(0))
    return log


def _time_of(record: Any, before: float) -> float:
    if isinstance(record, UntypedEvent):
        time: Any = record.get("time")
    else:
        time = getattr(record, "time", None)
    if isinstance(time, datetime.datetime):
        time = time.timestamp()
    return before if time is None or not -1e308 < time <= 1e11 else float(time)


# ---------------------------------------------------------------- running


def refused_whole(case: Case) -> bool:
    """Whether the stream begins with a time in milliseconds: the engine stops there and says so."""
    return bool(case.log) and getattr(case.log[0], "time", None) == MILLISECONDS


def differs(case: Case, directory: Path) -> str | None:
    """Run a case in the ways that its seed chooses; the first difference from the reference, in words."""
    rng = random.Random(f"{case.seed} ways")
    if refused_whole(case):
        return None
    try:
        with pressed(random.Random(rng.random())):
            return _in_memory_differs(case, rng) or (
                _in_store_differs(case, rng, directory) if rng.random() < 0.4 else None
            )
    except (SecondpassError, AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"raised {type(error).__name__}: {error}\n{_where(error)}"


def _where(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)[-6:])


def pace(rng: random.Random) -> Pace:
    """Epoch cuts of one case: all at once, one by one, or anything."""
    sizes = rng.choice([[10_000], [1], [2, 3], [1, 5, 17], [7]])
    return Pace(
        random.Random(rng.random()), sizes, rng.choice([0.0, 0.0, 0.3, 1.0]), rng.choice([0.0, 0.0, 0.5])
    )


def sources(case: Case, rng: random.Random) -> list[Scripted]:
    batches = random.Random(rng.random()) if rng.random() < 0.5 else None
    return [Scripted(records, f"source {i}", batches) for i, records in enumerate(case.sources)]


def _in_memory_differs(case: Case, rng: random.Random) -> str | None:
    log = case.log
    want = meant(case.tasks(), log)
    for _ in range(2):
        got = in_memory(case.tasks(), log, pace(rng), sources(case, rng))
        found = difference(want, got) or misplaced(log, got, number_of)
        if found is not None:
            return f"in memory: {found}"
    every = rng.choice([0, 0, 5, 17])
    crew = Workers(random.Random(rng.random()), (lambda event: blocks.hit(event, every)) if every else None)
    got = in_memory(case.tasks(), log, pace(rng), sources(case, rng), crew=crew)
    found = difference(meant(case.tasks(), [*crew.verdicts, *log]), got) or misplaced(log, got, number_of)
    return None if found is None else f"on workers, {len(crew.verdicts)} verdicts: {found}"


def number_of(record: Any) -> Any:
    return None if record is None or isinstance(record, (Refused, Tick)) else blocks.number(record)


def _in_store_differs(case: Case, rng: random.Random, directory: Path) -> str | None:
    """Runs that end early, are killed, stop and are mended, with dead letters sent again in between."""
    store = directory / "store"
    shutil.rmtree(store, ignore_errors=True)
    log, mended = case.log, False
    kills = rng.choice([0, 0, 3])
    retries = rng.choice([0, 0, 2])
    source_length = len(without_ticks(log))
    for _ in range(60):
        limit = rng.choice([None, None, 1, 4, 15])
        kill_at = rng.randint(1, 25) if kills else None
        ended = in_store(
            case.tasks(mended=mended),
            log,
            store,
            pace(rng),
            sources=sources(case, rng),
            limit=limit,
            kill_at=kill_at,
        )
        if ended == "killed":
            kills -= 1
            continue
        left = stored(case.tasks(mended=mended), store)
        if ended not in ("end of input", "limit"):
            want = meant(case.tasks(mended=mended), log)
            if want.stopped != ended:
                return f"in a store: stopped: meant {want.stopped!r}, got {ended!r}"
            found = difference(want, left, stops=False)
            if found is not None:
                return f"in a store, where it stopped: {found}"
            if isinstance(log[left.position], Retry):
                del log[left.position]  # a retry that stops the app is not tried again
            mended = True
        elif retries and left.letters:
            # Sent again now, it is the next record; a second run must find it there and nowhere else.
            retries -= 1
            number = rng.randrange(len(left.letters))
            letter = left.letters[number]
            if letter.event is not None and not any(isinstance(r, Retry) and r.letter == number for r in log):
                Spool(store).put(Command("retry", number))
                log = [*log[: left.position], Retry(number, letter.task, letter.event), *log[left.position :]]
        elif ended == "end of input":
            break
    else:
        return "in a store: does not come to its end"
    assert len([r for r in log if not isinstance(r, (Retry, Tick))]) == source_length
    want = meant(case.tasks(mended=mended), log)
    left = stored(case.tasks(mended=mended), store)
    found = difference(want, left) or misplaced(log, left, number_of)
    if found is None and left.position != len(log):
        found = f"position {left.position} after {len(log)} records"
    return None if found is None else f"in a store: {found}"


# ---------------------------------------------------------------- shrinking


def shrunk(
    case: Case, directory: Path, differs_: Callable[[Case, Path], str | None] = differs
) -> tuple[Case, str]:
    """A smaller case that still differs, by leaving out tasks and records."""
    found = differs_(case, directory)
    assert found is not None
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(case):
            why = differs_(smaller, directory)
            if why is not None and why.split()[:3] == found.split()[:3]:
                case, found, progress = smaller, why, True
                break
    return case, found


def _smaller(case: Case) -> Any:
    for i in range(len(case.chain)):
        yield replace(case, chain=case.chain[:i] + case.chain[i + 1 :])
    for i in range(len(case.ticks)):
        yield replace(case, ticks=case.ticks[:i] + case.ticks[i + 1 :])
    for i, records in enumerate(case.sources):
        if not records and len(case.sources) > 1:
            yield replace(case, sources=case.sources[:i] + case.sources[i + 1 :])
        size = len(records)
        while size:
            for start in range(0, len(records), size):
                kept = records[:start] + records[start + size :]
                yield replace(case, sources=(*case.sources[:i], kept, *case.sources[i + 1 :]))
            size //= 2


def report(case: Case, found: str, directory: Path) -> str:
    """A difference, made small and readable."""
    try:
        small, why = shrunk(case, directory)
    except AssertionError:
        small, why = case, f"{found}\n(it did not differ when run again: something outside the case decides)"
    return f"{why}\n\n{small}\n\nrepeat with: cases.differs(cases.generate({case.seed!r}), directory)"


__all__ = ["INTAKE_TIME", "Alert", "Case", "Result", "differs", "field", "generate", "report", "shrunk"]
