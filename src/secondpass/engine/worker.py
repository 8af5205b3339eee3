"""What a worker does with a bundle: the plain loop's own call, over the cells that came along.

A worker is pure: events and cells in, results and changed cells out. It owns nothing that is not also in the hub.
What it keeps is a shortcut for its next bundle: the cells of the last one, and all cells of a task that may touch
all of them. Every call is kept whole or undone whole, every cell is checked at once (`step.Step`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from secondpass.binding import attach, look_into
from secondpass.calls import batch_results, expand
from secondpass.engine.bundle import (
    DROPPED,
    KEPT,
    KEYED,
    LOOKUPS,
    MORE,
    OUT_OF_MEMORY,
    PASSED,
    Answer,
    Beside,
    Bundle,
    More,
    decode_bundle,
    decode_events,
    decode_keys,
    encode_events,
    entries_of,
    lay_beside,
    parcel,
    values_beside,
    values_of,
)
from secondpass.engine.executor import BETWEEN, DECODING, SETTING_UP, Parcel
from secondpass.engine.overlay import Delta, Layered
from secondpass.engine.stage import no_moment
from secondpass.errors import TaskError
from secondpass.failpoints import failpoint
from secondpass.lookups import Contents, specs_of
from secondpass.record import error_text, said_by, storable, trace_text
from secondpass.step import CAUGHT, Step
from secondpass.store.format import CellCodec
from secondpass.task import Task

Mark = Callable[[int, int], None]


class Worker:
    """The tasks of a chain, each set up when its first bundle comes."""

    def __init__(self, tasks: tuple[Task[Any], ...], mark: Mark) -> None:
        self._specs = specs_of(tasks)
        self._lookups: dict[str, Contents[Any, Any]] = {name: Contents() for name in self._specs}
        self._tasks = tuple(look_into(task, self._lookups) for task in tasks)
        self._mark = mark
        self._runners: dict[int, _Runner] = {}

    def answer(self, given: Parcel) -> Parcel:
        """Run a bundle, and give what came of it."""
        bundle = decode_bundle(given.body)
        self._mark(bundle.number, DECODING)
        if bundle.task == LOOKUPS:
            self._look_into(bundle)
            self._mark(bundle.number, BETWEEN)
            return parcel(Answer(bundle.number, 0.0, b"", [], {}, {}))
        failpoint("worker.bundle.before")
        runner = self._runners.get(bundle.task)
        if runner is None:
            self._mark(bundle.number, SETTING_UP)
            try:
                runner = self._runners[bundle.task] = _Runner(self._tasks[bundle.task], self._mark)
            except CAUGHT as error:
                failed = (error_text(error), trace_text(error))
                return parcel(Answer(bundle.number, 0.0, b"", [], {}, {}, failed))
            self._mark(bundle.number, DECODING)
        answer = runner.run(bundle, given.beside)
        self._mark(bundle.number, BETWEEN)
        failpoint("worker.bundle.after")
        return answer

    def _look_into(self, bundle: Bundle) -> None:
        """Let lookups hold what has come: all of it, or what changed."""
        for name, (keys, entries) in bundle.cells.items():
            spec, contents = self._specs[name], self._lookups[name]
            codec = CellCodec.of(spec.table)
            found = spec.wake(dict(zip(codec.keys(keys), codec.entries(entries), strict=True)))
            if name in bundle.values:
                contents.take(found, codec.keys(bundle.values[name]))
            else:
                contents.become(found)


class _Runner:
    """One task in this process."""

    def __init__(self, task: Task[Any], mark: Mark) -> None:
        self._mark = mark
        self._step = Step(task, {}, {})
        self._task = self._step.task
        shape = type(task)._shape
        self._specs = shape.tables
        self._codecs = {n: CellCodec.of(spec) for n, spec in shape.tables.items()}
        self._whole: dict[str, dict[Any, Any]] = {}
        self._last: dict[str, dict[Any, Any]] = {}
        self._values: dict[str, bytes] = {}

    def run(self, bundle: Bundle, beside: Beside) -> Parcel:
        began = time.perf_counter()
        keyed = bundle.mode == KEYED
        cells = self._cells(bundle, beside)
        deltas = {n: Delta({}, set()) for n in cells}
        step = self._step
        for name, table in step.tables.items():
            table._cells = Layered(cells[name], deltas[name])
        # One with keys sees no values, and leaves alone what the next one goes on with that has all.
        rests = self._values if bundle.mode == KEPT else values_of(bundle.values, beside)
        step.values.clear()
        step.values.rests = dict(rests)
        events = decode_events(bundle.events, beside)
        keys = decode_keys(bundle.keys) if keyed and type(self._task)._shape.stateful else None
        became, more = bytearray(len(events)), list[More]()
        if not (len(events) > 1 and not bundle.singly and self._run_batch(bundle, events, became, more)):
            self._run_singly(bundle, events, keys, became, more)
        changed = {
            n: (list(d.changed), lay_beside(list(d.changed.values()), self._codecs[n]), list(d.gone))
            for n, d in deltas.items()
            if d
        }
        values = values_beside({n: rest for n, rest in step.values.rests.items() if rests.get(n) != rest})
        self._remember(cells, deltas, keys)
        seconds = time.perf_counter() - began
        return parcel((bundle.number, seconds, became, more, changed, values))

    def _cells(self, bundle: Bundle, beside: Beside) -> dict[str, dict[Any, Any]]:
        """The resting cells by table: those that came, and those that are here already."""
        if bundle.mode == KEPT:
            return self._whole
        found: dict[str, dict[Any, Any]] = {}
        for name, codec in self._codecs.items():
            inherited = self._last.get(name, {}) if bundle.inherits else {}
            came = bundle.cells.get(name)
            if came is not None:
                keys, entries = came
                came_now = zip(codec.keys(keys), entries_of(entries, codec, beside), strict=True)
                inherited = {**inherited, **dict(came_now)}
            found[name] = inherited
        return found

    def _remember(
        self,
        cells: dict[str, dict[Any, Any]],
        deltas: dict[str, Delta],
        keys: list[frozenset[Any]] | None,
    ) -> None:
        """Keep what the next bundle may go on with."""
        self._last = {}
        if keys is not None:
            touched = frozenset[Any]().union(*keys)
            for name, base in cells.items():
                layered, spec = Layered(base, deltas[name]), self._specs[name]
                kept = self._last[name] = {}
                quick = spec.key.quick or ()
                for key in touched:
                    entry = layered.get(key, _NONE)
                    if entry is not _NONE:
                        plain = key.__class__ in quick
                        kept[key if plain else spec.own_key(key, (*deltas[name].changed, *base))] = entry
            return
        for name, delta in deltas.items():
            cells[name].update(delta.changed)
            for key in delta.gone:
                cells[name].pop(key, None)
        self._whole, self._values = cells, dict(self._step.values.rests)

    def _run_batch(self, bundle: Bundle, events: list[Any], became: bytearray, more: list[More]) -> bool:
        """Handle all at once where the task does; gives False where that fails, and one by one may not."""
        if not hasattr(type(self._task), "handle_batch"):
            return False
        self._mark(bundle.number, 0)
        moment = no_moment()
        attach(self._task, _moment=moment)
        try:
            results = batch_results(self._task, events)
            found = [expand(r, e, self._task.name) for r, e in zip(results, events, strict=True)]
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except CAUGHT:
            return False
        finally:
            attach(self._task, _moment=self._step.moment)
        for i, (event, (put_out, branched)) in enumerate(zip(events, found, strict=True)):
            became[i] = self._note(event, put_out, branched, more)
        if moment.counts or moment.logged:  # of all together: the first event brings them home
            became[0], first = MORE, self._full(became[0], more)
            first.counts, first.logged = moment.counts, list(map(_told, moment.logged))
        return True

    @staticmethod
    def _full(what: int, more: list[More]) -> More:
        if what != MORE:
            more.insert(0, More(itself=what == PASSED))
        return more[0]

    def _run_singly(
        self,
        bundle: Bundle,
        events: list[Any],
        keys: list[frozenset[Any]] | None,
        became: bytearray,
        more: list[More],
    ) -> None:
        step, mark, number = self._step, self._mark, bundle.number
        positions, nows, paths = bundle.positions, bundle.nows, bundle.paths
        moment = step.moment
        for i, event in enumerate(events):
            mark(number, i)
            try:
                results, branched = step.call(
                    event,
                    positions[i],
                    nows[i],
                    () if paths is None else tuple(paths[i]),
                    None if keys is None else keys[i],
                )
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except CAUGHT as error:
                became[i] = MORE
                fault = isinstance(error, TaskError)
                text = said_by(error) if fault else error_text(error)
                more.append(More(error=(fault, text, trace_text(error))))
                continue
            if moment.emitted or moment.counts or moment.logged:
                self._note(event, results, branched, more, full=True)
                became[i] = MORE
            else:
                became[i] = self._note(event, results, branched, more)

    def _note(
        self, event: Any, results: list[Any], branched: bool, more: list[More], *, full: bool = False
    ) -> int:
        """Add to the answer what came of an event; gives its byte."""
        if not full and not branched:
            if not results:
                return DROPPED
            if results[0] is event:
                return PASSED
        itself = not branched and bool(results) and results[0] is event
        found = More(itself=itself, branched=branched)
        if not itself and (results or branched):
            found.results = encode_events(results)
        if full:
            moment = self._step.moment
            found.emitted = [(stream, encode_events([e])) for stream, e in moment.emitted]
            found.counts = moment.counts
            found.logged = list(map(_told, moment.logged))
        more.append(found)
        return MORE


_NONE: Any = object()


def _told(record: Any) -> tuple[str, int, str]:
    """A log record as what crosses processes: the logger, the level, the line."""
    return record.name, record.levelno, storable(_format(record))


_format = logging.Formatter("%(message)s").format
