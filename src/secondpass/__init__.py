"""secondpass: second-stage analysis of event streams in plain Python.

What an app is:       App
How events reach it:  a source, or Log
What it handles:      Event
What it consists of:  Task, table, value, output, timer, every, lookup, ALL; Timetable, Loaded
Why it decided so:    explain
What can go wrong:    SecondpassError and its tree in `secondpass.errors`

Where things are: `reference.py` says what an app means, `engine/loop.py` is the loop that runs it,
`store/` keeps it, `connectors/` join it to the world.
"""

from typing import TYPE_CHECKING

from secondpass.app import App as App
from secondpass.app import explain as explain
from secondpass.calls import ALL as ALL
from secondpass.errors import SecondpassError as SecondpassError
from secondpass.event import Event as Event
from secondpass.event import UntypedEvent as UntypedEvent
from secondpass.lookups import Loaded as Loaded
from secondpass.lookups import lookup as lookup
from secondpass.state import output as output
from secondpass.state import table as table
from secondpass.state import value as value
from secondpass.task import Task as Task
from secondpass.timers import every as every
from secondpass.timers import timer as timer
from secondpass.timetable import Timetable as Timetable

if TYPE_CHECKING:
    from secondpass.engine.eventlog import Log as Log


def __getattr__(name: str) -> object:
    """`Log`, when it is asked for: it brings along what no worker needs."""
    if name != "Log":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from secondpass.engine.eventlog import Log

    return Log


__version__ = "0.1.0"
__all__ = [
    "ALL",
    "App",
    "Event",
    "Loaded",
    "Log",
    "SecondpassError",
    "Task",
    "Timetable",
    "UntypedEvent",
    "every",
    "explain",
    "lookup",
    "output",
    "table",
    "timer",
    "value",
]
