"""A sink that cannot be asked what it has (a function): nothing is missing after a crash, little is repeated."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Case, lines, real_command

APP = """
import json
from secondpass import App, Event
from secondpass.connectors import JsonLines

class Reading(Event):
    n: int

def write(event):
    with open("written.txt", "a") as file:
        file.write(f"{event.n}\\n")

app = App("calls", source=JsonLines("in.jsonl", Reading), tasks=[], sink=write)
"""
COUNT = 400


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "calls.py").write_text(APP)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(COUNT)))
    return tmp_path


def written(directory: Path) -> list[int]:
    path = directory / "written.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def run(directory: Path, **env: str) -> int:
    with real_command(directory, "run", "calls.py", **env) as process:
        process.communicate(timeout=30)
    return process.returncode


def test_runs_that_end_well_give_a_function_each_output_once(directory: Path) -> None:
    assert run(directory) == 0
    assert written(directory) == list(range(COUNT))
    assert run(directory) == 0
    assert written(directory) == list(range(COUNT))


@pytest.mark.parametrize(
    "point", ["commit.after:3", "deliver.before:3", "deliver.after:3", "commit.before:4"]
)
def test_a_kill_repeats_at_most_the_last_epoch_and_leaves_nothing_out(directory: Path, point: str) -> None:
    assert run(directory, SECONDPASS_KILL_AT=point) == -9
    before = written(directory)
    assert run(directory) == 0
    found = written(directory)
    assert found[: len(before)] == before
    again = found[len(before)]
    assert found[len(before) :] == list(range(again, COUNT))
    assert len(before) - 64 <= again <= len(before), (
        "more than the last epoch was repeated, or something is missing"
    )


def test_outputs_without_a_sink_wait_in_the_store_for_one(
    new_case: Callable[[list[bytes]], Case], rng: random.Random
) -> None:
    case = new_case(lines(rng, 500))
    app = case.directory / "crash_app.py"
    whole = app.read_text()
    app.write_text(whole.replace('    sinks={"pages": JsonLines("pages.jsonl")},\n', ""))
    assert case.run(expect=None, SECONDPASS_KILL_AT="commit.after:6") == -9
    app.write_text(whole)
    case.run()
    case.check()
