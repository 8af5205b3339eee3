"""`secondpass init`: a small working app with its test, to change into one's own."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

import click

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option
from secondpass.cli.shapes import InitReport, document
from secondpass.errors import SettingsError

APP = '''\
"""One alert for each sensor that runs hot, not one for each reading."""

from pathlib import Path

from secondpass import App, Event, Task, table
from secondpass.connectors import JsonLines

HERE = Path(__file__).parent


class Reading(Event):
    sensor: str
    time: float  # seconds
    celsius: float


class OnlyHot(Task[Reading]):
    """Pass readings above `limit` degrees."""

    limit: float = 80.0

    def handle(self, event: Reading) -> Reading | None:
        return event if event.celsius > self.limit else None


class OncePerSensor(Task[Reading]):
    """Pass a sensor's reading only when there was none of it for `quiet_s` seconds."""

    quiet_s: float = 600.0
    last = table(str, float, ttl_s="quiet_s")  # sensor -> time of its last reading

    def keys(self, event: Reading) -> tuple[str, ...]:
        return (event.sensor,)

    def handle(self, event: Reading) -> Reading | None:
        is_first = event.sensor not in self.last
        self.last[event.sensor] = event.time
        return event if is_first else None


app = App(
    "@NAME@",
    source=JsonLines(HERE / "readings.jsonl", Reading),
    tasks=[OnlyHot(), OncePerSensor()],
    sink=JsonLines(HERE / "alerts.jsonl"),
)
'''

TEST = """\
from secondpass.testing import run

from @MODULE@ import OncePerSensor, OnlyHot, Reading


def hot(sensor: str, time: float) -> Reading:
    return Reading(sensor=sensor, time=time, celsius=90.0)


def test_a_sensor_alerts_again_only_after_it_was_quiet() -> None:
    first, soon, other, late = (
        hot("boiler", 0.0),
        hot("boiler", 300.0),
        hot("pump", 400.0),
        hot("boiler", 900.0),
    )

    result = run(OncePerSensor(quiet_s=600.0), [first, soon, other, late])

    assert result.outputs == [first, other, late]


def test_a_cool_sensor_never_alerts() -> None:
    cool = Reading(sensor="pump", time=0.0, celsius=80.0)

    result = run([OnlyHot(limit=80.0), OncePerSensor()], [cool])

    assert result.outputs == []
"""

READINGS = """\
{"sensor": "boiler", "time": 1767225600, "celsius": 71.5}
{"sensor": "pump", "time": 1767225605, "celsius": 83.0}
{"sensor": "boiler", "time": 1767225660, "celsius": 84.2}
{"sensor": "pump", "time": 1767225665, "celsius": 84.1}
{"sensor": "boiler", "time": 1767225720, "celsius": 86.9}
{"sensor": "pump", "time": 1767225725, "celsius": 79.4}
{"sensor": "boiler", "time": 1767226500, "celsius": 85.0}
"""

IGNORED = """\
.secondpass/
alerts.jsonl
"""


@click.command(context_settings=HELP)
@click.argument("name", metavar="NAME")
@json_option
@debug_option
def init(name: str, as_json: bool) -> None:
    """Write a small working app with its test.

    Makes the directory NAME with an app, its test and some input. What is there already is left alone.
    """
    directory = Path(name)
    app_name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", app_name):
        raise SettingsError(f"{app_name!r}: a name is letters, digits, '.', '_' and '-'")
    module = re.sub(r"\W", "_", app_name)
    taken = module == "secondpass" or module in sys.stdlib_module_names
    if module[0].isdigit() or keyword.iskeyword(module) or taken:
        module = f"app_{module}"
    files = {
        f"{module}.py": APP.replace("@NAME@", app_name),
        f"test_{module}.py": TEST.replace("@MODULE@", module),
        "readings.jsonl": READINGS,
        ".gitignore": IGNORED,
    }
    there = [found for found in files if (directory / found).exists()]
    if there:
        raise SettingsError(f"{shown(directory)} holds {', '.join(there)} already; choose another name")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (directory / file).write_text(content)
    except OSError as error:
        raise SettingsError(f"cannot write {shown(directory)}: {error.strerror or error}") from error
    if as_json:
        text.say(document(InitReport(directory=str(directory), files=list(files))))
        return
    text.say([f"wrote {shown(directory / file)}" for file in files])
    text.say(
        [
            "",
            "what to do next:",
            f"  cd {shown(directory)}",
            f"  secondpass try {module}.py     # in memory, prints the alerts",
            f"  secondpass run {module}.py     # keeps state and outputs; again, it goes on where it stopped",
            f"  pytest test_{module}.py        # needs `pip install pytest`",
        ]
    )
