"""An event that does not end holds everything behind it: the log says which it is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass import App
from secondpass.engine import flow

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lingering_tasks import Lingers, LingersInBatches, Tick


class Opens(logging.Handler):
    """Opens the gate when so many warnings have come."""

    def __init__(self, gate: Path, after: int) -> None:
        super().__init__(logging.WARNING)
        self._gate, self._after = gate, after
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())
        if len(self.told) == self._after:
            self._gate.touch()


@pytest.fixture
def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    monkeypatch.setattr(flow, "LINGERS_S", 0.25)
    handler = Opens(tmp_path / "gate", 3)
    logging.getLogger("secondpass").addHandler(handler)
    yield handler
    logging.getLogger("secondpass").removeHandler(handler)


@pytest.mark.parametrize(("cls", "what"), [(Lingers, "event"), (LingersInBatches, "batch with the event")])
def test_it_is_told_again_whenever_it_has_taken_twice_as_long(
    tmp_path: Path, opens: Opens, cls: Any, what: str
) -> None:
    passed: list[Any] = []
    task = cls(gate=str(tmp_path / "gate")).options(place="workers")
    ticks = [Tick(n=n) for n in range(20)]
    App("lingering", source=ticks, tasks=[task], sink=passed.append).run(store=None, workers=2)
    assert passed == ticks
    position = 5 if cls is Lingers else None
    for told, seconds in zip(opens.told, ("0.25", "0.5", "1"), strict=True):
        assert told.startswith(f"{cls.__name__} has been at the {what} at position ")
        assert position is None or f"position {position} " in told
        assert f"for more than {seconds} s, " in told
        assert "limit_s" in told


def test_where_its_time_is_bounded_nothing_is_told(tmp_path: Path, opens: Opens) -> None:
    passed: list[Any] = []
    task = Lingers(gate=str(tmp_path / "gate")).options(limit_s=0.3)
    ticks = [Tick(n=n) for n in range(20)]
    App("lingering", source=ticks, tasks=[task], sink=passed.append).run(store=None, workers=2)
    assert [event.n for event in passed] == [n for n in range(20) if n != 5]
    assert [told for told in opens.told if "has been at" in told] == []
