"""Which events may run now: each waits for the earlier ones that share a key with it, and for nothing else.

    node        an event of one task, by its number in order of the log
    waits       how many earlier nodes it waits for that are not done
    after       the later nodes that wait for it; only the next one for each key, which the rest wait for in turn
    height      how many nodes wait for it one after the other: the longest way is begun first

An event that may touch every cell (`ALL`, or state without `keys`) waits for all before it, and all after it
wait for it. Nodes go out in bundles. A node that waits only for others of its own bundle may ride along, and so
may one that waits only for the bundle before, on the same worker.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

WAITING, SENT, DONE, HELD = 0, 1, 2, 3

_SHIFT = 40
_NUMBER = (1 << _SHIFT) - 1


class Sent:
    """The nodes of a bundle on its way, and how many of them each later node waits for."""

    __slots__ = ("frees", "nodes", "whole")

    def __init__(self, nodes: list[int], frees: dict[int, int], whole: bool) -> None:
        self.nodes = nodes
        self.frees = frees
        self.whole = whole


class Schedule:
    """The dependency order of one task's events.

    >>> order = Schedule()
    >>> order.add([frozenset({1, 2}), frozenset({2, 3}), frozenset({9}), None])
    >>> first, second = order.take(2), order.take(2)
    >>> first.nodes, second.nodes, order.take(2)
    ([0, 1], [2], None)
    """

    def __init__(self) -> None:
        self.keys: list[frozenset[Any] | None] = []
        """The keys of each node; None for all."""
        self._waits: list[int] = []
        self._after: list[list[int]] = []
        self._ranks: list[int] = []  # what is least goes first: the greatest height, then the oldest
        self._states = bytearray()
        self._last: dict[Any, int] = {}
        self._barrier = -1
        self._since: list[int] = []  # the nodes after the last barrier
        self._ready: list[int] = []  # a heap of (-height, number)
        self.undone = 0
        self.height_max = 0
        """The longest chain of nodes that wait for each other, among those added at once."""

    def __len__(self) -> int:
        return len(self._states)

    # ---- adding

    def add(self, keys: Sequence[frozenset[Any] | None]) -> None:
        """Add nodes, in the order of the log."""
        first = len(self._states)
        count = len(keys)
        waits, after, states = self._waits, self._after, self._states
        self.keys += keys
        states += bytes(count)
        after += [[] for _ in range(count)]
        self.undone += count
        for node, found in enumerate(keys, first):
            waits.append(self._depend(node, found) if found or found is None else 0)
        heights = [1] * count
        for node in range(count - 1, -1, -1):
            following = after[first + node]
            if following:  # all of them came with it: they are later
                heights[node] = 1 + max([heights[n - first] for n in following])
        self.height_max = max(self.height_max, max(heights, default=0))
        ranks = [node - (height << _SHIFT) for node, height in enumerate(heights, first)]
        self._ranks += ranks
        ready = self._ready
        ready += [rank for rank, waiting in zip(ranks, waits[first:], strict=True) if not waiting]
        heapq.heapify(ready)

    def _after_barrier(self, node: int) -> int:
        barrier = self._barrier
        if barrier < 0 or self._states[barrier] == DONE:
            return 0
        self._after[barrier].append(node)
        return 1

    def _depend(self, node: int, keys: frozenset[Any] | None) -> int:
        """Make a node wait for those that it must; gives how many."""
        states, after = self._states, self._after
        if keys is None:
            before = {n for n in self._since if states[n] != DONE}
            if self._barrier >= 0 and states[self._barrier] != DONE:
                before.add(self._barrier)
            self._last.clear()
            self._since, self._barrier = [], node
        else:
            last = self._last
            before = set[int]()
            for key in keys:
                earlier = last.get(key)
                if earlier is not None and states[earlier] != DONE:
                    before.add(earlier)
                last[key] = node
            self._since.append(node)
            if not before:
                return self._after_barrier(node)
        for earlier in before:
            after[earlier].append(node)
        return len(before)

    # ---- taking

    def ready(self) -> bool:
        """Whether a node waits for nothing."""
        ready, states = self._ready, self._states
        while ready and states[ready[0] & _NUMBER]:
            heapq.heappop(ready)  # held meanwhile
        return bool(ready)

    def take(self, count: int, behind: Sent | None = None) -> Sent | None:
        """Up to so many nodes for a bundle, in an order in which they may run; None when none may.

        `behind` is the bundle before it on the same worker: what waits only for that may come too.
        """
        ready, states, waits, keys = self._ready, self._states, self._waits, self.keys
        ranks, after, pop, push = self._ranks, self._after, heapq.heappop, heapq.heappush
        near: list[int] = []
        freed: dict[int, int] = {} if behind is None else behind.frees
        if behind is not None:
            near = [ranks[n] for n, k in freed.items() if k == waits[n] and not states[n]]
            heapq.heapify(near)
        nodes: list[int] = []
        frees: dict[int, int] = {}
        whole: bool | None = None if behind is None or not near else behind.whole
        while len(nodes) < count:
            if near and (not ready or near[0] <= ready[0]):
                node = pop(near) & _NUMBER
            elif ready:
                node = ready[0] & _NUMBER
                if states[node]:
                    pop(ready)  # it is held
                    continue
                if whole is not None and (keys[node] is None) is not whole:
                    if not near:
                        break  # a bundle has either the cells of its keys or all of them
                    node = pop(near) & _NUMBER
                else:
                    pop(ready)
            else:
                break
            if whole is None:
                whole = keys[node] is None
            elif (keys[node] is None) is not whole:
                continue  # it stays behind, waiting for what is sent here
            states[node] = SENT
            nodes.append(node)
            for later in after[node]:
                known = frees[later] = frees.get(later, 0) + 1
                if known + freed.get(later, 0) == waits[later] and not states[later]:
                    push(near, ranks[later])
        return Sent(nodes, frees, bool(whole)) if nodes else None

    def take_one(self, node: int) -> Sent:
        """A node that was put back, alone; it must wait for nothing."""
        self._states[node] = SENT
        return Sent([node], {}, self.keys[node] is None)

    # ---- afterwards

    def done(self, nodes: Iterable[int]) -> None:
        """These nodes have run: what waited for them may."""
        waits, states, ranks, ready, after = self._waits, self._states, self._ranks, self._ready, self._after
        for node in nodes:
            states[node] = DONE
            self.undone -= 1
            for later in after[node]:
                left = waits[later] = waits[later] - 1
                if not left and not states[later]:
                    heapq.heappush(ready, ranks[later])

    def put_back(self, nodes: Iterable[int]) -> None:
        """These nodes were sent and have not run: they wait again."""
        states, waits = self._states, self._waits
        back = list(nodes)
        for node in back:
            states[node] = WAITING
        for node in back:
            if not waits[node]:
                heapq.heappush(self._ready, self._ranks[node])

    def hold(self, node: int) -> None:
        """Keep a node that was put back from being taken, until `take_one` takes it."""
        self._states[node] = HELD

    def waits_for(self, node: int) -> int:
        """How many nodes a node waits for."""
        return self._waits[node]

    def edges(self) -> list[tuple[int, int]]:
        """Every (earlier, later) such that the later one waits for the earlier."""
        return [(node, later) for node, found in enumerate(self._after) for later in found]
