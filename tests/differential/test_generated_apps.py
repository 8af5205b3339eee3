"""Generated apps over generated logs: whatever the cuts, kills and restarts, the engine equals the plain loop.

make differential CASES=100000 SEED=7       as many as asked; a failure prints what repeats it
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cases
import engine_runs
import pytest

CASES = int(os.environ.get("SECONDPASS_DIFFERENTIAL_CASES") or 2000)
PARTS = 20  # so that several workers share them


@pytest.fixture
def directory() -> Iterator[Path]:
    with engine_runs.memory_folder() as folder:
        yield folder


@pytest.mark.timeout(0 if CASES > 20_000 else 600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_generated_app_gives_what_the_plain_loop_gives(part: int, seed: int, directory: Path) -> None:
    for number in range(part, CASES, PARTS):
        case = cases.generate(f"{seed} {number}")
        found = cases.differs(case, directory)
        if found is not None:
            pytest.fail(cases.report(case, found, directory), pytrace=False)
