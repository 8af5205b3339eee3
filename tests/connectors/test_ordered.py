"""A source put in order: what comes too late goes its own way, and every place in it can be gone on from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from secondpass import App, Event, Task, output, table
from secondpass.connectors import JsonLines, Ordered
from secondpass.connectors.contract import Batch
from secondpass.engine.outbox import decode_events
from secondpass.errors import DefinitionError, InputError, TaskStopped
from secondpass.record import Late, Refused
from secondpass.store.reader import StoreReader


class Seen(Event):
    n: int
    time: float


def naive(records: Sequence[Any], lateness_s: float) -> list[Any]:
    """What comes out, written plainly: after each record, all whose time is so far behind the latest."""
    out: list[Any] = []
    held: list[Any] = []
    latest = float("-inf")
    for record in records:
        if isinstance(record, Refused):
            out.append(record)
        elif record.time < latest - lateness_s:
            out.append(Late(record))
        else:
            held.append(record)
            latest = max(latest, record.time)
            gone = sorted((r for r in held if r.time <= latest - lateness_s), key=lambda r: r.time)
            out += gone
            held = [r for r in held if r not in gone]
    return out + sorted(held, key=lambda r: r.time)


class Given:
    """An inner source of given records, in batches of any size; at its end it stands still, if it is followed."""

    type: Any = Seen

    def __init__(
        self, records: Sequence[Any], rng: random.Random | None = None, *, following: bool = False
    ) -> None:
        self.name, self.records, self.rng, self.following = "given", records, rng, following

    def open(self, offset: dict[str, Any] | None, *, follow: bool = False, accept: bool = False) -> Any:
        return _GivenReader(self, 0 if offset is None else offset["count"])


class _GivenReader:
    def __init__(self, source: Given, at: int) -> None:
        self._source, self._at = source, at

    def read(self, limit: int) -> Batch | None:
        source = self._source
        if self._at >= len(source.records):
            return Batch([], {"count": self._at}) if source.following else None
        size = limit if source.rng is None else source.rng.randint(0, min(limit, 7))
        taken = source.records[self._at : self._at + size]
        self._at += len(taken)
        refused = {i: r for i, r in enumerate(taken) if isinstance(r, Refused)}
        origin = [i for i in range(len(taken)) if i not in refused]
        return Batch(
            [taken[i] for i in origin], {"count": self._at}, count=len(taken), origin=origin, refused=refused
        )

    def verify(self) -> None: ...
    def progress(self) -> None: ...
    def close(self) -> None: ...


def stream(rng: random.Random, count: int) -> list[Any]:
    now, found = 100.0, []
    for n in range(count):
        now += rng.choice([0.0, 0.5, 1.0, 4.0])
        if rng.random() < 0.05:
            found.append(Refused("malformed", b"{", n, "given"))
        else:
            found.append(Seen(n=n, time=round(now - rng.choice([0, 0, 0, 1, 2, 3, 7, 20]), 3)))
    return found


def records_of(batch: Batch) -> list[Any]:
    by_index = dict(zip(batch.origin, batch.events, strict=True))
    return [by_index[i] if i in by_index else batch.refused[i] for i in range(batch.count)]


@pytest.mark.parametrize("lateness_s", [0.0, 2.0, 6.0, 1e6])
def test_records_come_in_order_and_late_ones_are_told_apart(rng: random.Random, lateness_s: float) -> None:
    for _ in range(30):
        records = stream(rng, rng.randint(0, 60))
        reader = Ordered(Given(records, rng), lateness_s=lateness_s).open(None)
        out: list[Any] = []
        while (batch := reader.read(rng.randint(1, 9))) is not None:
            out += records_of(batch)
        assert out == naive(records, lateness_s)


def test_it_goes_on_from_every_place_and_from_inside_every_batch(rng: random.Random) -> None:
    for _ in range(60):
        records = stream(rng, rng.randint(1, 50))
        source = Ordered(Given(records, rng), lateness_s=rng.choice([0.0, 2.0, 6.0, 50.0]))
        want = naive(records, source.lateness_s)
        out: list[Any] = []
        offset: Any = None
        for _ in range(1000):
            reader = source.open(offset)
            for _ in range(rng.randint(1, 6)):
                before = offset if rng.random() < 0.3 else None
                batch = reader.read(rng.randint(1, 9))
                if batch is None:
                    break
                out += records_of(batch)
                offset = batch.offset
                if before is not None and batch.count:
                    # Some of the batch was taken, then the run stopped: it is read again and passed over.
                    taken = rng.randrange(batch.count)
                    again, skip = source.open(before), taken
                    del out[len(out) - batch.count + taken :]
                    while skip:
                        passed = again.read(skip)
                        assert passed is not None
                        skip -= passed.count
                        before = passed.offset
                    reader, offset = again, before
            else:
                continue
            break
        assert out == want


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_held_goes_when_the_source_has_stood_still_for_as_long() -> None:
    clock, inner = Clock(), Given([Seen(n=0, time=10.0), Seen(n=1, time=8.0)], following=True)
    source = Ordered(inner, lateness_s=5.0)
    source.clock = clock
    reader = source.open(None)
    assert [reader.read(10).count for _ in range(3)] == [0, 0, 0]
    clock.now = 4.9
    assert reader.read(10).count == 0
    clock.now = 5.0
    decided = reader.read(10)
    assert decided.count == 0
    first = reader.read(1)
    assert records_of(first) == [Seen(n=1, time=8.0)]
    # Whoever goes on from the decision has the same without a clock.
    assert [e.n for e in source.open(decided.offset).read(10).events] == [1, 0]
    assert [e.n for e in reader.read(10).events] == [0]
    # What comes behind it is late.
    inner.records = [*inner.records, Seen(n=2, time=9.0), Seen(n=3, time=30.0)]
    assert records_of(reader.read(10)) == [Late(Seen(n=2, time=9.0))]


def test_what_was_let_go_is_not_held_again_after_a_restart() -> None:
    clock, given = Clock(), [Seen(n=0, time=100.0), Seen(n=1, time=101.0), Seen(n=2, time=90.0)]
    source = Ordered(Given(given[:1], following=True), lateness_s=5.0)
    source.clock = clock
    reader = source.open(None)
    assert reader.read(10).count == 0
    source._inner.records = given  # the two come in a batch of their own
    assert records_of(reader.read(10)) == [Late(given[2])]
    assert reader.read(10).count == 0
    clock.now = 5.0
    assert reader.read(10).decided == {"let_go": [2]}
    first = reader.read(1)
    assert records_of(first) == [given[0]]
    assert records_of(source.open(first.offset).read(10)) == [given[1]]


class Once(Task[Seen]):
    seen = table(int, float)

    def handle(self, event: Seen) -> Seen:
        self.seen[event.n] = self.now
        return event


def lines(records: Sequence[Any]) -> bytes:
    texts = ["{" if isinstance(r, Refused) else f'{{"n": {r.n}, "time": {r.time}}}' for r in records]
    return "".join(f"{text}\n" for text in texts).encode()


def test_an_app_over_an_ordered_file_is_exact_whatever_the_epochs_and_restarts(
    tmp_path: Path, rng: random.Random
) -> None:
    records = stream(rng, 400)
    (tmp_path / "in.jsonl").write_bytes(lines(records))
    source = Ordered(JsonLines(tmp_path / "in.jsonl", Seen), lateness_s=5.0)
    want = naive(records, 5.0)

    def app() -> App:
        return App(
            "ordered", source=source, tasks=[Once()], sink=JsonLines(tmp_path / "out.jsonl"),
            sinks={"late": JsonLines(tmp_path / "late.jsonl")},
        )  # fmt: skip

    for _ in range(200):
        if app().run(store=tmp_path / "store", limit=rng.randint(1, 40), workers=0).ended != "limit":
            break
    kept = [e for e in want if isinstance(e, Seen)]
    late = [r.event for r in want if isinstance(r, Late)]
    assert late
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == len(kept)
    opened = StoreReader.open_to_read(tmp_path / "store")
    positions = [p for row in opened.outputs("late") for p in row.positions]
    assert [want[p] for p in positions] == [Late(e) for e in late]
    assert opened.progress.numbers["late"] == len(late)
    assert [letter.position for _, _, letter in opened.letters()] == [
        i for i, r in enumerate(want) if isinstance(r, Refused)
    ]
    assert opened.progress.position == len(want)
    opened.close()


def stored(store: Path, stream: str) -> list[Any]:
    opened = StoreReader.open_to_read(store)
    try:
        return [event for row in opened.outputs(stream) for event in decode_events(row.body)]
    finally:
        opened.close()


class Stop(Task[Seen]):
    at: int = -1

    def handle(self, event: Seen) -> Seen:
        if event.n == self.at:
            raise ValueError("stop")
        return event


def test_an_app_that_stops_inside_an_epoch_goes_on_with_the_next_record(
    tmp_path: Path, rng: random.Random
) -> None:
    for turn in range(20):
        records = [r for r in stream(rng, 80) if isinstance(r, Seen)]
        want = naive(records, 3.0)
        kept = [e for e in want if isinstance(e, Seen)]
        ats = rng.sample([e.n for e in kept], 3)
        for at in [*sorted(ats, key=[e.n for e in kept].index), -1]:
            app = App(
                "stops", source=Ordered(Given(records, rng), lateness_s=3.0),
                tasks=[Stop(at=at).options(on_error="stop")],
            )  # fmt: skip
            with contextlib.suppress(TaskStopped):
                app.run(store=tmp_path / f"store{turn}", workers=0)
        assert stored(tmp_path / f"store{turn}", "main") == kept
        assert stored(tmp_path / f"store{turn}", "late") == [r.event for r in want if isinstance(r, Late)]


def test_an_event_too_far_ahead_makes_no_other_late(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Seen(n=0, time=100.0), Seen(n=1, time=5000.0), Seen(n=2, time=99.0), Seen(n=3, time=200.0)]
    monkeypatch.setattr("secondpass.connectors.ordered.time.time", lambda: 150.0)
    source = Ordered(Given(records), lateness_s=5.0, max_ahead_s=60.0)
    reader = source.open(None)
    decided = reader.read(10)
    assert decided.count == 0
    monkeypatch.setattr("secondpass.connectors.ordered.time.time", lambda: 1e6)  # it is decided once
    for again in (reader, source.open(decided.offset)):
        out: list[Any] = []
        while (batch := again.read(10)) is not None:
            out += records_of(batch)
        assert [r.n for r in out] == [1, 2, 0, 3]


def test_what_cannot_be_is_refused() -> None:
    for lateness_s in (-1.0, float("nan"), float("inf"), "5s"):
        with pytest.raises(DefinitionError, match="lateness_s"):
            Ordered([], lateness_s=lateness_s)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="was not read in order until now"):
        Ordered(Given([]), lateness_s=1.0).open({"count": 3})

    class Named(Task[Seen]):
        late = output()

        def handle(self, event: Seen) -> None: ...

    with pytest.raises(DefinitionError, match="cannot be called 'late'"):
        App("named", source=Ordered(Given([]), lateness_s=1.0), tasks=[Named()])
    with pytest.raises(DefinitionError, match="no task has an output of that name"):
        App("none", source=Given([]), sinks={"late": print})
