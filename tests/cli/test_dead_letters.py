"""`secondpass dead-letters`: listing them, and what a command to send or drop them does."""

import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from secondpass.cli.commanding import Meant
from secondpass.cli.dead_letters import _give
from secondpass.cli.shapes import CommandReport, ExplainReport, HistoryLine, Letter, LetterList, StatusReport
from secondpass.errors import ChangeRefused

FRAGILE = """
class Fragile(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.cid > 9:
            raise ValueError(f"camera {event.cid} is unknown")
        return event


class Strict(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.cid == 0:
            raise LookupError("no camera 0")
        return event


app = App("fragile", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Fragile(), Strict()],
          sink=JsonLines(HERE / "out.jsonl"))
"""


@pytest.fixture
def broken(project, command):
    """Dead letters 0 and 2 of Fragile, 1 of Strict, 3 of the input."""
    project.write("fragile.py", FRAGILE)
    project.seen(1, 10, 0, 11)
    with (project.folder / "in.jsonl").open("a") as file:
        file.write("no json\n")
    assert command("run", "fragile.py", "-q").code == 0
    return project


def statuses(command) -> dict[int, str]:
    lines = command("dead-letters", "list", "--each", "--status", "all", "--json").lines(Letter)
    return {letter.number: letter.status for letter in lines}


# ---------------------------------------------------------------- list and show


def test_alike_ones_are_listed_together_with_count_and_oldest(broken, command) -> None:
    done = command("dead-letters", "list", "fragile.py")
    assert re.search(r"^ +2 +0 +1 +Fragile +ValueError: camera 10 is unknown$", done.out, re.MULTILINE)
    assert re.search(r"^ +1 +1 +2 +Strict +LookupError: no camera 0$", done.out, re.MULTILINE)
    assert re.search(r"^ +1 +3 +4 +\(input\) ", done.out, re.MULTILINE)
    assert "secondpass dead-letters show fragile.py 0" in done.out


def test_the_list_as_json_is_one_document(broken, command) -> None:
    report = command("dead-letters", "list", "--json").document(LetterList)
    assert (report.status, report.count) == ("open", 4)
    assert [(g.task, g.count, g.oldest, g.newest, g.oldest_position) for g in report.groups] == [
        ("Fragile", 2, 0, 2, 1),
        ("Strict", 1, 1, 1, 2),
        (None, 1, 3, 3, 4),
    ]


def test_those_of_one_task_can_be_listed_one_by_one(broken, command) -> None:
    lines = command("dead-letters", "list", "--task", "Fragile", "--each", "--json").lines(Letter)
    assert [(x.number, x.event["cid"]) for x in lines] == [(0, 10), (2, 11)]


def test_one_is_shown_with_its_event_and_the_users_traceback(broken, command) -> None:
    done = command("dead-letters", "show", "fragile.py", "2")
    assert "ValueError: camera 11 is unknown" in done.out
    assert '{"cid":11,"time":3.0}' in done.out
    assert "in handle" in done.out
    assert "secondpass dead-letters retry fragile.py 2" in done.out
    letter = command("dead-letters", "show", "2", "--json").document(Letter)
    assert (letter.task, letter.position, letter.status) == ("Fragile", 3, "open")


