"""Whatever the keys and whatever the order of completion: conflicting events run in the order of the log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secondpass.engine.schedule import Schedule, Sent

Keys = frozenset[int] | None

some_keys: st.SearchStrategy[Keys] = st.one_of(
    st.none(), st.frozensets(st.integers(0, 5), max_size=3), st.frozensets(st.integers(0, 5), max_size=3)
)


def conflict(a: Keys, b: Keys) -> bool:
    """Two events conflict when they share a key; one that may touch all shares every key."""
    if a is None or b is None:
        return a != frozenset() != b
    return bool(a & b)


class Run:
    """A schedule with workers that each have up to two bundles, and the plain account of what has run."""

    def __init__(self, keys: list[Keys], workers: int) -> None:
        self.keys = keys
        self.order = Schedule()
        self.done: set[int] = set()
        self.hands: list[list[Sent]] = [[] for _ in range(workers)]

    def send(self, worker: int, count: int) -> bool:
        hand = self.hands[worker]
        if len(hand) == 2:
            return False
        behind = hand[-1] if hand else None
        sent = self.order.take(count, behind)
        if sent is None:
            return False
        assert 0 < len(sent.nodes) <= count
        before = set(self.done) | (set(behind.nodes) if behind is not None else set[int]())
        for node in sent.nodes:
            for earlier in range(node):
                if conflict(self.keys[earlier], self.keys[node]):
                    assert earlier in before, f"{node} runs before {earlier}"
            before.add(node)
        assert all((self.keys[node] is None) is sent.whole for node in sent.nodes)
        hand.append(sent)
        return True

    def finish(self, worker: int) -> None:
        sent = self.hands[worker].pop(0)
        assert not self.done & set(sent.nodes), "an event runs twice"
        self.done |= set(sent.nodes)
        self.order.done(sent.nodes)

    def lose(self, worker: int) -> None:
        for sent in self.hands[worker]:
            self.order.put_back(sent.nodes)
        self.hands[worker].clear()


@given(data=st.data(), parts=st.lists(st.lists(some_keys, max_size=12), min_size=1, max_size=4))
def test_conflicting_events_run_in_order_and_all_of_them_run_once(
    data: st.DataObject, parts: list[list[Keys]]
) -> None:
    run = Run([keys for part in parts for keys in part], workers=data.draw(st.integers(1, 3)))
    waiting = list(parts)
    losses = data.draw(st.integers(0, 3))
    while len(run.done) < len(run.keys) or waiting:
        sent = [w for w in range(len(run.hands)) if run.send(w, data.draw(st.integers(1, 4)))]
        busy = [w for w, hand in enumerate(run.hands) if hand]
        if waiting and (not busy or data.draw(st.booleans())):
            run.order.add(waiting.pop(0))
            continue
        assert busy or sent, "events are left, and none may run"
        worker = data.draw(st.sampled_from(busy))
        if losses and data.draw(st.integers(0, 4)) == 0:
            losses -= 1
            run.lose(worker)
        else:
            run.finish(worker)
    assert run.order.undone == 0


@given(keys=st.lists(st.frozensets(st.integers(0, 30), min_size=1, max_size=2), min_size=1, max_size=40))
def test_an_event_waits_for_nothing_but_earlier_ones_that_share_a_key(keys: list[frozenset[int]]) -> None:
    order = Schedule()
    order.add(keys)
    for earlier, later in order.edges():
        assert earlier < later
        assert keys[earlier] & keys[later]


def test_the_longest_chain_goes_first() -> None:
    order = Schedule()
    order.add([frozenset({1}), frozenset({2}), frozenset({2}), frozenset({2})])
    first = order.take(1)
    assert first is not None
    assert first.nodes == [1]


def test_what_waits_only_for_its_own_bundle_rides_along() -> None:
    order = Schedule()
    order.add([frozenset({1, 2}), frozenset({2, 3}), frozenset({3, 1})])
    first = order.take(3)
    assert first is not None
    assert first.nodes == [0, 1, 2]


def test_a_held_event_is_taken_alone_and_never_otherwise() -> None:
    order = Schedule()
    order.add([frozenset({1}), frozenset({1}), frozenset({2})])
    first = order.take(1)
    assert first is not None
    order.put_back(first.nodes)
    order.hold(0)
    second = order.take(5)
    assert second is not None
    assert second.nodes == [2]
    assert order.take(5) is None
    order.done(order.take_one(0).nodes)
    third = order.take(5)
    assert third is not None
    assert third.nodes == [1]
