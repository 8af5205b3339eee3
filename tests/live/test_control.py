"""`Control`, as users call it: whatever settings there are, wherever the app's store is, whatever came before."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from live_app import Seen, seen

from secondpass import App, Task
from secondpass.control import Control


class Many(Task[Seen]):
    """Settings of kinds that JSON does not have, or that are called as an argument is."""

    since: datetime.datetime = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    day: datetime.date = datetime.date(2020, 1, 1)
    span: datetime.timedelta = datetime.timedelta(seconds=1)
    mark: bytes = b"m"
    days: tuple[datetime.date, ...] = ()
    text: str = "t"
    wait: float | None = None
    reason: str = ""

    def handle(self, event: Seen) -> Seen:
        told = f"{self.since:%Y} {self.day} {self.span} {self.mark!r} {self.days} {self.text} {self.wait} {self.reason}"
        return event.replace(by=told)


GIVEN: dict[str, Any] = {
    "since": datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC),
    "day": datetime.date(2022, 2, 2),
    "span": datetime.timedelta(days=3),
    "mark": b"\xff",
    "days": (datetime.date(2023, 3, 3),),
    "text": "2022-02-02",
    "wait": 1.5,
    "reason": "none",
}


def test_settings_of_every_kind_pass_by_another_process_and_stay_after_a_restart(tmp_path: Path) -> None:
    def run(upto: int) -> str:
        passed: list[Seen] = []
        app = App("many", source=seen(upto), tasks=[Many()], sink=passed.append)
        app.run(store=tmp_path / "store", workers=0)
        return passed[-1].by

    run(1)
    control = Control(tmp_path / "store")
    assert control.set("Many", GIVEN).waits
    told = run(2)
    assert told == f"2021 2022-02-02 3 days, 0:00:00 {GIVEN['mark']} {GIVEN['days']} 2022-02-02 1.5 none"
    assert [e["kind"] for e in control.history()] == ["start", "start", "command"]
    assert run(3) == told, "they stay"
