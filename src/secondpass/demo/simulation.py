"""A simulated motorway: its incidents, and what the detectors on its cameras report.

    km        0         0.5        1.0        1.5                        60
    camera    |   0   |   1    |    2    |    3   |   ...    |   119   |        (1000, 1001, ... westbound)
                          x    an incident: seen well from its camera, less well from the neighbours

Everything is drawn from one seed through `random.Random(seed).random()` alone, whose numbers are the same
on every version of Python.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from secondpass.demo.roadside_app import Detection

CAMERAS = 120
SPACING_KM = 0.5
WESTBOUND = 1000
GROWTH_S = 600.0
"""How long a queue grows."""
IN_SIGHT_KM = 1.2
PERIOD_S = 2.0
"""How often a detector looks."""
INCIDENTS_PER_HOUR = 14.0
FALSE_PER_CAMERA_HOUR = 5.0
"""Isolated reports of nothing."""
GLARES_PER_HOUR = 15.0
"""Spells of low sun or shadow that make one camera report nothing again and again."""


class Kind(NamedTuple):
    """One kind of incident: how many of all, how long it lasts, and how far it stretches."""

    name: str
    share: float
    mean_s: float
    length_km: float


KINDS = (
    Kind("stopped vehicle", 0.50, 1200.0, 0.0),
    Kind("debris", 0.20, 2100.0, 0.0),
    Kind("pedestrian", 0.18, 240.0, 0.0),
    Kind("queue", 0.12, 2700.0, 1.5),
)


class Truth(msgspec.Struct, frozen=True):
    """An incident that really happened."""

    carriageway: int
    """0 eastbound, 1 westbound."""
    km: float
    length_km: float
    kind: str
    start: float
    end: float
    severity: float
    """0 to 1: how easily it is seen."""

    def distance_km(self, cid: int, time: float) -> float:
        """From a camera to the nearest part of the incident; infinite on the other carriageway."""
        carriageway, number = divmod(cid, WESTBOUND)
        if carriageway != self.carriageway:
            return math.inf
        km = camera_km(number)
        length_km = self.length_km * min(1.0, (time - self.start) / GROWTH_S)
        return max(self.km - km, km - (self.km + length_km), 0.0)


class Simulation(NamedTuple):
    """What was simulated: detections in order of time, and the incidents behind them."""

    detections: list[Detection]
    truth: list[Truth]


def camera_km(number: int) -> float:
    """Where a camera stands."""
    return (number + 0.5) * SPACING_KM


def simulate(seed: int, *, hours: float = 24.0, limit: int | None = None) -> Simulation:
    """Some hours on the motorway, at about 12,000 detections an hour; at most `limit` detections.

    >>> day = simulate(7, hours=0.5)
    >>> day == simulate(7, hours=0.5)
    True
    """
    rng = random.Random(seed)
    until = hours * 3600.0
    truth = _incidents(rng, until)
    found = [(time, cid, kind) for incident in truth for time, cid, kind in _seen(rng, incident, until)]
    found += _isolated(rng, until)
    found += _glare(rng, until)
    found.sort()
    if limit is not None and limit < len(found):
        found = found[:limit]
        last = found[-1][0] if found else 0.0
        truth = [incident for incident in truth if incident.start <= last]
    return Simulation([Detection(cid=cid, time=time, kind=kind) for time, cid, kind in found], truth)


Report = tuple[float, int, str]


def _wait(rng: random.Random, per_hour: float) -> float:
    """Seconds until the next of what happens so often."""
    return -math.log(1.0 - rng.random()) * 3600.0 / per_hour


def _kind(rng: random.Random) -> Kind:
    point = rng.random()
    for kind in KINDS:
        point -= kind.share
        if point < 0.0:
            return kind
    return KINDS[0]


def _incidents(rng: random.Random, until: float) -> list[Truth]:
    truth: list[Truth] = []
    start = _wait(rng, INCIDENTS_PER_HOUR)
    while start < until:
        kind = _kind(rng)
        carriageway = int(rng.random() * 2)
        km = rng.random() * (CAMERAS * SPACING_KM - kind.length_km)
        lasts_s = 20.0 + kind.mean_s * (0.3 + 3.0 * rng.random() ** 3)
        severity = 0.15 + 0.85 * rng.random()
        begin, end = round(start, 1), round(start + lasts_s, 1)
        new = Truth(carriageway, round(km, 2), kind.length_km, kind.name, begin, end, round(severity, 2))
        # What happens where something is going on is part of it.
        if not any(_same_place(new, old) and begin < old.end + 300.0 for old in truth):
            truth.append(new)
        start += _wait(rng, INCIDENTS_PER_HOUR)
    return truth


def _same_place(a: Truth, b: Truth) -> bool:
    apart_km = max(a.km - (b.km + b.length_km), b.km - (a.km + a.length_km))
    return a.carriageway == b.carriageway and apart_km < 2.5


def _seen(rng: random.Random, incident: Truth, until: float) -> Iterator[Report]:
    """The reports of an incident, camera by camera."""
    for number in range(CAMERAS):
        cid = incident.carriageway * WESTBOUND + number
        distance_km = incident.distance_km(cid, incident.end)
        if distance_km > IN_SIGHT_KM:
            continue
        time = incident.start + rng.random() * PERIOD_S
        while time < min(incident.end, until):
            distance_km = incident.distance_km(cid, time)
            if rng.random() < 0.9 * incident.severity * math.exp(-((distance_km / SPACING_KM) ** 2)):
                kind = incident.kind if rng.random() < 0.9 else _kind(rng).name
                yield (round(time, 2), cid, kind)
            time += PERIOD_S


def _any_camera(rng: random.Random) -> int:
    number = int(rng.random() * CAMERAS * 2)
    return number if number < CAMERAS else number - CAMERAS + WESTBOUND


def _isolated(rng: random.Random, until: float) -> Iterator[Report]:
    time = 0.0
    while (time := time + _wait(rng, FALSE_PER_CAMERA_HOUR * CAMERAS * 2)) < until:
        yield (round(time, 2), _any_camera(rng), _kind(rng).name)


def _glare(rng: random.Random, until: float) -> Iterator[Report]:
    begin = 0.0
    while (begin := begin + _wait(rng, GLARES_PER_HOUR)) < until:
        cid, kind = _any_camera(rng), _kind(rng).name
        time, end = begin, min(begin + 20.0 + rng.random() * 100.0, until)
        while time < end:
            if rng.random() < 0.22:
                yield (round(time, 2), cid, kind)
            time += PERIOD_S
