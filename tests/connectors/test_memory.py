"""Any iterable is a source, any callable a sink; what is neither is refused with what to give."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass import Event, UntypedEvent
from secondpass.connectors import Csv, JsonLines
from secondpass.connectors.contract import Delivery
from secondpass.connectors.memory import as_sink, as_source
from secondpass.errors import DefinitionError, InputError, OutputError


class Seen(Event):
    n: int
    weight: float = 0.0


def test_events_and_mappings_are_events_and_anything_else_is_refused() -> None:
    reader = as_source([Seen(n=1), {"n": [2]}, "x", None, Seen(n="3")], 0).open(None)  # type: ignore[arg-type]
    batch = reader.read(10)
    assert batch is not None
    assert batch.events == [Seen(n=1), {"n": (2,)}]
    assert [type(e) for e in batch.events] == [Seen, UntypedEvent]
    assert list(batch.origin) == [0, 1]
    assert {i: r.reason.split(":")[1].strip()[:9] for i, r in batch.refused.items()} == {
        2: "a str; a ",
        3: "a NoneTyp",
        4: "Expected ",
    }


def test_events_take_their_declared_types_and_share_nothing() -> None:
    given: dict[str, Any] = {"n": [1]}
    batch = as_source([Seen(n=1, weight=2), given], 0).open(None).read(10)
    assert batch is not None
    given["n"].append(2)
    assert type(batch.events[0].weight) is float
    assert batch.events[1] == {"n": (1,)}


def test_a_generator_can_be_read_once() -> None:
    source = as_source((Seen(n=n) for n in range(3)), 0)
    batch = source.open(None).read(10)
    assert batch is not None
    assert batch.count == 3
    with pytest.raises(InputError, match="a generator can be read once"):
        source.open(None)


def test_a_generator_made_anew_goes_on_where_it_stopped() -> None:
    batch = as_source((Seen(n=n) for n in range(3)), 0).open(None).read(2)
    assert batch is not None
    more = as_source((Seen(n=n) for n in range(3)), 0).open(batch.offset).read(2)
    assert more is not None
    assert more.events == [Seen(n=2)]


def test_a_slow_generator_gives_what_it_has() -> None:
    def slow() -> Iterator[Seen]:
        for n in range(100):
            time.sleep(0.03)  # what the test is about: a generator that takes its time
            yield Seen(n=n)

    reader = as_source(slow, 0).open(None)
    batch = reader.read(1000)
    assert batch is not None
    assert 1 <= batch.count < 50
    reader.close()


def test_what_a_generator_raises_names_the_item() -> None:
    def broken() -> Iterator[Seen]:
        yield Seen(n=1)
        raise RuntimeError("no more")

    with pytest.raises(InputError, match="RuntimeError: no more when asked for item 1"):
        as_source(broken, 0).open(None).read(10)


def test_closing_a_reader_ends_the_generator() -> None:
    ended: list[bool] = []

    def events() -> Iterator[Seen]:
        try:
            yield Seen(n=1)
            yield Seen(n=2)
        finally:
            ended.append(True)

    reader = as_source(events, 0).open(None)
    reader.read(1)
    reader.close()
    assert ended == [True]


def test_a_growing_list_is_read_on() -> None:
    items: list[Any] = [Seen(n=1)]
    batch = as_source(items, 0).open(None).read(10)
    assert batch is not None
    items.append(Seen(n=2))
    reader = as_source(items, 0).open(batch.offset)
    more = reader.read(10)
    assert more is not None
    assert more.events == [Seen(n=2)]
    assert reader.progress() == (2, 2)


def test_sources_are_named_by_their_place() -> None:
    assert [as_source([], i).name for i in range(3)] == ["memory", "memory:1", "memory:2"]


def test_connectors_are_sources_and_sinks_as_they_are(tmp_path: Path) -> None:
    for connector in (JsonLines(tmp_path / "x"), Csv(tmp_path / "x")):
        assert as_source(connector, 0) is connector
        sink = as_sink(connector)
        assert as_sink(sink) is sink


async def asynchronous() -> None:
    """A coroutine function, which is neither."""


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("x.jsonl", "give JsonLines"),
        (Path("x.jsonl"), "give JsonLines"),
        (io.StringIO("x"), "give JsonLines"),
        ({"n": 1}, "give a list of events"),
        (Seen(n=1), "give a list of events"),
        (JsonLines, r"pass an object, JsonLines\(...\)"),
        (asynchronous, "plain generator function"),
        (7, "a source is a connector"),
    ],
)
def test_what_is_no_source_is_refused_with_advice(given: Any, advice: str) -> None:
    with pytest.raises(DefinitionError, match=advice):
        as_source(given, 0)


def test_a_function_that_gives_no_iterable_is_refused() -> None:
    with pytest.raises(InputError, match="gave a int, not an iterable"):
        as_source(lambda: 7, 0).open(None)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([], r"sink=passed\.append"),
        ("x.jsonl", "give JsonLines"),
        (Path("x.jsonl"), "give JsonLines"),
        (JsonLines, "pass an object"),
        (asynchronous, "plain function"),
        (7, "a sink is a connector"),
    ],
)
def test_what_is_no_sink_is_refused_with_advice(given: Any, advice: str) -> None:
    with pytest.raises(DefinitionError, match=advice):
        as_sink(given)


def test_what_a_callable_raises_names_the_output_which_is_the_next_one() -> None:
    seen: list[int] = []

    def fussy(event: Any) -> None:
        if event == 2 and 2 not in seen:
            seen.append(2)
            raise RuntimeError("not today")
        seen.append(event)

    sink = as_sink(fussy)
    sink.open(None)
    with pytest.raises(OutputError, match="RuntimeError: not today at output number 12"):
        sink.deliver(Delivery(10, 4, b""), [0, 1, 2, 3])
    assert sink.sync() == {"number": 12}
    sink.deliver(Delivery(10, 4, b""), [0, 1, 2, 3])
    assert seen == [0, 1, 2, 2, 3]
