"""Workers without processes: the same bundles and the same schedule, one after the other in this process.

For `secondpass check` and for tests: an order of completion that can be chosen and repeated shows in seconds what a
race between processes would show in days. It protects from nothing: a task that ends its process ends this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from secondpass.engine.bundle import decode_bundle, decode_events
from secondpass.engine.executor import Death, Done, Lost, Parcel
from secondpass.engine.worker import Worker
from secondpass.task import Task


class InProcess:
    """An executor whose workers take turns, in an order drawn from a seed.

    With `lose`, a worker is lost now and then, with all that it had in hand; with `fatal`, at every event for
    which that says so, as if the event had ended its process.
    """

    def __init__(
        self,
        tasks: tuple[Task[Any], ...],
        size: int,
        seed: int = 0,
        *,
        lose: float = 0.0,
        fatal: Callable[[Any], bool] | None = None,
    ) -> None:
        self.size = size
        self._tasks = tasks
        self._random = Random(seed)
        self._lose = lose
        self._fatal = fatal
        self._workers: dict[int, Worker] = {}
        self._waiting: list[deque[Parcel]] = [deque() for _ in range(size)]

    def submit(self, worker: int, number: int, bundle: Parcel, limit_s: float | None = None) -> None:  # noqa: ARG002
        """Give a worker a bundle; its events are not bounded here."""
        self._waiting[worker].append(bundle)

    def renew(self, worker: int) -> None:
        """Let the next bundle run in a new worker."""
        assert not self._waiting[worker]
        self._workers.pop(worker, None)

    def at(self, worker: int) -> None:
        """Nothing runs between two calls."""

    def wait(self, timeout_s: float | None) -> list[Done | Lost]:
        """Run one bundle, of any worker that has one; sometimes none, where nobody has to wait."""
        able = [i for i, waiting in enumerate(self._waiting) if waiting]
        if not able or (timeout_s == 0.0 and self._random.random() < 0.5):
            return []
        worker = self._random.choice(able)
        if self._random.random() < self._lose:
            return [self._lost(worker, Death("killed by SIGKILL", own=False, bundle=-1, event=-1, stack=""))]
        if self._fatal is not None:
            body, beside = self._waiting[worker][0]
            bundle = decode_bundle(body)
            for i, event in enumerate(decode_events(bundle.events, beside)):
                if self._fatal(event):
                    death = Death("killed by SIGSEGV", own=True, bundle=bundle.number, event=i, stack="")
                    return [self._lost(worker, death)]
        if worker not in self._workers:
            self._workers[worker] = Worker(self._tasks, lambda _number, _index: None)
        return [Done(worker, self._workers[worker].answer(self._waiting[worker].popleft()))]

    def _lost(self, worker: int, death: Death) -> Lost:
        self._waiting[worker].clear()
        self._workers.pop(worker, None)
        return Lost(worker, death)

    def close(self) -> None:
        """Forget the workers."""
        self._workers.clear()
