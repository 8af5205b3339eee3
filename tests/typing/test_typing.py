"""User code passes the strict type check, which reports mistakes where they stand.

The apps beside this file are checked by `make types`; here they are run, so that what is checked is also
what works. Each line of MISTAKES that ends in `# rule` must be reported by that rule, and no other line.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import testing
from secondpass.loading import load

HERE = Path(__file__).parent

CHECKER = shutil.which("basedpyright", path=str(Path(sys.executable).parent))

MISTAKES = """
from secondpass import App, Event, Task, UntypedEvent, output, table, value

class Detection(Event):
    cid: int
    time: float

class Page(Event):
    cid: int

class Known(Task[Detection]):
    window_s: float = 300.0
    model_path: str
    last = table(int, float, ttl_s="window_s")
    maybe = table(int, float | None)
    counts = table(str, int, default=0)
    total = value(int, 0)
    pages = output(Page)

    def handle(self, event: Detection) -> Detection | None:
        event.cid = 3                                       # reportAttributeAccessIssue
        self.last[event.cid] = "now"                        # reportArgumentType
        self.last["one"] = 1.0                              # reportArgumentType
        self.last[event.cid] = self.maybe[event.cid]        # reportArgumentType
        if self.last.get(event.cid) > 3.0:                  # reportOptionalOperand
            return None
        self.counts[event.cid] += 1                         # reportArgumentType
        self.total += 1
        self.totl += 1                                      # reportUnknownMemberType
        self.pages.emit(event)                              # reportArgumentType
        self.pages.emit(event.to(Page, cid=1))
        return event.to(Page)                               # reportReturnType

class Other(Task[Detection]):
    def handle(self, event: Page) -> Page:                  # reportIncompatibleMethodOverride
        return event

Detection(cid="one", time=0.0)                              # reportArgumentType
Detection(cid=1)                                            # reportCallIssue
Detection(cid=1, time=0.0, lane=2)                          # reportCallIssue
Known()                                                     # reportCallIssue
Known("model.bin")                                          # reportCallIssue
Known(model_path="model.bin", windows=3)                    # reportCallIssue
Known(model_path="model.bin", window_s="300")               # reportArgumentType
Known(model_path="model.bin").options(on_error="ignore")    # reportArgumentType
Known(model_path="model.bin").total = "many"                # reportAttributeAccessIssue
Known(model_path="model.bin").options(retries=3)            # reportCallIssue
UntypedEvent(cid=1)["cid"] = 2
App("app", source=[], tasks=[3])                            # reportArgumentType
App("app", source=[], tasks=[Known(model_path="m")], snk=print)     # reportCallIssue
"""


PASSED = {"alarms": 1, "detections": 1, "fan_out": 2, "scoring": 1, "sessions": 1, "untyped": 1}


@pytest.mark.parametrize(("name", "passed"), PASSED.items())
def test_a_checked_app_runs_as_its_types_say(name: str, passed: int) -> None:
    app = load(str(HERE / f"{name}.py"))
    result = testing.run(app.tasks, app.sources[0])
    assert len(result.outputs) == passed


def test_every_app_beside_this_file_is_run_above() -> None:
    assert set(PASSED) == {path.stem for path in HERE.glob("*.py")} - {"test_typing"}


@pytest.mark.skipif(CHECKER is None, reason="basedpyright is not installed beside this Python")
@pytest.mark.parametrize("experimental", [True, False])
def test_the_checker_reports_each_mistake_where_it_stands(tmp_path: Path, experimental: bool) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    settings = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        # TypeForm is experimental in some versions; table(int, float | None) works without it too.
        "enableExperimentalFeatures": experimental,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(CHECKER), "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = {(d["range"]["start"]["line"], d["rule"]) for d in json.loads(done.stdout)["generalDiagnostics"]}
    marked = (
        (number, re.search(r"# (report\w+)$", line)) for number, line in enumerate(MISTAKES.splitlines())
    )
    assert found == {(number, mark[1]) for number, mark in marked if mark}


def test_the_app_in_the_readme_passes_the_strict_check(tmp_path: Path) -> None:
    readme = (HERE.parents[1] / "README.md").read_text()
    app = re.search(r"```python file=roadside\.py\n(.*?)```", readme, re.DOTALL)
    assert app is not None
    (tmp_path / "roadside.py").write_text(app[1])
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(CHECKER), "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    assert report["generalDiagnostics"] == []
