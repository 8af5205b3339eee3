"""Tasks that other processes than the hub load, or set up, only once a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from secondpass import Event, Task, lookup

HUB, GATE, LOADING = (
    int(os.environ["GATED_HUB"]),
    Path(os.environ["GATED_GATE"]),
    "loading" in os.environ["GATED_WHEN"],
)
HERE = os.getpid() == HUB


def wait() -> None:
    while not GATE.exists():
        time.sleep(0.005)


if LOADING and not HERE:
    wait()


class Tick(Event):
    n: int
    by: str = ""


class Slow(Task[Tick]):
    """Dear enough to go to workers; in the hub, its hundredth event lets them load it."""

    def handle(self, event: Tick) -> Tick:
        until = time.process_time() + 0.001
        while time.process_time() < until:
            pass
        if HERE and event.n == 100:
            GATE.touch()
        return event


class Quick(Task[Tick]):
    def handle(self, event: Tick) -> Tick:
        return event


class Gated(Task[Tick]):
    """Takes a while to set up on a worker."""

    def setup(self) -> None:
        if not HERE:
            wait()

    def handle(self, event: Tick) -> Tick:
        return event.replace(by="gated")


class Broken(Task[Tick]):
    """Cannot be set up on a worker."""

    def setup(self) -> None:
        if not HERE:
            raise RuntimeError("no licence on this machine")

    def handle(self, event: Tick) -> Tick:
        return event.replace(by="broken")


class Fatal(Task[Tick]):
    """Ends every worker that sets it up."""

    def setup(self) -> None:
        if not HERE:
            os._exit(3)

    def handle(self, event: Tick) -> Tick:
        return event.replace(by="fatal")


class Indexed(Task[Tick]):
    """Makes something of its lookup when it is set up."""

    names = lookup(int, str)

    def setup(self) -> None:
        self.index = {name: key for key, name in self.names.items()}

    def handle(self, event: Tick) -> Tick:
        until = time.process_time() + 0.001
        while time.process_time() < until:
            pass
        return event.replace(by=str(self.index["seven"]))
