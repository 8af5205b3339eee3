"""What every sink promises, asked of all of them; files are cut at every byte, as a crash would."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from secondpass import Event
from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Delivery, Sink
from secondpass.connectors.memory import as_sink
from secondpass.errors import OutputError


class Kept(Event):
    cid: int
    note: str


EVENTS = [Kept(cid=i, note=note) for i, note in enumerate(["a", "b, c", 'd "e"', "", "ü\n", "g", "h"])]
CUTS = [2, 1, 3, 1]  # outputs per delivery


def deliveries() -> list[tuple[Delivery, list[Any]]]:
    found: list[tuple[Delivery, list[Any]]] = []
    first = 0
    for count in CUTS:
        events = EVENTS[first : first + count]
        body = msgspec.json.Encoder().encode_lines(events)
        found.append((Delivery(first, count, body), list(events)))
        first += count
    return found


@dataclass
class Target:
    make: Callable[[], Sink]
    content: Callable[[], Any]
    path: Path | None = None
    seen: list[Any] = field(default_factory=list)


def json_target(path: Path) -> Target:
    def content() -> Any:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return msgspec.json.Decoder(Kept).decode_lines(data)

    return Target(lambda: as_sink(JsonLines(path)), content, path)


def csv_target(path: Path) -> Target:
    def content() -> Any:
        batch = Csv(path, Kept).open(None).read(1000)
        return [] if batch is None else batch.events

    return Target(lambda: as_sink(Csv(path)), content, path)


def callable_target(path: Path) -> Target:
    seen: list[Any] = []
    return Target(lambda: as_sink(seen.append), lambda: seen, None, seen)


KINDS: dict[str, Callable[[Path], Target]] = {
    "jsonl": lambda d: json_target(d / "out.jsonl"),
    "jsonl.gz": lambda d: json_target(d / "out.jsonl.gz"),
    "csv": lambda d: csv_target(d / "out.csv"),
    "csv.gz": lambda d: csv_target(d / "out.csv.gz"),
    "callable": callable_target,
}
FILES = [k for k in KINDS if k != "callable"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_file = pytest.mark.parametrize("kind", FILES)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state))


@every_kind
def test_outputs_arrive_in_order_and_once(kind: str, tmp_path: Path) -> None:
    target = KINDS[kind](tmp_path)
    sink = target.make()
    sink.open(None)
    sink.recovered()
    for delivery, events in deliveries():
        sink.deliver(delivery, events)
    state = sink.sync()
    sink.close()
    assert target.content() == EVENTS
    assert state["number"] == len(EVENTS)


@every_kind
def test_a_sink_continues_from_every_state(kind: str, tmp_path: Path) -> None:
    target = KINDS[kind](tmp_path)
    state: dict[str, Any] | None = None
    for delivery, events in deliveries():
        sink = target.make()
        sink.open(state)
        sink.recovered()
        sink.deliver(delivery, events)
        state = stored(sink.sync())
        sink.close()
    assert target.content() == EVENTS


@every_kind
def test_a_delivery_that_was_covered_by_the_state_is_not_repeated(kind: str, tmp_path: Path) -> None:
    target = KINDS[kind](tmp_path)
    sink = target.make()
    sink.open(None)
    sink.recovered()
    for delivery, events in deliveries():
        sink.deliver(delivery, events)
        sink.deliver(delivery, events)
    sink.close()
    assert target.content() == EVENTS


@every_kind
def test_a_delivery_that_begins_before_the_state_is_cut(kind: str, tmp_path: Path) -> None:
    target = KINDS[kind](tmp_path)
    sink = target.make()
    sink.open(None)
    sink.recovered()
    sink.deliver(*deliveries()[0])
    body = msgspec.json.Encoder().encode_lines(EVENTS)
    sink.deliver(Delivery(0, len(EVENTS), body), list(EVENTS))
    sink.close()
    assert target.content() == EVENTS


@every_kind
def test_missing_outputs_are_noticed(kind: str, tmp_path: Path) -> None:
    sink = KINDS[kind](tmp_path).make()
    sink.open(None)
    sink.recovered()
    sink.deliver(*deliveries()[0])
    with pytest.raises(OutputError, match="next output to deliver is number 2, and the store gives 3"):
        sink.deliver(*deliveries()[2])
    sink.close()


@every_kind
def test_a_sink_that_came_late_begins_with_the_first_output_it_is_given(kind: str, tmp_path: Path) -> None:
    target = KINDS[kind](tmp_path)
    sink = target.make()
    sink.open(None)
    sink.recovered()
    sink.deliver(*deliveries()[2])
    assert sink.sync()["number"] == 6
    sink.close()
    assert target.content() == EVENTS[3:6]


@every_file
@pytest.mark.parametrize("covered", range(len(CUTS) + 1))
def test_a_crash_at_any_byte_is_recovered_from_without_shrinking(
    kind: str, covered: int, tmp_path: Path
) -> None:
    whole = KINDS[kind](tmp_path)
    assert whole.path is not None
    sink = whole.make()
    sink.open(None)
    sink.recovered()
    state = None
    for delivery, events in deliveries()[:covered]:
        sink.deliver(delivery, events)
        state = stored(sink.sync())
    for delivery, events in deliveries()[covered:]:
        sink.deliver(delivery, events)
    sink.close()
    full = whole.path.read_bytes()
    for size in range(state["size"] if state else 0, len(full) + 1):
        whole.path.write_bytes(full[:size])
        sink = whole.make()
        sink.open(state)
        seen = size
        for delivery, events in deliveries()[covered:]:
            sink.deliver(delivery, events)
            now = whole.path.stat().st_size
            assert now >= seen
            assert whole.path.read_bytes() == full[:now]
            seen = now
        sink.recovered()
        assert sink.sync()["size"] == len(full)
        sink.close()
        assert whole.path.read_bytes() == full


def recover(sink: Sink, after: int) -> None:
    for delivery, events in deliveries()[after:]:
        sink.deliver(delivery, events)
    sink.recovered()


@every_file
def test_what_someone_else_appended_is_noticed_before_anything_is_delivered(
    kind: str, tmp_path: Path
) -> None:
    target = KINDS[kind](tmp_path)
    assert target.path is not None
    sink = target.make()
    sink.open(None)
    sink.recovered()
    for delivery, events in deliveries()[:2]:
        sink.deliver(delivery, events)
    state = stored(sink.sync())
    sink.close()
    for extra in (b"x", target.path.read_bytes()):
        before = target.path.read_bytes()
        target.path.write_bytes(before + extra)
        sink = target.make()
        sink.open(state)
        with pytest.raises(OutputError, match="--accept-output"):
            recover(sink, 2)
        sink.close()
        assert target.path.read_bytes() == before + extra
        target.path.write_bytes(before)
