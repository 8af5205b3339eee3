"""Tasks that look into reference data, which workers and other processes load too."""

from __future__ import annotations

import os

from secondpass import App, Event, Task, lookup, table
from secondpass.connectors import Csv, JsonLines


class Camera(Event):
    cid: int
    road: str
    near: tuple[int, ...] = ()


class Seen(Event):
    cid: int
    time: float
    road: str = ""


class OncePerPlace(Task[Seen]):
    """Drops what the same or a near camera has reported within some seconds; which are near is looked up."""

    window_s: float = 1.0
    cameras = lookup(int, Camera)
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Seen) -> tuple[int, ...]:
        camera = self.cameras.get(event.cid)
        return (event.cid, *(() if camera is None else camera.near))

    def handle(self, event: Seen) -> Seen | None:
        if any(cid in self.last for cid in self.keys(event)):
            return None
        self.last[event.cid] = event.time
        return event


class Place(Task[Seen]):
    """Says on which road a camera is; without state, for any worker."""

    cameras = lookup(int, Camera)

    def handle(self, event: Seen) -> Seen | None:
        if event.cid not in self.cameras:
            return None
        return event.replace(road=f"{self.cameras[event.cid].road} of {len(self.cameras)}")


CHAIN = (OncePerPlace(), Place())


def cameras(version: int) -> dict[int, Camera]:
    """What the file holds in its n-th version: some cameras come, some go, some move."""
    return {
        cid: Camera(cid=cid, road=f"r{(cid + version) % 4}", near=((cid + 1 + version) % 9,))
        for cid in range(9)
        if (cid * 7 + version) % 5
    }


def text(version: int) -> str:
    rows = [f'{c.cid},{c.road},"{list(c.near)}"' for c in cameras(version).values()]
    return "\n".join(["cid,road,near", *rows, ""])


app = App(
    "looking",
    source=JsonLines(os.environ.get("LIVE_INPUT", "input.jsonl"), Seen),
    tasks=CHAIN,
    sink=JsonLines("kept.jsonl"),
    lookups={"cameras": Csv("cameras.csv", Camera, key="cid", reload_s=0.05)},
)
