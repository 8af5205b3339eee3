"""secondpass: second-stage analysis of event streams in plain Python.

What an app is:       App
What it handles:      Event
What it consists of:  Task, table, value, output, ALL; Timetable
What can go wrong:    SecondpassError and its tree in `secondpass.errors`

Where things are: `reference.py` says what an app means, `engine/loop.py` is the loop that runs it,
`store/` keeps it, `connectors/` join it to the world.
"""

from secondpass.app import App as App
from secondpass.errors import SecondpassError as SecondpassError
from secondpass.event import Event as Event
from secondpass.event import UntypedEvent as UntypedEvent
from secondpass.state import output as output
from secondpass.state import table as table
from secondpass.state import value as value
from secondpass.task import ALL as ALL
from secondpass.task import Task as Task
from secondpass.timetable import Timetable as Timetable

__version__ = "0.1.0"
__all__ = [
    "ALL",
    "App",
    "Event",
    "SecondpassError",
    "Task",
    "Timetable",
    "UntypedEvent",
    "output",
    "table",
    "value",
]
