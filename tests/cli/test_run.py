"""`secondpass run`: its options, its summary, its JSON."""

import json
import os
import re
import signal

import pytest

from secondpass.cli.shapes import LetterList, RunReport

COUNTING = """
class Count(Task[Seen]):
    {state} = table(int, int, default=0)

    def handle(self, event: Seen) -> Seen:
        self.{state}[event.cid] += 1
        return event


app = App("counting", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Count().options(name="{name}")],
          sink=JsonLines(HERE / "out.jsonl"))
"""


def test_the_summary_has_a_row_for_each_task_and_each_output(project, command) -> None:
    project.write(
        "app.py",
        """
        class Odd(Task[Seen]):
            even = output(Seen)

            def handle(self, event: Seen) -> Seen | None:
                self.count("looked at")
                if event.cid % 2:
                    return event
                self.even.emit(event)
                return None


        app = App("parity", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Odd()],
                  sink=JsonLines(HERE / "odd.jsonl"))
        """,
    )
    project.seen(1, 2, 3)
    done = command("run", "app.py")
    assert done.code == 0
    assert re.search(r"^Odd +3 +2 +1 +0 +\d+%|<1%", done.out, re.MULTILINE)
    assert re.search(r"^Odd +looked at +3$", done.out, re.MULTILINE)
    assert re.search(r"^main +2 +2 +odd\.jsonl$", done.out, re.MULTILINE)
    assert re.search(
        r"^even +1 +1 +the store: secondpass outputs app.py --stream even$", done.out, re.MULTILINE
    )
    assert re.search(r"^store +\.secondpass/parity$", done.out, re.MULTILINE)


def test_a_limit_stops_a_run_and_the_next_one_goes_on(first, command) -> None:
    done = command("run", "first.py", "--limit", "2")
    assert done.code == 0
    assert "2 events in" in done.out
    assert "secondpass run first.py" in done.out
    done = command("run", "first.py", "--json")
    report = done.document(RunReport)
    assert (report.events, report.position, report.ended) == (4, 6, "end of input")
    assert [e["cid"] for e in first.output()] == [1, 2, 3]


def test_json_is_one_document_with_the_counts_of_the_run(first, command) -> None:
    done = command("run", "first.py", "--json")
    report = done.document(RunReport)
    assert (report.app, report.events, report.nothing_new) == ("first", 6, False)
    assert [(t.name, t.events, t.passed, t.dropped) for t in report.tasks] == [("First", 6, 3, 3)]
    assert [(s.name, s.outputs, s.to) for s in report.streams] == [("main", 3, "out.jsonl")]
    assert done.err == ""
    assert command("run", "first.py", "--json").document(RunReport).nothing_new