def test_a_line_that_was_no_event_is_shown_as_it_was(broken, command) -> None:
    done = command("dead-letters", "show", "3")
    assert re.search(r"^  input +no json$", done.out, re.MULTILINE)
    assert "set aside before the chain" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "9"], "they have the numbers 0 to 3"),
        (["show", "0", "1"], "the number of one dead letter"),
        (["show", "fragile.py", "x"], "'x' is not the number"),
        (["retry"], "say which"),
        (["retry", "0", "--all"], "say which"),
        (["retry", "--all", "--event", "{}"], "--event mends one"),
        (["retry", "0", "--event", "[1]"], "write a JSON object"),
        (["retry", "0", "--event", "{"], "write a JSON object"),
        (["retry", "3"], "was no event"),
        (["retry", "9"], "they have the numbers 0 to 3"),
    ],
)
def test_a_wrong_choice_is_told_and_nothing_is_asked_for(
    broken, command, arguments: list[str], said: str
) -> None:
    done = command("dead-letters", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not (broken.folder / ".secondpass" / "fragile" / "commands").exists()


# ---------------------------------------------------------------- retry and drop


def test_a_retry_is_done_by_the_next_run_and_says_so(broken, command) -> None:
    broken.write("fragile.py", FRAGILE.replace("> 9", "> 10"))
    done = command("dead-letters", "retry", "0")
    assert done.out == "dead letter 0 will be sent again by the next run: secondpass run fragile.py\n"
    assert "1 waiting for the next run" in command("status").out
    assert command("run", "fragile.py", "-q").code == 0
    assert statuses(command) == {0: "sent", 1: "open", 2: "open", 3: "open"}
    assert [e["cid"] for e in broken.output()] == [1, 10]


def test_a_run_that_only_did_commands_does_not_say_that_nothing_was_new(broken, command) -> None:
    command("dead-letters", "drop", "0")
    assert "nothing new" not in command("run", "fragile.py").out
    assert "nothing new" in command("run", "fragile.py").out


def test_a_mended_event_is_sent_instead(broken, command) -> None:
    done = command("dead-letters", "retry", "fragile.py", "2", "--event", '{"cid": 7}', "--json")
    report = done.document(CommandReport)
    assert (report.kind, report.letters, report.running) == ("retry", [2], False)
    command("run", "fragile.py", "-q")
    assert broken.output() == [{"cid": 1, "time": 0.0}, {"cid": 7, "time": 3.0}]


def test_a_task_that_fails_again_sets_it_aside_again(broken, command) -> None:
    command("dead-letters", "retry", "--task", "Strict")
    assert command("run", "fragile.py", "-q").code == 0
    assert statuses(command) == {0: "open", 1: "sent", 2: "open", 3: "open", 4: "open"}


def test_dropped_ones_are_kept_as_dropped_and_cannot_be_sent(broken, command) -> None:
    assert command("dead-letters", "drop", "0", "3").code == 0
    command("run", "fragile.py", "-q")
    assert statuses(command) == {0: "dropped", 1: "open", 2: "open", 3: "dropped"}
    done = command("dead-letters", "retry", "0")
    assert done.code == 2
    assert "was dropped" in done.err


def test_dropping_many_asks_first(broken, command, monkeypatch) -> None:
    monkeypatch.setattr("os.isatty", lambda _: False)
    done = command("dead-letters", "drop", "--all")
    assert done.code == 2
    assert "4 dead letters" in done.err
    assert "--yes" in done.err
    assert command("dead-letters", "drop", "--all", "--yes").out.startswith(
        "4 dead letters will be dropped by the next"
    )
    command("run", "fragile.py", "-q")
    assert set(statuses(command).values()) == {"dropped"}
    assert command("dead-letters", "list").out == "no open dead letters in .secondpass/fragile\n"


@pytest.fixture
def running(broken) -> Iterator[Any]:
    """The app in another process, with its four dead letters; camera 11 is known now, and camera 10 is not."""
    broken.write("fragile.py", FRAGILE.replace("event.cid > 9", "event.cid == 10"))
    with broken.start("run", "fragile.py", "--follow") as process:
        assert process.stderr is not None
        broken.process = process
        while broken.run("status", "--json").document(StatusReport).stores[0].running is None:
            assert process.poll() is None, process.communicate()
        yield broken
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_running_app_says_what_became_of_it(running) -> None:
    run = running.run
    assert run("dead-letters", "retry", "2").out == "dead letter 2 sent again at position 5\n"
    assert run("dead-letters", "drop", "3").out == "dead letter 3 dropped\n"
    assert run("dead-letters", "retry", "0").out == (
        "dead letter 0 sent again at position 6; failed again: dead letter 4\n"
    )
    assert statuses(run) == {0: "sent", 1: "open", 2: "sent", 3: "dropped", 4: "open"}
    (entry,) = [e for e in run("history", "--json").lines(HistoryLine) if e.what == "retry dead letter 2"]
    assert f"process {running.process.pid}" not in (entry.by or "")
    assert re.fullmatch(r".+@.+, process \d+", entry.by or "")
    assert entry.at is not None


def test_many_at_once_are_done_in_order_and_told_together(running) -> None:
    run = running.run
    report = run("dead-letters", "retry", "0", "1", "2", "--json").document(CommandReport)
    assert report == CommandReport(
        store=".secondpass/fragile", kind="retry", letters=[0, 1, 2], running=True, outcome="done",
        positions={0: 5, 1: 6, 2: 7}, failed_again=[4, 5],
    )  # fmt: skip
    assert [event["cid"] for event in running.output()] == [1, 11]
    assert run("dead-letters", "drop", "--all", "--yes").out == "3 dead letters dropped\n"


@pytest.mark.parametrize("order", [[2, 0], [0, 2]])
def test_what_somebody_else_has_done_meanwhile_is_left_out(running, order: list[int], capfd) -> None:
    store = running.folder / ".secondpass" / "fragile"
    assert running.run("dead-letters", "drop", "2").code == 0
    _give(Meant(None, store, store), "retry", order, None, "", no_wait=False, as_json=False)
    assert capfd.readouterr().out == (
        "dead letter 0 sent again at position 5; failed again: dead letter 4; "
        "dead letter 2 left out: dead letter 2 was dropped already\n"
    )
    with pytest.raises(ChangeRefused, match="refused: dead letter 2 was dropped already"):
        _give(Meant(None, store, store), "drop", [2], None, "", no_wait=False, as_json=False)


def test_without_waiting_they_are_asked_for(running) -> None:
    done = running.run("dead-letters", "drop", "0", "1", "--no-wait")
    assert done.out == (
        f"2 dead letters will be dropped by the running app within moments (process {running.process.pid})\n"
    )
    deadline = time.monotonic() + 30
    while '"dropped": 2' not in running.run("status", "--json").out:
        assert time.monotonic() < deadline


def test_a_paused_app_does_what_is_asked_of_dead_letters_and_what_is_asked_after_it(running) -> None:
    run = running.run
    assert run("pause").code == 0
    with (running.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 5, "time": 5.0}\n')
    assert run("dead-letters", "retry", "2").out == "dead letter 2 sent again at position 6\n"
    assert run("dead-letters", "drop", "0", "--no-wait").code == 0
    assert run("resume").out.startswith("resume: done at position 7\n")
    deadline = time.monotonic() + 30
    while [event["cid"] for event in running.output()] != [1, 11, 5]:
        assert time.monotonic() < deadline
    assert statuses(run) == {0: "dropped", 1: "open", 2: "sent", 3: "open"}


def test_a_retry_that_stops_the_app_is_refused_and_the_letter_stays_open(broken, command) -> None:
    broken.write(
        "fragile.py", FRAGILE.replace("tasks=[Fragile()", "tasks=[Fragile().options(on_error='stop')")
    )
    with broken.start("run", "fragile.py", "--follow") as process:
        while broken.run("status", "--json").document(StatusReport).stores[0].running is None:
            assert process.poll() is None, process.communicate()
        done = broken.run("dead-letters", "retry", "0")
        assert done.code == 2
        assert "refused: it stopped the app: ValueError: camera 10 is unknown" in done.err
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 3
    assert "mend it and run again: dead letter 0 stays open" in said
    assert statuses(command)[0] == "open"
    (found,) = [e for e in command("history", "--json").lines(HistoryLine) if e.kind == "left out"]
    assert found.reason == "it stopped the app: ValueError: camera 10 is unknown"
    again = broken.run("run", "fragile.py", "--quiet")  # it does not come again
    assert again.code == 0, again.err


# ---------------------------------------------------------------- a task that is called otherwise now

COUNTED = """
class Count(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 1
        return event


"""


@pytest.mark.parametrize("fragile", ["with state", "without"])
def test_a_letter_of_a_task_that_was_renamed_enters_at_that_task(project, command, fragile: str) -> None:
    """The tasks before it have had the event already."""
    text = COUNTED + FRAGILE.replace("tasks=[", "tasks=[Count(), ")
    if fragile == "with state":
        text = text.replace(
            "class Fragile(Task[Seen]):", "class Fragile(Task[Seen]):\n    most = value(int, 0)\n"
        )
    project.write("fragile.py", text)
    project.seen(1, 10, 2, 11)
    assert command("run", "fragile.py", "-q").code == 0
    project.write("fragile.py", text.replace("Fragile", "Lenient").replace("event.cid > 9", "event.cid > 10"))
    assert command("run", "fragile.py", "-q", "--rename", "Fragile=Lenient").code == 0
    project.write("fragile.py", text.replace("Fragile", "Known").replace("event.cid > 9", "event.cid > 10"))
    assert command("run", "fragile.py", "-q", "--rename", "Lenient=Known").code == 0

    # It is found under its task's name of then, and of now.
    for name in ("Fragile", "Known"):
        found = command("dead-letters", "list", "fragile.py", "--task", name, "--json").document(LetterList)
        assert [(group.task, group.count) for group in found.groups] == [("Fragile", 2)], name
    assert (
        command("dead-letters", "list", "fragile.py", "--task", "Lenient", "--json")
        .document(LetterList)
        .count
        == 0
    )
    assert "task Fragile, now Known" in " ".join(
        command("dead-letters", "show", "fragile.py", "0").out.split()
    )
    assert command("dead-letters", "retry", "fragile.py", "--task", "Known").code == 0
    assert command("run", "fragile.py", "-q").code == 0

    assert project.output()[-1]["cid"] == 10
    assert command("state", "get", "fragile.py", "Count.total").out.strip() == "4"
    # The other one failed again, as a letter of the task that it is now.
    found = command("dead-letters", "list", "fragile.py", "--json").document(LetterList)
    assert [(group.task, group.oldest_position) for group in found.groups] == [("Known", 5)]
    # What was sent again can be told, though its letter has a name that is gone.
    explained = command("explain", "fragile.py", "4", "--json").document(ExplainReport)
    assert [call.task for call in explained.calls] == ["Known", "Strict"]


def test_a_letter_of_a_task_that_stays_is_its_own_though_its_state_goes_on_elsewhere(
    project, command
) -> None:
    text = COUNTED + FRAGILE.replace("tasks=[", "tasks=[Count(), ")
    text = text.replace(
        "class Fragile(Task[Seen]):", "class Fragile(Task[Seen]):\n    most = value(int, 0)\n"
    )
    project.write("fragile.py", text)
    project.seen(10)
    assert command("run", "fragile.py", "-q").code == 0
    more = "Fragile(), Fragile().options(name='Other'), "
    project.write("fragile.py", text.replace("Fragile(), ", more).replace("event.cid > 9", "event.cid > 10"))
    assert command("run", "fragile.py", "-q", "--rename", "Fragile=Other").code == 0
    assert "task Fragile\n" in re.sub(" +", " ", command("dead-letters", "show", "fragile.py", "0").out)
    assert command("dead-letters", "retry", "fragile.py", "0").code == 0
    assert command("run", "fragile.py", "-q").code == 0
    explained = command("explain", "fragile.py", "1", "--json").document(ExplainReport)
    assert [call.task for call in explained.calls] == ["Fragile", "Other", "Strict"]
