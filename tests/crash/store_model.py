"""A store that is written at random, and what it must hold after every turn, told by plain dicts and lists."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from secondpass.codec import codec_for, pack
from secondpass.store.database import OutputRow, Store
from secondpass.store.format import CellCodec, StoredLetter

Name = tuple[str, str]

CODECS: dict[Name, CellCodec] = {
    ("count", "seen"): CellCodec(codec_for(int), codec_for(float), ttl=False),
    ("count", "names"): CellCodec(codec_for(str), codec_for(list[int]), ttl=False),
    ("hold", "since"): CellCodec(codec_for(tuple[int, int]), codec_for(int | None), ttl=True),
    ("hold", "last"): CellCodec.of_value(),
}
STREAMS = ("main", "pages")


class Delta:
    """What an epoch changes in one table."""

    def __init__(self) -> None:
        self.changed: dict[Any, Any] = {}
        self.gone: set[Any] = set()


@dataclass(frozen=True)
class State:
    """What a store must hold after a turn."""

    turn: int
    epoch: int = 0
    position: int = 0
    cells: dict[Name, dict[Any, Any]] = field(default_factory=dict)
    rows: dict[str, tuple[OutputRow, ...]] = field(default_factory=dict)
    letters: tuple[tuple[int, str, StoredLetter], ...] = ()
    history: tuple[tuple[int, str, Any], ...] = ()
    sinks: dict[str, Any] = field(default_factory=dict)
    chain: Any = None

    def differs_from(self, store: Store) -> str:
        """How an open store differs from this state; empty when it does not. Reads all there is."""
        found: list[str] = []
        with store.snapshot():
            if store.epoch != self.epoch or store.progress.position != self.position:
                found.append(f"epoch {store.epoch} at position {store.progress.position}")
            if store.meta("chain") != self.chain:
                found.append("chain")
            cells = store.load(CODECS)
            found += [".".join(name) for name in CODECS if cells[name] != self.cells.get(name, {})]
            found += [f"outputs of {stream}" for stream in STREAMS if not self._same_rows(store, stream)]
            if tuple(store.letters()) != self.letters:
                found.append("dead letters")
            if tuple(store.history()) != self.history:
                found.append("history")
            if store.progress.sinks != self.sinks:
                found.append("sinks")
        return ", ".join(found)

    def _same_rows(self, store: Store, stream: str) -> bool:
        kept_from = store.progress.kept_from.get(stream, 0)
        if kept_from > self.sinks.get(stream, {"number": 0})["number"]:
            return False  # an output is gone that no sink holds for certain
        rows = [r for r in self.rows.get(stream, ()) if r.first >= kept_from]
        return list(map(_parts, store.outputs(stream, after=kept_from))) == list(map(_parts, rows))


def _parts(row: OutputRow) -> tuple[Any, ...]:
    return row.stream, row.first, row.count, row.format, row.positions, row.body


class Writer:
    """Writes a store at random; `states[-1]` is what it must hold now, `next_state` after the call under way."""

    def __init__(self, store: Store, rng: random.Random, state: State | None = None) -> None:
        self.store = store
        self.rng = rng
        before = state or State(turn=0)
        self.state = replace(before, turn=store.turn)
        self._names = {name: dict(cells) for name, cells in self.state.cells.items()}
        self._hot = [rng.randrange(1000) for _ in range(8)]

    def start(self) -> State:
        """A start of the chain, sometimes with state dropped."""
        state, rng = self.state, self.rng
        moves: dict[Name, Name | None] = {}
        cells = dict(state.cells)
        if state.cells and rng.random() < 0.3:
            gone = rng.choice(sorted(state.cells))
            moves[gone] = None
            cells[gone] = {}
        chain = [f"chain of turn {state.turn}"]
        self.store.load(CODECS, moves)
        self.store.start(chain, CODECS, moves, {"pid": 1}, {"name": "app"})
        history = (*state.history, (state.position, "start", {"pid": 1}))
        self.state = replace(state, turn=state.turn + 1, cells=cells, chain=chain, history=history)
        return self.state

    def commit(self) -> State:
        """An epoch with something of everything."""
        state, rng = self.state, self.rng
        count = rng.randrange(1, 20)
        cells = {name: dict(state.cells.get(name, {})) for name in CODECS}
        deltas = {name: self._delta(name, cells[name]) for name in CODECS if rng.random() < 0.6}
        for name, delta in deltas.items():
            cells[name].update(delta.changed)
            for key in delta.gone:
                del cells[name][key]
        numbers = {s: sum(r.count for r in rows) for s, rows in state.rows.items()}
        sinks = dict(state.sinks)
        for stream in STREAMS:
            if rng.random() < 0.3:
                sinks[stream] = {"number": numbers.get(stream, 0)}
        rows = [self._row(s, numbers.get(s, 0), state.position) for s in STREAMS if rng.random() < 0.5]
        new_letters = [self._letter(state.position) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
        letters = [*state.letters]
        status: dict[int, str] = {}
        if letters and rng.random() < 0.2:
            at = rng.randrange(len(letters))
            status[at] = rng.choice(("sent", "dropped"))
            letters[at] = (at, status[at], letters[at][2])
        letters += [(len(letters) + i, "open", letter) for i, letter in enumerate(new_letters)]
        history = [("taken", [[0, count]])] if rng.random() < 0.1 else []
        before = self.store.progress
        progress = msgspec.structs.replace(
            before,
            position=state.position + count,
            numbers=dict(before.numbers),
            totals=dict(before.totals),
            kept_from=dict(before.kept_from),
            sinks=sinks,
        )
        self.store.commit(progress, deltas, rows, new_letters, history, status)
        kept = {s: (*state.rows.get(s, ()), *(r for r in rows if r.stream == s)) for s in STREAMS}
        self.state = State(
            turn=state.turn + 1,
            epoch=state.epoch + 1,
            position=state.position + count,
            cells=cells,
            rows=kept,
            letters=tuple(letters),
            history=(*state.history, *((state.position, kind, details) for kind, details in history)),
            sinks=sinks,
            chain=state.chain,
        )
        return self.state

    def _delta(self, name: Name, cells: dict[Any, Any]) -> Delta:
        rng, delta = self.rng, Delta()
        if name == ("hold", "last"):
            delta.changed[None] = pack([rng.random()] * rng.randrange(40))
            return delta
        for _ in range(rng.randrange(1, 12)):
            number = rng.choice(self._hot) if rng.random() < 0.4 else rng.randrange(1000)
            if name == ("count", "seen"):
                delta.changed[number] = rng.random()
            elif name == ("count", "names"):
                delta.changed[f"camera {number}"] = pack(list(range(rng.randrange(30))))
            else:
                delta.changed[number, number % 7] = (rng.choice((None, number)), rng.random())
        if cells and rng.random() < 0.4:
            delta.gone = {k for k in rng.sample(list(cells), min(4, len(cells))) if k not in delta.changed}
        return delta

    def _row(self, stream: str, first: int, position: int) -> OutputRow:
        rng = self.rng
        count = rng.randrange(1, 6)
        positions = sorted(position + i * rng.choice((1, 1, 2)) for i in range(count))
        return OutputRow(
            stream, first, count, "json", positions, rng.randbytes(rng.choice((20, 200, 900, 6000)))
        )

    def _letter(self, position: int) -> StoredLetter:
        return StoredLetter(
            position, "count", "ValueError: no", "Traceback", self.rng.randbytes(30), b"", 7, "lines"
        )


def small_limits(monkeypatch: Any) -> None:
    """Let folds, pruning and their ends happen every few epochs."""
    monkeypatch.setattr("secondpass.store.fold.BYTES_MIN", 2000)
    monkeypatch.setattr("secondpass.store.fold.DELTA_BYTES", 100)
    monkeypatch.setattr("secondpass.store.fold.SLICE_BYTES", 300)
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 4000)


def open_small(directory: Path, **options: Any) -> Store:
    """A store that checkpoints every few epochs."""
    return Store.open(directory, wal_pages=24, **options)
