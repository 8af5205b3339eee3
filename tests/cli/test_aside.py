"""A task that gives commands or appends events does so in its app's own run alone, and to the store of that run."""

from __future__ import annotations

import contextlib

import pytest

from secondpass.cli.shapes import HistoryLine
from secondpass.store.reader import StoreReader
from secondpass.store.spool import Spool

APP = """
class Watch(Task[Seen]):
    high: int = 5

    def handle(self, event: Seen) -> Seen:
        if event.cid > self.high:
            app.control.stop("Expensive", wait=False)
            app.log.append([{"cid": 0, "time": event.time}])
        return event


class Expensive(Task[Seen]):
    done = table(int, int, default=0)

    def keys(self, event: Seen) -> tuple[int]:
        return (event.cid,)

    def handle(self, event: Seen) -> Seen:
        self.done[event.cid] += 1
        return event


app = App("watched", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Watch()PLACE, Expensive()])
"""


@pytest.fixture(params=["inline", "workers"])
def watched(request, project, command):
    project.write("watched.py", APP.replace("PLACE", f".options(place={request.param!r})"))
    project.seen(1, 9, 2)
    assert command("run", "watched.py", "-q").code == 0
    assert command("run", "watched.py", "-q").code == 0  # does what waits, as the first may have ended before
    return project


def done_to(project, command) -> tuple[list[HistoryLine], list[str], int]:
    """What was done to the app, what waits for it, and what its log holds."""
    store = project.folder / ".secondpass" / "watched"
    history = command("history", "--json").lines(HistoryLine)
    return history, [name for name, _ in Spool(store).waiting()], _size(store / "log")


def _size(log) -> int:
    return sum(path.stat().st_size for path in log.rglob("*") if path.is_file()) if log.is_dir() else 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "watched.py", "1"),
        ("rehearse", "watched.py"),
        ("rehearse", "watched.py", "--workers", "2"),
        ("check", "watched.py"),
        ("schedule", "watched.py", "--task", "Expensive"),
    ],
    ids=" ".join,
)
def test_what_runs_it_again_gives_no_command_and_appends_nothing(watched, command, arguments) -> None:
    before = done_to(watched, command)
    assert [entry.what for entry in before[0] if entry.kind == "command"] == ["stop Expensive"]
    done = command(*arguments)
    assert done.code == 0, done.err
    assert done_to(watched, command) == before


def test_a_trial_gives_no_command(watched, command) -> None:
    assert command("task", "start", "watched.py", "Expensive").code == 0
    assert command("task", "replace", "watched.py", "Watch").code == 0
    assert command("run", "watched.py", "-q").code == 0
    done = [e.what for e in command("history", "--json").lines(HistoryLine) if e.kind == "command"]
    assert [what.partition(",")[0] for what in done] == ["stop Expensive", "start Expensive", "replace Watch"]


@pytest.mark.parametrize("process", [True, False])
def test_a_source_gives_commands_to_the_run_that_started_it_wherever_its_store_is(
    project, *, process: bool
) -> None:
    project.write(
        "fed.py",
        f"""
        class Count(Task[Seen]):
            step: int = 1

            def handle(self, event: Seen) -> Seen:
                return event.replace(cid=event.cid + self.step)


        app = App("fed", tasks=[Count()], sink=JsonLines(HERE / "out.jsonl"))


        @app.source(process={process})
        def feed():
            app.control.set("Count", step=5)
            yield Seen(cid=1, time=1.0)
        """,
    )
    done = project.run("run", "fed.py", "--store", "other")
    assert done.code == 0, done.err
    assert [event["cid"] for event in project.output()] == [6]
    assert not (project.folder / ".secondpass").exists()
    with contextlib.closing(StoreReader.open_to_read(project.folder / "other")) as store:
        assert store.progress.position == 2
