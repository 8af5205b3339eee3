"""Connectors join an app to the world: what a source or a sink is says `contract.py`.

Files of lines:   JsonLines, Csv
In memory:        any iterable is a source, any callable a sink (`memory.py`)
Around a source:  Ordered, which puts it in order by time
"""

from secondpass.connectors.csvfile import Csv as Csv
from secondpass.connectors.jsonlines import JsonLines as JsonLines
from secondpass.connectors.ordered import Ordered as Ordered

__all__ = ["Csv", "JsonLines", "Ordered"]
