"""Generated apps on real processes give what the plain loop gives."""

from __future__ import annotations

import random

import cases
import pytest
from engine_runs import Workers, difference, in_memory, meant, misplaced

PARTS = 4
CASES = 15


@pytest.mark.parametrize("part", range(PARTS))
def test_a_generated_app_gives_on_processes_what_the_plain_loop_gives(seed: int, part: int) -> None:
    for number in range(part, PARTS * CASES, PARTS):
        case = cases.generate(f"{seed} processes {number}")
        if cases.refused_whole(case):
            continue
        rng = random.Random(case.seed)
        crew = Workers(rng, processes=True)
        got = in_memory(case.tasks(), case.log, cases.pace(rng), cases.sources(case, rng), crew=crew)
        want = meant(case.tasks(), case.log)
        found = difference(want, got) or misplaced(case.log, got, cases.number_of)
        assert found is None, f"{found}\n\n{case}"
        assert not crew.verdicts
