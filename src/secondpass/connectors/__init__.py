"""Connectors join an app to the world: what a source or a sink is says `contract.py`.

Files of lines:   JsonLines, Csv
In memory:        any iterable is a source, any callable a sink (`memory.py`)
"""

from secondpass.connectors.csvfile import Csv as Csv
from secondpass.connectors.jsonlines import JsonLines as JsonLines

__all__ = ["Csv", "JsonLines"]
