"""A process that runs records before the hub does, with the whole chain, so that what they end is not the hub.

It stands where the store stands: the cells are read from there, and then brought forward by what it runs. Nothing of
what it finds counts, and none of it comes back; the hub runs the records again. Before each call it notes beside the
store which one that is:

    tried       length of the rest (4 bytes), then msgpack: task, position, path, checksum of the event

`scouting.Scouting` sends it out, and reads that note when it has died.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from secondpass.binding import look_into
from secondpass.codec import pack
from secondpass.engine.bundle import Encoded, decode_events
from secondpass.engine.chain import Chain, Cut
from secondpass.engine.compare import codecs_of
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.executor import BETWEEN, DECODING, SETTING_UP, Parcel
from secondpass.engine.hazard import TRIED
from secondpass.engine.lookups import recorded
from secondpass.engine.stage import Stage
from secondpass.engine.worker import Mark
from secondpass.lookups import Contents, specs_of
from secondpass.record import Refused, Retry, Verdict, error_text, event_crc, trace_text
from secondpass.step import CAUGHT
from secondpass.store.reader import StoreReader
from secondpass.task import Task

_LENGTH = 4
_REFUSED = Refused("", b"", -1, "")


class Errand(msgspec.Struct, array_like=True):
    """Records to be run: those of an epoch, and where the chain stands before it."""

    number: int
    store: str
    chain: list[tuple[int, bool]]
    """The tasks in order: their index among those of the recipe, and whether they are stopped."""
    first: int
    count: int
    now: float
    events: Encoded
    origin: list[int]
    times: list[float]
    refused: list[int]
    tick: float | None
    retry: str | None
    """Of a dead letter that is sent again: the task at which it enters."""
    verdicts: list[Verdict]


class Call(NamedTuple):
    """What the process is about to do, as it notes it; at no position while it sets a task up."""

    task: str
    position: int
    path: tuple[int, ...]
    crc: int


class Failed(msgspec.Struct, array_like=True):
    """A task's `setup()` raised."""

    task: str
    text: str
    trace: str


decode_errand = msgspec.msgpack.Decoder(Errand).decode
decode_answer = msgspec.msgpack.Decoder(Failed | None).decode
_decode_call = msgspec.msgpack.Decoder(Call).decode


def noted(store: Path) -> Call:
    """What the process that died was about to do."""
    body = (store / TRIED).read_bytes()
    length = int.from_bytes(body[:_LENGTH], "little")
    return _decode_call(body[_LENGTH : _LENGTH + length])


class Scout:
    """The tasks of an app, to be run as a chain."""

    def __init__(self, tasks: tuple[Task[Any], ...], mark: Mark) -> None:
        self._tasks = tasks
        self._mark = mark
        self._chain: Chain | None = None
        self._stands: tuple[int, list[tuple[int, bool]]] | None = None
        """The position before which it stands, and with which chain."""
        self._file = -1
        self._number = self._calls = 0

    def answer(self, given: Parcel) -> Parcel:
        """Run what an errand brings; gives `Failed`, or nothing."""
        errand = decode_errand(given.body)
        self._number, self._calls = errand.number, 0
        self._mark(errand.number, DECODING)
        events = decode_events(errand.events, given.beside)
        chain, failed = self._chain, None
        if chain is None or self._stands != (errand.first, errand.chain):
            chain = found = self._at(errand)
            failed = found if isinstance(found, Failed) else None
        if isinstance(chain, Chain):
            self._run(chain, errand, events)
        self._mark(errand.number, BETWEEN)
        return Parcel(pack(failed))

    def _at(self, errand: Errand) -> Chain | Failed:
        """The chain as it stands where the store does."""
        directory = Path(errand.store)
        if self._file < 0:
            self._file = os.open(directory / TRIED, os.O_RDWR | os.O_CREAT, 0o666)
        tasks = tuple(self._tasks[number] for number, _ in errand.chain)
        store = StoreReader.open_to_read(directory)
        try:
            with store.snapshot():
                specs = specs_of(tasks)
                held = recorded(store, specs)
                cells = store.load(codecs_of(tasks))
        finally:
            store.close()
        contents = {name: Contents(spec.wake(held[name])) for name, spec in specs.items()}
        stages: list[Stage] = []
        for task, (_, stopped) in zip(tasks, errand.chain, strict=True):
            shape = type(task)._shape
            values = {n: cells[task.name, n][None] for n in shape.values if cells[task.name, n]}
            tables = {n: cells[task.name, n] for n in shape.tables}
            self._note(Call(task.name, -1, (), 0), SETTING_UP)
            try:
                stages.append(
                    _NotedStage(look_into(task, contents), tables, values, stopped=stopped, note=self._about)
                )
            except CAUGHT as error:
                return Failed(task.name, error_text(error), trace_text(error))
        self._mark(self._number, DECODING)
        return Chain(stages)

    def _run(self, chain: Chain, errand: Errand, events: list[Any]) -> None:
        for stage in chain.stages:
            stage.verdicts = {(v.position, v.path): v for v in errand.verdicts if v.task == stage.name}
        now_after = max(errand.now, *errand.times, errand.tick or errand.now)
        epoch = Epoch(
            number=errand.number,
            first=errand.first,
            count=errand.count,
            events=events,
            origin=errand.origin,
            times=errand.times,
            refused=dict.fromkeys(errand.refused, _REFUSED),
            now=errand.now,
            now_after=now_after,
            offsets=[],
            kinds=set(map(type, events)),
            retry=None if errand.retry is None else Retry(-1, errand.retry, events[0]),
            tick=errand.tick,
        )
        try:
            outcome = chain.run(epoch, careful=True)
        except Cut:  # where the hub will stop as well
            self._chain = self._stands = None
            return
        _apply(chain, outcome)
        self._chain, self._stands = chain, (errand.first + errand.count, errand.chain)

    def _about(self, task: str, position: int, path: tuple[int, ...], event: Any) -> None:
        try:
            crc = event_crc(event)
        except Exception:  # noqa: BLE001 - what has no encoding is for the call to find
            crc = 0
        self._calls += 1
        self._note(Call(task, position, path, crc), self._calls)

    def _note(self, call: Call, index: int) -> None:
        body = pack(call)
        os.pwrite(self._file, len(body).to_bytes(_LENGTH, "little") + body, 0)
        self._mark(self._number, index)


class _NotedStage(Stage):
    """A stage whose every call is noted before it begins."""

    def __init__(
        self,
        task: Task[Any],
        tables: dict[str, dict[Any, Any]],
        values: dict[str, bytes],
        *,
        stopped: bool,
        note: Callable[[str, int, tuple[int, ...], Any], None],
    ) -> None:
        super().__init__(task, tables, values, elsewhere=stopped, stopped=stopped)
        self._note_call = note

    def obey_verdict(self, event: Any, position: int, path: tuple[int, ...]) -> None:
        super().obey_verdict(event, position, path)
        self._note_call(self.name, position, path, event)


def _apply(chain: Chain, outcome: Outcome) -> None:
    """As after a commit, where there is no store to bring the tables up to date."""
    stages = {stage.name: stage for stage in chain.stages}
    for (task, table), delta in outcome.deltas.items():
        cells = stages[task].tables[table]
        cells.update(delta.changed)
        for key in delta.gone:
            cells.pop(key, None)
    chain.apply(outcome)
