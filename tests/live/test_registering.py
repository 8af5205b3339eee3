"""A task that is registered from anywhere is seen by every worker from the same event on, and nobody sees it after it left.

The wound of hand-made designs: tasks switched on in one process and unknown in the next. Here another process, a thread and a
worker switch tasks on and off, and bring some in and take them out, while ten thousand events and more run on two workers.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from asking_tasks import Asking
from live_app import Marked
from test_commands import Fed, agrees

from secondpass import App
from secondpass.control import Control

TIMES = 70
ASKED_EACH = 40
FROM_A_PROCESS = f"""
import sys
from secondpass.control import control
app = control(sys.argv[1])
for n in range({TIMES}):
    app.stop("ByProcess", reason=f"time {{n}}")
    app.start("ByProcess", reason=f"time {{n}}")
"""


def test_tasks_registered_from_anywhere_are_seen_by_all_from_one_event_on(tmp_path: Path) -> None:
    store = tmp_path / "store"

    def by_thread() -> None:
        for n in range(TIMES):
            control.stop("ByThread")
            control.start("ByThread")
            if n % 14 == 0:
                control.add(Marked(mark="n").options(name="New", place="workers"), before="ByThread")
                control.remove("New")

    def by_process() -> None:
        subprocess.run([sys.executable, "-c", FROM_A_PROCESS, str(store)], check=True, timeout=120)

    source = Fed(10_000, {100: by_thread, 200: by_process})
    names = ("ByThread", "ByProcess", "ByWorker")
    tasks = (
        Asking(store=str(store), target="ByWorker", each=ASKED_EACH).options(place="workers"),
        *(Marked(mark=name[2]).options(name=name, place="workers") for name in names),
    )
    app = App("live", source=source, tasks=tasks)
    control = Control(store, app)
    summary = app.run(store=store, workers=2)
    done = agrees(store, source.events, tasks)
    assert len(source.events) >= 10_000
    assert summary.workers == 2
    asked = Counter((entry["asked"], entry["task"]) for entry in done)
    for name in names:
        assert min(asked["stop", name], asked["start", name]) > 50, asked
    assert sum(asked[kind, name] for kind in ("start", "add") for name in (*names, "New")) >= 200, asked
    assert asked["add", "New"] == asked["remove", "New"] == 5
    by = {entry["by"] for entry in done}
    assert len(by) >= 2, "who gave a command shows from where it came"
