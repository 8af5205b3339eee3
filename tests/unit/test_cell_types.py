"""Which types a cell may hold: what is read back is what was written, and what cannot be is refused at once."""

import dataclasses
import enum
import typing
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
import pytest

from secondpass import Event, Task, table
from secondpass.codec import codec_for, describe
from secondpass.errors import DefinitionError
from secondpass.testing import run


class Opaque:
    pass


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Tree:
    value: int
    children: list["Tree"] = dataclasses.field(default_factory=list)


class Pair(typing.NamedTuple):
    left: deque[int]
    right: str


class Node(msgspec.Struct):
    value: float
    next: "Node | None" = None


class Seen(Event):
    cid: int
    at: datetime
    tags: Mapping[str, int]


@pytest.mark.parametrize(
    ("tp", "value"),
    [
        (Counter[str], Counter("aab")),
        (Counter[tuple[int, str]], Counter([(1, "a"), (1, "a")])),
        (Counter, Counter("a")),
        (dict[str, Counter[int]], {"a": Counter([1])}),
        (deque[float], deque([1.0, 2.0], maxlen=3)),
        (list[deque[Tree]], [deque([Tree(1)])]),
        (Tree, Tree(1, [Tree(2)])),
        (Node, Node(1.0, Node(2.0))),
        (Pair, Pair(deque([1]), "x")),
        (Colour | None, Colour.RED),
        (Seen, Seen(1, datetime(2026, 3, 1, tzinfo=UTC), {"a": 1})),
        (uuid.UUID, uuid.UUID(int=7)),
        (set[tuple[int, str]], {(1, "a")}),
        (typing.Any, {"a": [1, None]}),
    ],
    ids=lambda part: describe(part) if not isinstance(part, Tree | Node) else "",
)
def test_a_cell_of_this_type_is_read_back_as_it_was(tp: typing.Any, value: typing.Any) -> None:
    codec = codec_for(tp)
    assert codec.exact(value)
    again = codec.decode(codec.encode(value))
    assert (again, type(again)) == (value, type(value))


@pytest.mark.parametrize(
    ("tp", "said"),
    [
        (Opaque, "nobody knows what a Opaque holds; use a dataclass"),
        (dict[str, list[Opaque]], "nobody knows what a Opaque holds"),
        (deque[Opaque], "nobody knows what a Opaque holds"),
        (list[deque[Opaque]], "nobody knows what a Opaque holds"),
        (defaultdict[str, int], "nobody knows what a defaultdict holds; use dict"),
        (OrderedDict[str, int], "nobody knows what a OrderedDict holds; use dict"),
        (complex, "nobody knows what a complex holds"),
    ],
    ids=lambda part: part if isinstance(part, str) else describe(part),
)
def test_a_type_that_would_not_be_read_back_is_refused_where_it_is_declared(
    tp: typing.Any, said: str
) -> None:
    with pytest.raises(DefinitionError, match=said):
        table(int, tp)


def test_a_counter_with_values_that_are_no_ints_is_a_fault() -> None:
    assert not codec_for(Counter[str]).exact(Counter({"a": 0.5}))


def test_a_counter_counts_on_in_its_cell() -> None:
    class Kinds(Task):
        seen = table(int, Counter[str], factory=Counter)

        def handle(self, event: typing.Any) -> None:
            self.seen[event["cid"]][event["kind"]] += 1

    events = [{"cid": 1, "kind": "a"}, {"cid": 1, "kind": "b"}, {"cid": 1, "kind": "a"}]
    assert run(Kinds(), events).state("Kinds") == {"seen": {1: Counter(a=2, b=1)}}


def test_a_type_that_holds_itself_is_described_to_its_first_return() -> None:
    assert describe(Node) == "Node(value: float, next: Node | None)"


class Chain(typing.NamedTuple):
    value: int
    next: "Chain | None" = None


def test_an_event_may_hold_a_named_tuple_that_holds_itself() -> None:
    class Linked(Event):
        chain: Chain

    event = Linked(chain=Chain(1, Chain(2)))
    assert run(lambda event: event, [event]).outputs == [event]