def test_quiet_prints_nothing_when_all_is_well(first, command) -> None:
    done = command("run", "first.py", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_task_that_drops_everything_gets_a_hint_also_when_quiet(project, command) -> None:
    project.write(
        "app.py",
        """
        class Forgetful(Task[Seen]):
            def handle(self, event: Seen) -> None:
                event.replace(cid=1)


        app = App("forgetful", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Forgetful()])
        """,
    )
    project.seen(1, 2)
    done = command("run", "app.py", "--quiet")
    assert "Forgetful dropped every event" in done.err
    assert "does its handle return the event?" in done.err


def test_an_app_that_writes_to_standard_output_has_it_for_its_own(project, command) -> None:
    project.write(
        "app.py",
        'app = App("piped", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[], sink=JsonLines("-"))\n',
    )
    project.seen(1, 2)
    done = command("run", "app.py")
    assert [json.loads(line)["cid"] for line in done.out.splitlines()] == [1, 2]
    assert "piped: 2 events" in done.err
    assert "standard output" in done.err


def test_the_store_can_be_elsewhere(first, command) -> None:
    command("run", "first.py", "--store", "kept/here")
    assert (first.folder / "kept" / "here" / "store.db").is_file()
    assert not (first.folder / ".secondpass").exists()
    assert "nothing new" in command("run", "first.py", "--store", "kept/here").out


def test_fresh_needs_yes_where_nobody_can_answer_and_throws_nothing_away_without_it(
    first, command, monkeypatch
) -> None:
    command("run", "first.py", "-q")
    monkeypatch.setattr("os.isatty", lambda _: False)
    done = command("run", "first.py", "--fresh")
    assert done.code == 2
    assert "--yes" in done.err
    assert "6 events" in done.err
    assert "out.jsonl" in done.err
    assert "nothing new" in command("run", "first.py").out


def test_fresh_does_all_of_the_input_again(first, command) -> None:
    command("run", "first.py", "-q")
    done = command("run", "first.py", "--fresh", "--yes", "--json")
    assert done.document(RunReport).events == 6
    assert [e["cid"] for e in first.output()] == [1, 2, 3], "outputs of the thrown-away store are gone too"


def test_fresh_asks_nothing_where_there_is_nothing_to_throw_away(first, command) -> None:
    assert command("run", "first.py", "--fresh").code == 0


def test_a_no_to_fresh_changes_nothing(first, command, monkeypatch) -> None:
    command("run", "first.py", "-q")
    monkeypatch.setattr("os.isatty", lambda _: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    done = command("run", "first.py", "--fresh")
    assert (done.code, done.out) == (0, "")
    assert "nothing was done" in done.err
    assert "nothing new" in command("run", "first.py").out


def test_changes_of_the_chain_are_told_at_the_start(project, command) -> None:
    project.write("app.py", COUNTING.format(state="n", name="Count"))
    project.seen(1, 2)
    command("run", "app.py", "-q")
    project.write(
        "app.py", COUNTING.format(state="n", name="Count").replace("tasks=[", "tasks=[lambda e: e, ")
    )
    done = command("run", "app.py")
    assert "since the last run:\n  task <lambda> added" in done.err


def test_state_goes_on_under_a_new_name_when_rename_says_so(project, command) -> None:
    project.write("app.py", COUNTING.format(state="n", name="Old"))
    project.seen(5, 5, 5)
    command("run", "app.py", "-q")
    project.write("app.py", COUNTING.format(state="n", name="New"))

    refused = command("run", "app.py")
    assert refused.code == 2
    assert "--rename Old=New" in refused.err

    assert command("run", "app.py", "--rename", "Old=New").code == 0
    assert command("state", "get", "New.n", "5").out == "3\n"


def test_state_is_dropped_when_drop_says_so(project, command) -> None:
    project.write("app.py", COUNTING.format(state="n", name="Old"))
    project.seen(5, 5, 5)
    command("run", "app.py", "-q")
    project.write("app.py", COUNTING.format(state="n", name="New"))
    assert command("run", "app.py", "--drop", "Old").code == 0
    assert command("state", "ls", "--json").out.count('"task"') == 1
    assert command("state", "get", "New.n", "5").code == 2


def test_an_input_that_moved_is_accepted_when_one_says_so(first, command) -> None:
    command("run", "first.py", "-q")
    first.seen(1, 2, 1, 3, 2, 1, 9)
    (first.folder / "in.jsonl").rename(first.folder / "moved.jsonl")
    app = (first.folder / "first.py").read_text().replace("in.jsonl", "moved.jsonl")
    (first.folder / "first.py").write_text(app)

    refused = command("run", "first.py")
    assert refused.code == 4
    assert "--accept-input" in refused.err

    assert command("run", "first.py", "--accept-input", "-q").code == 0
    assert [e["cid"] for e in first.output()] == [1, 2, 3, 9]


def test_an_output_that_was_removed_is_accepted_when_one_says_so(first, command) -> None:
    command("run", "first.py", "-q")
    (first.folder / "out.jsonl").unlink()
    first.seen(1, 2, 1, 3, 2, 1, 9)

    refused = command("run", "first.py")
    assert refused.code == 5
    assert "--accept-output" in refused.err

    assert command("run", "first.py", "--accept-output", "-q").code == 0
    assert [e["cid"] for e in first.output()] == [9]


def test_dead_letters_are_counted_with_the_command_that_lists_them(first, command) -> None:
    first.events([{"cid": 1, "time": 0.0}, {"cid": "one", "time": 1.0}])
    done = command("run", "first.py")
    assert done.code == 0
    assert re.search(r"^dead letters +1: secondpass dead-letters list first.py$", done.out, re.MULTILINE)


def test_what_tasks_log_goes_to_standard_error_with_its_task(project) -> None:
    project.write(
        "app.py",
        """
        class Told(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                self.log.info("saw %s", event.cid)
                return event


        app = App("told", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Told()])
        """,
    )
    project.seen(7)
    done = project.run("run", "app.py")
    assert re.search(r"^\d\d:\d\d:\d\d INFO task.Told: saw 7$", done.err, re.MULTILINE)
    assert "saw 7" not in done.out


def test_an_unexpected_error_is_told_as_a_bug_of_ours_with_its_traceback(first, command, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("cannot be")

    monkeypatch.setattr("secondpass.engine.run.run_app", broken)
    done = command("run", "first.py")
    assert done.code == 70
    assert "Traceback" in done.err
    assert "error: RuntimeError: cannot be\n  this is a bug of secondpass" in done.err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_event_class_that_is_made_in_a_call_stops_the_run_and_nothing_is_lost(
    project, workers: str
) -> None:
    """Whoever has not made that call does not know it: another process, the next start."""
    text = """
class Make(Task[Seen]):
    def handle(self, event: Seen) -> Event:
        class Local(Event):
            cid: int

        return Local(cid=event.cid)


def last(event: Event) -> Event:
    return event


app = App("made", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Make().options(place="workers"), last],
          sink=JsonLines(HERE / "out.jsonl"))
"""
    project.write("made.py", text)
    project.seen(1, 2, 3)
    done = project.run("run", "made.py", "--workers", workers)
    if workers == "0":
        assert (done.code, len(project.output())) == (0, 3)
        return
    assert done.code == 5
    assert "made.Make.handle.<locals>.Local, whose class is made while a task runs" in done.err
    assert "Traceback" not in done.err
    whole = text.replace("        class Local(Event):\n            cid: int\n\n", "")
    project.write("made.py", "class Local(Event):\n    cid: int\n\n\n" + whole)
    done = project.run("run", "made.py", "--workers", workers)
    assert (done.code, len(project.output())) == (0, 3), done.err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_no_event_is_to_blame_where_nobody_reads_what_a_task_prints(project, command, workers: str) -> None:
    """`secondpass run app.py | head -1` stops; what workers print goes to standard error, and is lost with its reader."""
    project.write(
        "prints.py",
        """
class Prints(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        print("saw", event.cid, flush=True)
        if event.cid == 0:
            raise FileNotFoundError(2, "not there", "zero")
        return event


app = App("prints", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Prints().options(place=PLACE)],
          sink=JsonLines(HERE / "out.jsonl"))
""".replace("PLACE", repr("inline" if workers == "0" else "workers")),
    )
    project.seen(0, *range(1, 200))
    with project.start("run", "prints.py", "--workers", workers) as process:
        (process.stdout if workers == "0" else process.stderr).close()
        code = process.wait(60)
        if workers == "0":
            assert "nobody reads standard output any more, and the task prints there" in process.stderr.read()
    assert code == (3 if workers == "0" else 0)
    assert command("dead-letters", "list", "prints.py", "--json").document(LetterList).count < 2
    assert command("run", "prints.py", "-q").code == 0
    assert [event["cid"] for event in project.output()] == list(range(1, 200))
    assert command("dead-letters", "list", "prints.py", "--json").document(LetterList).count == 1


FORKS = """
import os, signal, time

class Forks(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.cid == 1:
            child = os.fork()
            if child == 0:
                os.closerange(0, 3)
                time.sleep(60)
                os._exit(0)
            (HERE / f"child-{event.time:g}").write_text(str(child))
        if event.cid == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return event


app = App("forks", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Forks().options(place="inline")],
          sink=JsonLines(HERE / "out.jsonl"))
"""


@pytest.mark.parametrize("last", [3, 2])
def test_a_child_that_a_task_has_forked_does_not_keep_the_store(project, last: int) -> None:
    """Whether the run ended well, or was killed while the child lives on."""
    project.write("forks.py", FORKS)
    project.seen(1, last)
    try:
        code = project.run("run", "forks.py", "-q", "--workers", "0").code
        assert code == (0 if last == 3 else -signal.SIGKILL)
        project.write("forks.py", FORKS.replace("event.cid == 1", "event.cid == 7").replace("== 2:", "== 7:"))
        done = project.run("run", "forks.py", "-q", "--workers", "0")
        assert done.code == 0, done.err
        assert [event["cid"] for event in project.output()] == [1, last]
    finally:
        for file in project.folder.glob("child-*"):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("place", ["inline", "workers"])
def test_an_error_that_stops_an_app_stops_it_wherever_a_task_raises_it(project, place: str) -> None:
    project.write(
        "stops.py",
        """
from secondpass.errors import TaskStopped

class Stops(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.cid == 3:
            raise TaskStopped("three")
        return event


app = App("stops", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Stops().options(place=PLACE)],
          sink=JsonLines(HERE / "out.jsonl"))
""".replace("PLACE", repr(place)),
    )
    project.seen(1, 2, 3, 4)
    done = project.run("run", "stops.py", "-q", "--workers", "2")
    assert (done.code, [event["cid"] for event in project.output()]) == (3, [1, 2]), done.err
    assert "three\n  at task Stops, position 2" in done.err
