"""Commands to an app by the command line: what is done, what is refused, what is left, and what each says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass.cli.reading import reading
from secondpass.cli.shapes import GivenCommand, HistoryLine, StatusReport, TaskExport, TaskList
from secondpass.control import Control
from secondpass.errors import StoreError

APP = """
class Count(Task[Seen]):
    step: int = 1
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += self.step
        return event.replace(cid=event.cid + 1000 * self.total)


class Near(Task[Seen]):
    window_s: float = 2.0
    label: str = "near"
    last = table(int, float, ttl_s="window_s")

    def keys(self, event: Seen) -> tuple[int]:
        return (event.cid % 7,)

    def handle(self, event: Seen) -> Seen | None:
        if event.cid % 7 in self.last:
            return None
        self.last[event.cid % 7] = event.time
        return event


app = App("counts", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Near(), Count()],
          sink=JsonLines(HERE / "out.jsonl"), workers=0)
"""


class Running:
    """An app that runs in a process of its own."""

    def __init__(self, project: Any, *arguments: str, command: Any = None) -> None:
        self.project = project
        self.run = command or project.run
        self.process = project.start("run", "counts.py", "--follow", *arguments)
        self.store = project.folder / ".secondpass" / "counts"

    def position(self, at_least: int) -> None:
        """Until so many records are taken."""
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.process.communicate()
            if (self.store / "store.db").is_file():
                with contextlib.suppress(StoreError), reading(self.store) as store:
                    if store.progress.position >= at_least:
                        return
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[str, str]:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=30)


@pytest.fixture
def resting(project, command):
    """The app, at rest after ten events."""
    project.write("counts.py", APP)
    project.seen(*range(10))
    assert command("run", "counts.py", "-q").code == 0
    return project


@pytest.fixture
def running(project, command) -> Iterator[Running]:
    """The app in another process, ten events taken."""
    project.write("counts.py", APP)
    project.seen(*range(10))
    found = Running(project, command=command)
    found.position(10)
    yield found
    found.end()


def tasks(command) -> dict[str, Any]:
    return {t.name: t for t in command("task", "list", "--json").document(TaskList).tasks}


# ---------------------------------------------------------------- at rest


def test_tasks_are_listed_with_their_settings_and_what_they_remember(resting, command) -> None:
    done = command("task", "list", "counts.py")
    assert re.sub(r"\d+ B", "N B", done.out) == (
        "place  task   state    remembers  settings\n"
        '    1  Near   started      N B  window_s=2.0, label="near"\n'
        "    2  Count  started       N B  step=1\n"
    ) or re.search(r'^ +1  Near   started +\d+ B  window_s=2.0, label="near"$', done.out, re.MULTILINE)
    found = command("task", "list", "--json").document(TaskList)
    assert (found.app, found.running, found.paused, found.removed, found.aside) == (
        "counts",
        False,
        False,
        [],
        [],
    )
    assert [(t.place, t.name, t.stopped) for t in found.tasks] == [(1, "Near", False), (2, "Count", False)]


def test_a_command_at_rest_is_left_for_the_next_run_and_done_there_first(resting, command) -> None:
    done = command("task", "stop", "counts.py", "Count", "--reason", "too loud")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "stop Count: left for the next run: secondpass run counts.py\n"
        "to undo: secondpass task start counts.py Count\n"
    )
    assert "1 waiting for the next run" in command("status").out
    run = resting.run("run", "counts.py")
    assert "nothing new" not in run.out
    assert "commands  1: secondpass history counts.py" in run.out
    assert "INFO secondpass: position 10: stop Count" in run.err
    assert tasks(command)["Count"].stopped
    status = command("status", "--json").document(StatusReport).stores[0]
    assert (status.stopped, status.commands_waiting) == (["Count"], 0)
    assert "Count: events pass by" in command("status").out
    (last,) = command("history", "--last", "1", "--json").lines(HistoryLine)
    assert (last.kind, last.position, last.what, last.reason) == ("command", 10, "stop Count", "too loud")


def test_settings_that_were_set_are_shown_beside_those_of_the_file(resting, command) -> None:
    done = command("task", "set", "counts.py", "Near.window_s=600", 'Near.label="17"')
    assert (
        done.out.splitlines()[1] == "to undo: secondpass task set counts.py Near.window_s=2.0 Near.label=near"
    )
    command("run", "counts.py", "-q")
    near = tasks(command)["Near"]
    assert near.settings == {"window_s": 600.0, "label": "17"}
    assert near.file_settings == {"window_s": 2.0, "label": "near"}
    assert 'window_s=600.0 (file: 2.0), label="17" (file: "near")' in command("task", "list").out
    assert 'set Near: window_s 2.0 -> 600.0, label "near" -> "17"' in command("history").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stop", "Nobody"], "refused: the chain has no task Nobody; it has: Near, Count"),
        (["start", "counts.py", "Nobody"], "refused: the chain has no task Nobody"),
        (["remove", "Nobody"], "refused: the chain has no task Nobody"),
        (["replace", "Nobody"], "refused: the chain has no task Nobody"),
        (["drop", "Nobody", "--yes"], "refused: the chain has no task Nobody"),
        (["drop", "Near", "nothing", "--yes"], "Near has no state nothing; it has: last"),
        (["export", "Nobody"], "the chain has no task Nobody"),
        (["set", "Nobody.x=1"], "refused: the chain has no task Nobody"),
        (["set", "Near.wide=1"], "Near has no setting 'wide'; its settings: window_s, label"),
        (["set", "Near"], "say which setting, and its value: Near.SETTING=VALUE"),
        (["set", "Near.window_s"], "write Near.window_s=VALUE"),
        (["set", "Near", "window_s"], "write Near.window_s=VALUE"),
        (["set", "Near.window_s", "10"], "write Near.window_s=10"),
        (["set", "counts.py", "Near.window_s", "10"], "write Near.window_s=10"),
        (["set", "counts.py", "Near", "window_s", "10"], "write Near.window_s=10"),
        (["set", "counts.py"], "say which setting, and its value: TASK.SETTING=VALUE"),
        (["set", "window_s=1"], "say whose setting it is: TASK.window_s=1"),
        (["set", "counts.py", "window_s=1"], "say whose setting it is: TASK.window_s=1"),
        (["set", "Near.window_s=1", "label=a b"], "say whose setting it is: 'TASK.label=a b'"),
        (["set", "Near.2x=1"], "write NAME.SETTING=VALUE"),
        (["set", "Near", "window_s=1", "label"], "write NAME.SETTING=VALUE"),
        (["set", "Near.window_s=1", "Near.window_s=2"], "window_s is given twice"),
        (["set", "Near.window_s=1", "Count.step=2"], "one task at a time"),
        (["set", "a", "b", "Near.window_s=1"], "unexpected argument"),
        (["stop", "counts.py", "Near", "Count"], "unexpected argument"),
        (["stop", "nowhere.py", "Near"], "no file nowhere.py"),
        (["list", "--store", "nowhere"], "there is no store in nowhere"),
    ],
)
def test_what_cannot_be_is_refused_at_rest_too(resting, command, arguments: list[str], said: str) -> None:
    done = command("task", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not list((resting.folder / ".secondpass" / "counts").glob("commands/*.json"))


def test_without_a_store_every_command_says_how_one_is_made(project, command) -> None:
    for arguments in (["task", "list"], ["task", "stop", "X"], ["pause"], ["resume"], ["stop"], ["history"]):
        done = command(*arguments)
        assert (done.code, done.out) == (2, "")
        assert "there is no store in .secondpass; `secondpass run APP` makes one" in done.err


def test_a_value_of_another_kind_is_told_at_once_and_left_out_by_the_next_run(resting, command) -> None:
    done = command("task", "set", "Near.window_s=60O")
    assert done.code == 0
    assert 'Near.window_s is 2.0, a number, and "60O" is text' in done.err
    assert (
        "a command is left out: Near(window_s='60O'): Expected `float`" in resting.run("run", "counts.py").err
    )
    assert "left out: set Near" in command("history").out


def test_a_command_to_a_task_that_an_earlier_command_brings_waits_with_it(resting, command) -> None:
    assert command("task", "remove", "Count").code == 0
    assert command("run", "counts.py", "-q").code == 0
    assert command("task", "add", "Count", "--before", "Near").code == 0
    assert command("task", "stop", "Count").code == 0
    assert command("run", "counts.py", "-q").code == 0
    assert [(t.place, t.stopped) for t in tasks(command).values()] == [(1, True), (2, False)]


def test_what_a_task_remembers_is_exported_also_once_it_has_left(resting, command) -> None:
    found = command("task", "export", "Near").document(TaskExport)
    assert (found.task, found.aside, found.position) == ("Near", False, 10)
    assert [(s.name, s.kind, s.ttl_s) for s in found.state] == [("last", "table", 2.0)]
    assert [(c.key, c.written) for c in found.state[0].cells] == [(1, 8.0), (2, 9.0)]
    command("task", "remove", "Near")
    command("run", "counts.py", "-q")
    assert re.search(r"^put aside by  what +size$", command("task", "list").out, re.MULTILINE)
    again = command("task", "export", "Near", "--json").document(TaskExport)
    assert (again.aside, again.state) == (True, found.state)
    done = command("task", "export", "counts.py", "Near", "--out", "near.json")
    assert re.fullmatch(r"Near: .* in near.json\n", done.out)
    assert json.loads((resting.folder / "near.json").read_text())["task"] == "Near"
    done = command("task", "export", "Near", "--out", "no/such/file")
    assert (done.code, done.err) == (5, "error: no/such/file cannot be written: there is no folder no/such\n")


def test_state_is_given_up_for_good_only_after_a_yes(resting, command, monkeypatch) -> None:
    monkeypatch.setattr("os.isatty", lambda _: False)
    done = command("task", "drop", "Near", "last")
    assert (done.code, done.out) == (2, "")
    assert "give up Near.last, for good? `secondpass task export Near` keeps a copy." in done.err
    assert command("task", "drop", "Near", "last", "--yes").out.startswith(
        "drop Near.last: left for the next run"
    )
    command("run", "counts.py", "-q")
    assert command("task", "export", "Near").document(TaskExport).state[0].cells == []


def test_nothing_that_runs_cannot_be_stopped_and_that_is_no_error(resting, command) -> None:
    done = command("stop", "counts.py")
    assert (done.code, done.out) == (0, "nothing runs: .secondpass/counts is at rest\n")
    assert command("stop", "--json").document(GivenCommand).outcome == "nothing runs"


# ---------------------------------------------------------------- running


def test_commands_to_a_running_app_are_done_at_a_position_and_say_how_they_are_undone(running) -> None:
    run = running.run
    done = run("task", "stop", "counts.py", "Count", "--reason", "a test")
    assert done.out == "stop Count: done at position 10\nto undo: secondpass task start counts.py Count\n"
    found = run("task", "start", "Count", "--json").document(GivenCommand)
    assert (found.command, found.task, found.outcome, found.position) == ("start", "Count", "done", 11)
    assert found.undo == "secondpass task stop Count"
    assert run("task", "set", "Count", "step=5").out == (
        "set Count: done at position 12; step 1 -> 5\nto undo: secondpass task set Count.step=1\n"
    )
    assert run("task", "remove", "Near").out.endswith("to undo: secondpass task add Near --before Count\n")
    assert run("task", "add", "Near", "--before", "Count").out.startswith("add Near: done at position 14\n")
    assert run("task", "replace", "Count").out.startswith(
        "replace Count: done at position 15; tried on 10 events\n"
    )
    assert run("task", "replace", "Near", "--trial", "0").out.startswith(
        "replace Near: done at position 16\n"
    )
    assert run("task", "drop", "Count", "--yes").out == "drop Count: done at position 17\n"
    out = run("history").out.splitlines()
    assert re.match(r"position  when +what +by +why$", out[0])
    told = [re.split(r"  +", line.strip())[2] for line in out[1:]]
    assert told == [
        "start of a run",
        "stop Count",
        "start Count",
        "set Count: step 1 -> 5",
        "remove Near",
        "add Near before Count",
        "replace Count, tried on 10 events",
        "replace Near",
        "drop Count",
    ]
    assert out[2].endswith("a test")


def test_a_task_that_was_stopped_is_put_back_stopped(running) -> None:
    run = running.run
    assert run("task", "stop", "Near").code == 0
    undo = "secondpass task add Near --stopped --before Count"
    assert run("task", "remove", "Near").out.endswith(f"to undo: {undo}\n")
    assert run(*undo.split()[1:]).out.startswith("add Near: done at position 12\n")
    assert [(t.name, t.stopped) for t in tasks(run).values()] == [("Near", True), ("Count", False)]
    assert "add Near before Count, stopped" in run("history").out
    assert run("task", "start", "Near").code == 0


REFUSED: list[tuple[list[str], str]] = [
    (["stop", "Nobody"], "refused: the chain has no task Nobody; it has: Near, Count"),
    (["start", "Count"], "refused: Count runs already"),
    (["add", "Count"], "refused: the chain has a task Count already"),
    (["add", "Other"], "refused: the app's file has no task Other; it has: Near, Count"),
    (["set", "Near.window_s=abc"], "refused: Near(window_s='abc'): Expected `float`, got `str`"),
    (["set", "Near.window_s="], "Expected `float`, got `str`"),
    (["set", "Near.window_s=[1"], "Expected `float`, got `str`"),
    (["set", "Near.label=17"], """Expected `str`, got `int`; for text: 'Near.label="17"'"""),
    (["set", "Near.wide=1"], "refused: Near has no setting 'wide'"),
    (["set", "Near.wait=1"], "refused: Near has no setting 'wait'"),
    (["drop", "Near", "nothing", "--yes"], "refused: Near has no state nothing; it has: last"),
]


def test_what_the_running_app_refuses_is_a_usage_error_with_its_reason(running) -> None:
    for arguments, said in REFUSED:
        done = running.run("task", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert said in done.err
        entry = running.run("history", "--last", "1", "--json").lines(HistoryLine)[0]
        assert entry.kind == "left out"
        assert entry.what.startswith(f"left out: {arguments[0]} ")


@pytest.mark.parametrize("limit", [(), ("--limit", "5")])
def test_what_waits_for_a_run_is_done_before_its_first_event_however_long_it_takes(
    resting, command, limit
) -> None:
    resting.write(
        "counts.py",
        APP.replace(
            "    total = value",
            "    def setup(self):\n        import time; time.sleep(0.5)\n\n    total = value",
        ),
    )
    for words in ("replace", "Count"), ("set", "Near", "window_s=3.0"), ("stop", "Near"):
        assert command("task", *words[:1], "counts.py", *words[1:]).code == 0
    resting.seen(*range(1000))
    assert command("run", "counts.py", "-q", *limit).code == 0
    done = [
        (e.position, e.what) for e in command("history", "--json").lines(HistoryLine) if e.kind == "command"
    ]
    assert [position for position, _ in done] == [10, 11, 12], done


def test_a_paused_app_takes_nothing_until_it_is_resumed_and_says_how(running) -> None:
    run = running.run
    assert run("pause", "counts.py").out == (
        "pause: done at position 10\nto go on: secondpass resume counts.py\n"
    )
    with (running.project.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 10, "time": 10.0}\n')
    status = run("status")
    assert "it takes no events: secondpass resume counts.py" in status.out
    assert run("task", "stop", "Count").out.startswith("stop Count: done at position 11")
    assert run("pause").code == 2
    time.sleep(0.3)
    assert run("status", "--json").document(StatusReport).stores[0].position == 12
    assert run("resume", "counts.py").out.startswith("resume: done at position 12\n")
    running.position(14)
    _, err = running.end()
    assert "paused: it takes no events; to go on: secondpass resume counts.py\n" in err
    assert "resumed\n" in err


def test_a_run_of_a_paused_app_says_that_it_waits_and_for_what(resting, command) -> None:
    assert command("pause", "counts.py").code == 0
    with resting.start("run", "counts.py", "-q") as process:
        assert process.stderr is not None
        assert "to go on: secondpass resume counts.py" in process.stderr.readline()
        assert resting.run("resume").out.startswith("resume: done at position 11\n")
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_stop_ends_the_run_and_returns_when_its_process_has_gone(running) -> None:
    pid = running.process.pid
    done = running.run("stop", "counts.py", "--reason", "maintenance")
    assert done.out == (
        f"stop: done at position 10; process {pid} has gone\nto go on: secondpass run counts.py\n"
    )
    assert (Path("/proc") / str(pid) / "stat").read_text().split()[2] == "Z"
    out, _ = running.end()
    assert running.process.returncode == 0
    assert "then it was stopped" in out
    assert running.run("run", "counts.py").code == 0  # the command was for that run only
    assert "maintenance" in running.run("history").out


def test_without_waiting_a_command_is_asked_for_and_done_soon(running) -> None:
    done = running.run("task", "stop", "Count", "--no-wait")
    assert done.out.startswith(
        f"stop Count: asked for; the running app does it within moments (process {running.process.pid}): secondpass history"
    )
    running.position(11)
    done = running.run("stop", "--no-wait", "--json").document(GivenCommand)
    assert (done.command, done.outcome, done.position) == ("end", "asked for", None)
    running.process.wait(30)


def test_ctrl_c_while_waiting_says_that_the_command_stays_asked_for(running) -> None:
    os.kill(running.process.pid, signal.SIGSTOP)  # it answers nothing
    try:
        with running.project.start("task", "stop", "Count") as waiting:
            deadline = time.monotonic() + 30
            while not list(running.store.glob("commands/*.json")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert waiting.stderr is not None
            assert "Ctrl-C leaves the stop Count asked for" in waiting.stderr.readline()
            waiting.send_signal(signal.SIGINT)
            out, err = waiting.communicate(timeout=30)
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    assert (waiting.returncode, out) == (130, "")
    assert "the stop Count stays asked for; what becomes of it: secondpass history\n\ninterrupted\n" in err
    running.position(11)
    assert "stop Count" in running.run("history").out


# ---------------------------------------------------------------- replace


def source(running: Running) -> Path:
    return running.project.folder / "counts.py"


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_an_app_file_that_is_no_python_is_refused_with_the_reason_and_the_old_code_runs_on(running) -> None:
    edit(source(running), ("self.total += self.step", "self.total += = self.step"))
    done = running.run("task", "replace", "Count")
    assert (done.code, done.out) == (2, "")
    assert re.search(r"refused: .*counts.py.*line 19.*SyntaxError|refused: SyntaxError", done.err), done.err
    with (running.project.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 10, "time": 10.0}\n')
    running.position(11)
    assert len(running.project.output()) == 11


def test_an_event_type_that_has_changed_is_refused(running) -> None:
    edit(source(running), ("    time: float\n", "    time: float\n    lane: int = 0\n"))
    done = running.run("task", "replace", "Count")
    assert done.code == 2
    assert "refused: the event type Seen has changed in the file" in done.err


def test_new_code_that_loses_state_says_so_and_with_upgrade_takes_it_over(running) -> None:
    edit(
        source(running),
        ("total = value(int, 0)", "totals = table(int, int, default=0)"),
        ("self.total += self.step", "self.totals[0] += self.step"),
        ("1000 * self.total", "100000 * self.totals[0]"),
    )
    done = running.run("task", "replace", "Count")
    assert done.code == 2
    assert "Count no longer has total as it was declared; say in `def upgrade(self, old)`" in done.err
    edit(
        source(running),
        (
            "totals = table(int, int, default=0)\n",
            "totals = table(int, int, default=0)\n\n    def upgrade(self, old):\n        self.totals[0] = old['total']\n",
        ),
    )
    done = running.run("task", "replace", "Count")
    assert done.code == 0, done.err
    found = running.run("task", "export", "Count").document(TaskExport)
    assert [(s.name, [c.value for c in s.cells]) for s in found.state] == [("totals", [10])]


def test_code_that_fails_in_its_trial_is_refused_with_the_event_and_runs_untried_when_asked(running) -> None:
    edit(source(running), ("self.total += self.step", "raise ValueError('not this one')"))
    done = running.run("task", "replace", "Count")
    assert done.code == 2
    assert "refused: Count failed in its trial: ValueError: not this one, at Seen(cid=0" in done.err
    assert running.run("task", "replace", "Count", "--trial", "0").code == 0


def test_what_the_file_imports_is_not_read_again_and_that_is_said(running) -> None:
    source(running).rename(running.project.folder / "counted.py")
    edit(running.project.folder / "counted.py", ("app = App(", "made = lambda: App("))
    source(running).write_text("import counted\nfrom counted import Count\n\napp = counted.made()\n")
    assert running.run("task", "replace", "Count").code == 2, "its event type is another class now"
    running.run("stop")
    again = Running(running.project, command=running.run)
    try:
        deadline = time.monotonic() + 30
        while [e["kind"] for e in Control(again.store).history()].count("start") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        edit(running.project.folder / "counted.py", ("self.total += self.step", "self.total += 100"))
        done = again.run("task", "replace", "Count")
        assert (done.code, done.out) == (2, "")
        assert "refused: Count is defined in counted, which the app's file imports" in done.err
    finally:
        again.end()


PARALLEL = """
class Heavy(Task[Seen]):
    step: int = 1
    known = table(int, int, default=0)

    def keys(self, event: Seen) -> tuple[int]:
        return (event.cid % 5,)

    def handle(self, event: Seen) -> Seen:
        assert type(event) is Seen, type(event).__module__
        self.known[event.cid % 5] += self.step
        return event.replace(cid=event.cid + 10_000 * self.known[event.cid % 5])


