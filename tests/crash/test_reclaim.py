"""A longer time to live, killed while what has expired is deleted a little at a time: nothing comes back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from harness import Case, Server

from secondpass.engine.reclaim import DELETED_AT_ONCE
from secondpass.store.reader import StoreReader
from secondpass.store.spool import Command

CELLS = 3 * DELETED_AT_ONCE


def line(n: int, cid: int, time: float) -> bytes:
    return json.dumps({"n": n, "cid": cid, "time": round(time, 4), "value": 1.0}).encode() + b"\n"


@pytest.fixture(scope="module")
def expired(server: Server, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Case:
    """An app whose cells have expired and are still in memory; a longer time to live waits, and more events."""
    rng = random.Random(seed)
    content = [line(n, n, 1000.0 + n / CELLS) for n in range(CELLS)]
    case = Case.make(tmp_path_factory.mktemp("expired") / "case", server, content)
    case.epoch_records = 4000
    case.run()
    case.epoch_records = 50
    case.append([line(CELLS, CELLS, 1030.0)])
    case.run()  # a table that has not grown since the start is not looked through
    case.append([line(CELLS + n, rng.randrange(CELLS), 1030.0 + n / 100) for n in range(1, 1000)])
    case.ask(Command("set", task="Suppress", settings={"window_s": 1000.0}))
    return case


def done(case: Case) -> bool:
    """Whether the command is."""
    store = StoreReader.open_to_read(case.store)
    try:
        return any(kind == "command" for _, kind, _ in store.history())
    finally:
        store.close()


@pytest.mark.parametrize(
    "point", ["reclaim.before:1", "reclaim.before:3", "reclaim.after:1", "reclaim.after:3"]
)
def test_an_app_killed_between_two_slices_brings_nothing_back(
    point: str, expired: Case, tmp_path: Path
) -> None:
    case = expired.copy(tmp_path / "case")
    assert case.run(expect=None, SECONDPASS_KILL_AT=point) == -9, case.log()
    case.check_after_kill()
    assert not done(case), "the command had its position before all was deleted"
    case.run()
    case.check()
    assert done(case)
