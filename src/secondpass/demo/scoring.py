"""How good the reports are: compared with what really happened on the simulated motorway."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from secondpass.demo.roadside_app import Detection, EscalateByDuration, Page
from secondpass.demo.simulation import Truth

BESIDE_KM = 1.2
"""A report belongs to an incident when its camera is at most so far away,"""
AFTER_S = 20.0
"""and when it comes while the incident lasts, or at most so long after."""
PAGED_S = EscalateByDuration.after_s + 60.0
"""Incidents that last longer call for a page: one must be seen before its time is taken."""


class Score(msgspec.Struct, frozen=True):
    """Incidents against reports of them."""

    incidents: int
    """What should have been reported."""
    found: int
    missed: int
    reports: int
    repeated: int
    """Reports of an incident that had been reported already."""
    false: int
    """Reports of nothing."""
    delay_s: float
    """Half of the incidents found were reported within this time."""
    delay_s_p90: float
    """Nine of ten were."""


def score(truth: Sequence[Truth], reports: Sequence[Detection | Page], *, lasting_s: float = 0.0) -> Score:
    """How well `reports` tell of the incidents that lasted longer than `lasting_s`.

    A report of a shorter incident is neither right nor wrong: it is left out.

    >>> crash = Truth(0, 10.0, 0.0, "debris", 100.0, 400.0, 1.0)
    >>> found = score([crash], [Detection(cid=19, time=112.0, kind="debris")])
    >>> found.found, found.missed, found.delay_s
    (1, 0, 12.0)
    """
    told: dict[int, float] = {}
    repeated = false = 0
    for report in reports:
        near = [
            (index in told, incident.distance_km(report.cid, report.time), index)
            for index, incident in enumerate(truth)
            if incident.start <= report.time <= incident.end + AFTER_S
            and incident.distance_km(report.cid, report.time) <= BESIDE_KM
        ]
        if not near:
            false += 1
            continue
        known, _, index = min(near)
        if known:
            repeated += 1
        else:
            told[index] = report.time - truth[index].start
    asked = [i for i, incident in enumerate(truth) if incident.end - incident.start > lasting_s]
    delays = sorted(told[i] for i in asked if i in told)
    others = len(told) - len(delays)
    return Score(
        incidents=len(asked),
        found=len(delays),
        missed=len(asked) - len(delays),
        reports=len(reports) - others,
        repeated=repeated,
        false=false,
        delay_s=_quantile(delays, 0.5),
        delay_s_p90=_quantile(delays, 0.9),
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