class Last(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        assert type(event) is Seen, type(event).__module__
        self.total += 1
        return event.replace(time=float(self.total))


app = App("counts", source=JsonLines(HERE / "in.jsonl", Seen),
          tasks=[Heavy().options(place=PLACE, on_error="stop"), Last().options(on_error="stop")])
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_an_edited_file_gives_the_new_code_from_one_position_on(project, workers: int) -> None:
    place = '"workers"' if workers else '"auto"'
    path = project.write("counts.py", PARALLEL.replace("PLACE", place))
    project.seen(*range(300))
    running = Running(project, "--workers", str(workers))
    try:
        for turn in range(3):
            running.position(300 * (turn + 1))
            edit(path, (f"{10 ** (4 + turn):_} *", f"{10 ** (5 + turn):_} *"))
            give = project.start("task", "replace", "Heavy", "--reason", f"turn {turn}")
            with (project.folder / "in.jsonl").open("a") as file:
                for n in range(300 * (turn + 1), 300 * (turn + 2)):
                    file.write(json.dumps({"cid": n, "time": float(n)}) + "\n")
                    file.flush()
            out, err = give.communicate(timeout=60)
            assert give.returncode == 0, err
            assert "tried on" in out
        running.position(1203)
    finally:
        running.end()
    assert running.process.returncode == 130
    _as_the_plain_loop_says(running.store)


def _as_the_plain_loop_says(store: Path) -> None:
    history = [e for e in Control(store).history() if e["kind"] == "command"]
    switches = [e["position"] for e in history]
    assert [e["asked"] for e in history] == ["replace"] * 3
    wanted: list[dict[str, Any]] = []
    factor, known, position = 10_000, dict.fromkeys(range(5), 0), 0
    for n in range(1200):
        while position in switches:
            factor, position = factor * 10, position + 1
        position += 1
        known[n % 5] += 1
        wanted.append({"cid": n + factor * known[n % 5], "time": float(n + 1)})
    from secondpass.engine.outbox import decode_plain
    from secondpass.store.reader import StoreReader

    reader = StoreReader.open_to_read(store)
    found = [event for row in reader.outputs("main") for event in decode_plain(row)]
    reader.close()
    assert found == wanted


def test_no_process_is_left_behind(project) -> None:
    """The commands' own processes end, and those of workers that were replaced."""
    path = project.write("counts.py", PARALLEL.replace("PLACE", '"workers"'))
    project.seen(*range(50))
    running = Running(project, "--workers", "2")
    try:
        running.position(50)
        edit(path, ("10_000 *", "20_000 *"))
        assert project.run("task", "replace", "Heavy").code == 0
        deadline = time.monotonic() + 30
        while len(_below(running.process.pid)) > 4:
            assert time.monotonic() < deadline, _below(running.process.pid)
            time.sleep(0.05)
        children = _below(running.process.pid)
        assert project.run("stop").code == 0
    finally:
        running.end()
    deadline = time.monotonic() + 30
    while any((Path("/proc") / pid).exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _below(pid: int) -> list[str]:
    """The processes that a process has started, and they."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    direct = found.stdout.split()
    return direct + [inner for one in direct for inner in _below(int(one))]
