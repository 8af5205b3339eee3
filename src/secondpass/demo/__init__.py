"""The demo: a simulated motorway, the app that finds its incidents, and how good it is.

The app is `roadside_app.py`, written with public names only. `simulation.py` makes what its cameras
report and what really happened, `scoring.py` compares the two, `run.py` runs it all, `report.py` shows it.
"""

from secondpass.demo.report import DemoReport as DemoReport
from secondpass.demo.report import as_json as as_json
from secondpass.demo.report import render as render
from secondpass.demo.run import run_demo as run_demo
from secondpass.demo.simulation import simulate as simulate

__all__ = ["DemoReport", "as_json", "render", "run_demo", "simulate"]
