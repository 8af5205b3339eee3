"""`rehearse`: what a changed chain would have put out, as text, JSON and a page."""

import hashlib
import html.parser
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from secondpass.cli.shapes import RehearsalReport
from secondpass.store.copy import Moment

SUPPRESS = """
class Suppress(Task[Seen]):
    window_s: float = 3.0
    last = table(int, float, ttl_s="window_s")

    def handle(self, event: Seen) -> Seen | None:
        was = self.last.get(event.cid)
        self.last[event.cid] = event.time
        if event.cid == 9:
            raise ValueError("nine")
        return event if was is None else None


def mark(event: Seen) -> Seen:
    return event.replace(cid=event.cid + 100)


app = App(
    "suppress", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Suppress(), mark],
    sink=JsonLines(HERE / "out.jsonl"),
)
"""


@pytest.fixture
def ran(project, command):
    """An app that ran over ten events a second apart."""
    project.write("app.py", SUPPRESS)
    project.seen(1, 2, 1, 9, 1, 2, 3, 3, 1, 2)
    assert command("run", "app.py", "-q").code == 0
    return project


def append(ran, line: str) -> None:
    with (ran.folder / "in.jsonl").open("a") as file:
        file.write(line)


def told(command, *arguments: str) -> RehearsalReport:
    done = command("rehearse", "app.py", "--json", *arguments)
    assert done.code == 0, done.err
    return done.document(RehearsalReport)


def counts(report: RehearsalReport) -> dict[str, tuple[int, ...]]:
    return {s.name: (s.recorded, s.rehearsed, s.same, s.gone, s.new, s.changed) for s in report.streams}


# ---------------------------------------------------------------- what differs


def test_an_unchanged_chain_shows_no_difference(ran, command) -> None:
    done = command("rehearse", "app.py")
    assert done.code == 0
    assert done.out.splitlines()[0] == "suppress: positions 0 to 9 rehearsed, unchanged"
    assert "no difference" in done.out
    assert counts(told(command)) == {"main": (6, 6, 6, 0, 0, 0), "dead letters": (1, 1, 1, 0, 0, 0)}


def test_another_setting_is_shown_with_what_it_changes(ran, command) -> None:
    out = command("rehearse", "app.py", "--set", "Suppress.window_s=5").out
    head, _, tail = out.partition("main over time")
    assert head == (
        "suppress: positions 0 to 9 rehearsed with\n"
        "  Suppress.window_s: 3.0 -> 5.0\n"
        "\n"
        "stream        put out  rehearsed  same  gone  new  changed\n"
        "main                6          3     3     3    0        0\n"
        "dead letters        1          1     1     0    0        0\n"
        "\n"
    )
    assert (
        "the differences:\n"
        '  gone at position 5, 5 s: {"cid":102,"time":5.0}\n'
        "    secondpass explain app.py 5\n"
        '  gone at position 8, 8 s: {"cid":101,"time":8.0}\n'
        "    secondpass explain app.py 8\n"
        '  gone at position 9, 9 s: {"cid":102,"time":9.0}\n'
        "    secondpass explain app.py 9\n"
    ) in tail


def test_the_events_of_the_differences_can_be_explained(ran, command) -> None:
    found = told(command, "--set", "Suppress.window_s=5")
    arguments = (found.first[0].explain or "").split()
    assert arguments[0] == "secondpass"
    assert "position 5" in command(*arguments[1:]).out


def test_a_difference_has_no_command_that_explains_it_where_the_code_that_ran_is_gone(ran, command) -> None:
    path = ran.folder / "app.py"
    was = path.read_text()
    path.write_text(was.replace("+ 100", "+ 200"))
    done = command("rehearse", "app.py", "--html", "report.html")
    assert "changed at position 0" in done.out
    assert "explain app.py" not in done.out
    assert "explain app.py" not in (ran.folder / "report.html").read_text()
    assert {one.explain for one in told(command).first} == {None}
    append(ran, '{"cid": 4, "time": 10.0}\n')
    assert command("run", "app.py", "-q").code == 0
    # What ran since the last start can be explained, what ran before cannot; and the other way round with the code before it.
    (ran.folder / "other.py").write_text(was.replace("+ 100", "+ 300"))
    found = told(command, "--code", "other.py")
    assert [d.position for d in found.first if d.explain is not None] == [10]
    assert command(*(found.first[-1].explain or "").split()[1:]).code == 0
    path.write_text(was)
    found = told(command, "--code", "other.py")
    assert [d.position for d in found.first if d.explain is None] == [10]
    assert command(*(found.first[0].explain or "").split()[1:]).code == 0


def test_outputs_that_are_others_count_as_changed_and_one_task_less_can_be_tried(ran, command) -> None:
    found = told(command, "--without", "mark")
    assert counts(found)["main"] == (6, 6, 0, 0, 0, 6)
    assert (found.first[0].recorded["cid"], found.first[0].rehearsed["cid"]) == (101, 1)
    assert [t.name for t in found.tasks] == ["Suppress"]
    assert '    now {"cid":1,"time":0.0}' in command("rehearse", "app.py", "--without", "mark").out


@pytest.fixture
def sent_again(ran, command):
    """The one dead letter, of Suppress at position 3, was sent again mended, and put out at position 10."""
    assert command("dead-letters", "retry", "app.py", "0", "--event", '{"cid": 5}').code == 0
    assert command("run", "app.py", "-q").code == 0
    return ran


def test_a_letter_that_was_sent_again_is_in_an_unchanged_chain_too(sent_again, command) -> None:
    same = {"main": (7, 7, 7, 0, 0, 0), "dead letters": (1, 1, 1, 0, 0, 0)}
    found = told(command)
    assert (counts(found), found.notes) == (same, [])
    found = told(command, "--set", "Suppress.window_s=3.5")
    assert (counts(found), found.notes) == (same, [])


@pytest.mark.parametrize(
    "changed",
    ["without the task", "a new task before it", "code that does not fail"],
)
def test_an_event_that_does_not_fail_is_not_sent_again(sent_again, command, changed: str) -> None:
    path = sent_again.folder / "app.py"
    if changed == "without the task":
        found = told(command, "--without", "Suppress")
    elif changed == "code that does not fail":
        path.write_text(path.read_text().replace("event.cid == 9", "event.cid == 99"))
        found = told(command)
    else:
        path.write_text(
            path.read_text()
            .replace("tasks=[Suppress()", "tasks=[to_eight, Suppress()")
            .replace(
                "app = App(",
                "def to_eight(event: Seen) -> Seen:\n    return event.replace(cid=min(event.cid, 8))\n\n\napp = App(",
            )
        )
        found = told(command)
    rehearsed = [d for d in found.first if d.stream == "main"]
    assert counts(found)["dead letters"] == (1, 0, 0, 1, 0, 0)
    at_10 = [(d.kind, d.recorded["cid"]) for d in rehearsed if d.position == 10]
    assert at_10 == [("gone", 105)]
    assert [d.kind for d in rehearsed if d.position == 3] == ["new"]
    assert found.notes[-1] == "dead letters that were sent again, and that there would not have been: 1"


def test_a_letter_from_before_the_rehearsed_part_is_sent_again(sent_again, command) -> None:
    found = told(command, "--from", "5", "--set", "Suppress.window_s=3.5")
    assert counts(found) == {"main": (5, 5, 5, 0, 0, 0), "dead letters": (0, 0, 0, 0, 0, 0)}
    found = told(command, "--from", "5", "--without", "Suppress")
    # It failed where it did; what is behind the task that is left out has it now.
    assert counts(found)["main"] == (5, 6, 5, 0, 1, 0)
    assert [d.position for d in found.first] == [7]  # the second of two alike
    found = told(command, "--from", "5", "--without", "Suppress", "--without", "mark")
    assert [(d.kind, d.rehearsed["cid"]) for d in found.first if d.position == 10] == [("changed", 5)]


TWO_LETTERS = """
class Split(Task[Seen]):
    def handle(self, event: Seen) -> list[Seen]:
        return [event.replace(cid=60), event.replace(cid=99)]


class Most(Task[Seen]):
    most: int = 50

    def handle(self, event: Seen) -> Seen:
        if event.cid > self.most:
            raise ValueError("too many")
        return event


app = App("two", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Split(), Most()])
"""


@pytest.mark.parametrize(
    ("most", "sent_at_1_and_2", "not_sent"),
    [
        (55, [5, 6], []),  # both are set aside
        (70, [6], ["dead letters that were sent again, and that there would not have been: 1"]),
        (100, [], ["dead letters that were sent again, and that there would not have been: 2"]),
    ],
)
def test_of_two_letters_of_one_position_only_what_fails_is_sent_again(
    project, command, most: int, sent_at_1_and_2: list[int], not_sent: list[str]
) -> None:
    project.write("app.py", TWO_LETTERS)
    project.seen(1)
    assert command("run", "app.py", "-q").code == 0
    for number, cid in (("0", 5), ("1", 6)):
        assert command("dead-letters", "retry", "app.py", number, "--event", f'{{"cid": {cid}}}').code == 0
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--set", f"Most.most={most}")
    gone = [d.recorded["cid"] for d in found.first if d.stream == "main" and d.kind == "gone"]
    assert [cid for cid in (5, 6) if cid not in gone] == sent_at_1_and_2
    assert found.notes == not_sent


@pytest.mark.parametrize("most", [70, 10])
def test_a_letter_of_a_timer_does_not_stand_for_that_of_an_event(project, command, most: int) -> None:
    project.write(
        "app.py",
        """
        from secondpass import timer


        class Due(Task[Seen]):
            most: int = 50

            @timer
            def due(self) -> None:
                raise ValueError("due")

            def handle(self, event: Seen) -> Seen:
                if event.cid > self.most:
                    raise ValueError("too many")
                self.due.at(event.time + 1.0)
                return event

        app = App("due", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Due()])
        """,
    )
    project.events([{"cid": 1, "time": 1.0}, {"cid": 60, "time": 9.0}])
    assert (
        command("run", "app.py", "-q").code == 0
    )  # both letters are of position 1: the timer's, then the event's
    assert command("dead-letters", "retry", "app.py", "1", "--event", '{"cid": 10}').code == 0
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--set", f"Due.most={most}")
    at_2 = [(d.kind, d.recorded["cid"]) for d in found.first if d.position == 2]
    assert at_2 == ([("gone", 10)] if most == 70 else [])
    assert counts(found)["dead letters"][0] == 2


@pytest.mark.parametrize(
    ("without", "gives"),
    [((), "xDyz"), (("y",), "xDz"), (("y", "z"), "xD"), (("x",), "Dyz")],
)
def test_a_task_that_was_added_before_one_that_is_left_out_comes_before_what_is_behind_it(
    project, command, without: tuple[str, ...], gives: str
) -> None:
    project.write(
        "app.py",
        """
        class Named(Event):
            name: str


        class Sign(Task[Named]):
            def handle(self, event: Named) -> Named:
                return event.replace(name=event.name + self.name)


        class D(Sign):
            pass


        app = App("signed", source=JsonLines(HERE / "in.jsonl", Named),
                  tasks=[Sign().options(name="x"), D(), Sign().options(name="y"), Sign().options(name="z")])
        """,
    )
    project.events([{"name": ""}])
    assert command("run", "app.py", "-q").code == 0
    for command_line in (("remove", "app.py", "D"), ("add", "app.py", "D", "--before", "y")):
        assert command("task", *command_line).code == 0
    project.events([{"name": ""}] * 2)
    assert command("run", "app.py", "-q").code == 0
    found = told(command, *[option for name in without for option in ("--without", name)])
    last = [d.rehearsed["name"] for d in found.first if d.stream == "main"][-1:]
    assert last == ([gives] if without else [])
    assert found.notes == []


def test_a_changed_file_is_rehearsed_before_it_runs(ran, command) -> None:
    path = ran.folder / "app.py"
    path.write_text(path.read_text().replace("event.cid == 9", "event.cid == 3").replace("+ 100", "+ 200"))
    found = told(command)
    assert found.changes == ["Suppress: new code", "mark: new code"]
    assert counts(found)["dead letters"] == (1, 2, 0, 1, 2, 0)
    assert "the code that ran is not there any more" in found.notes[0]


def test_another_files_chain_is_rehearsed_over_the_same_log(ran, command) -> None:
    text = (ran.folder / "app.py").read_text()
    (ran.folder / "next.py").write_text(text.replace("return event if was is None else None", "return event"))
    found = told(command, "--code", "next.py")
    assert found.changes == ["Suppress: new code"]
    assert counts(found)["main"] == (6, 9, 6, 0, 3, 0)
    assert (found.repeated, found.notes) == (6, [])  # the code that ran is in the app's own file


def test_a_part_of_the_log_begins_with_the_state_that_there_was(ran, command) -> None:
    found = told(command, "--from", "6", "--to", "9", "--set", "Suppress.window_s=5")
    assert (found.begin, found.end) == (6, 9)
    assert counts(found)["main"] == (2, 1, 1, 1, 0, 0)
    assert told(command, "--from", "6.0", "--to", "9.0", "--set", "Suppress.window_s=5").first == found.first
    assert told(command, "--from", "1970-01-01T00:00:06Z").begin == 6


def test_the_state_at_the_beginning_of_a_part_is_what_it_was_not_what_it_would_have_been(
    project, command
) -> None:
    project.write(
        "app.py",
        """
        class Total(Task[Seen]):
            step: int = 1
            total = value(int, 0)

            def handle(self, event: Seen) -> Seen:
                self.total += self.step
                return event.replace(cid=self.total)

        app = App("total", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Total()])
        """,
    )
    project.seen(*[1] * 8)
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--from", "5", "--set", "Total.step=10")
    assert [(d.recorded["cid"], d.rehearsed["cid"]) for d in found.first] == [(6, 15), (7, 25), (8, 35)]


@pytest.mark.parametrize("snapshot", [True, False])
def test_what_had_expired_at_the_beginning_of_a_part_stays_so(project, command, *, snapshot: bool) -> None:
    project.write("app.py", SUPPRESS)
    project.seen(1, 2, 2, 2, 5)
    assert command("run", "app.py", "-q").code == 0  # that of camera 1 has expired at 3 s
    if snapshot:
        store = project.folder / ".secondpass" / "suppress"
        moment = Moment(store, store / "snapshots")
        moment.copy()
        moment.close()
    project.seen(1, 2, 2, 2, 5, 2, 1)
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--from", "5", "--set", "Suppress.window_s=100")
    assert [(d.kind, d.position) for d in found.first] == []
    assert counts(found)["main"] == (1, 1, 1, 0, 0, 0)


def test_the_first_differences_come_in_the_order_of_the_log_and_are_of_each_stream(project, command) -> None:
    project.write(
        "app.py",
        """
        class Page(Task[Seen]):
            most: int = 100
            pages = output(Seen)

            def handle(self, event: Seen) -> Seen:
                if event.time > self.most:
                    raise ValueError("late")
                if event.time > 30:
                    self.pages.emit(event)
                return event.replace(cid=self.most)

        app = App("page", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Page()])
        """,
    )
    project.seen(*[1] * 50)
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--set", "Page.most=40")
    assert len(found.first) == 20
    assert [d.position for d in found.first] == [*range(14), 41, 41, 42, 42, 43, 43]
    assert [(d.kind, d.stream) for d in found.first[-4:-2]] == [("gone", "pages"), ("new", "dead letters")]


@pytest.fixture
def forgetful(ran, command, monkeypatch: pytest.MonkeyPatch):
    """The same, and two events more, of which only the last two outputs are kept."""
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 1)
    append(ran, '{"cid": 4, "time": 10.0}\n{"cid": 5, "time": 11.0}\n')
    assert command("run", "app.py", "-q").code == 0
    return ran


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_not_kept_any_more_is_compared_with_the_chain_as_it_was(
    forgetful, command, workers: str
) -> None:
    found = told(command, "--set", "Suppress.window_s=5", "--workers", workers)
    assert (found.begin, found.compared_from) == (0, 0)
    assert counts(found) == {"main": (8, 5, 5, 3, 0, 0), "dead letters": (1, 1, 1, 0, 0, 0)}
    assert [(d.kind, d.position) for d in found.first] == [("gone", 5), ("gone", 8), ("gone", 9)]
    assert "of main the store keeps what was put out since position 10 (16 MB)" in found.notes[0]
    found = told(command, "--set", "Suppress.window_s=5", "--from", "4", "--to", "9", "--workers", workers)
    assert counts(found)["main"] == (3, 1, 1, 2, 0, 0)
    assert told(command, "--set", "Suppress.window_s=5", "--from", "10").notes == []


def test_where_the_code_that_ran_is_gone_too_only_what_is_kept_is_compared(forgetful, command) -> None:
    path = forgetful.folder / "app.py"
    path.write_text(path.read_text().replace("+ 100", "+ 200"))
    found = told(command)
    assert (found.begin, found.compared_from) == (0, 10)
    assert counts(found)["main"] == (2, 2, 0, 0, 0, 2)
    assert "it is compared from there on" in found.notes[1]
    done = command("rehearse", "app.py", "--to", "9")
    assert (done.code, done.out) == (2, "")
    assert "the store keeps no outputs of these positions" in done.err


def test_what_does_not_repeat_what_is_kept_is_no_measure(forgetful, command) -> None:
    path = forgetful.folder / "in.jsonl"
    path.write_text(path.read_text().replace('"cid": 5', '"cid": 4'))  # the last one, which was put out
    done = command("rehearse", "app.py", "--set", "Suppress.window_s=5", "--to", "9")
    assert (done.code, done.out) == (1, "")
    assert "position 11 put" in done.err


def test_the_rates_add_up_to_what_was_put_out_and_what_would_have_been(ran, command) -> None:
    found = told(command, "--set", "Suppress.window_s=5")
    for stream in found.streams:
        (rate,) = [rate for rate in found.rates if rate.stream == stream.name]
        assert (sum(rate.recorded), sum(rate.rehearsed)) == (stream.recorded, stream.rehearsed)
    (main,) = [rate for rate in found.rates if rate.stream == "main"]
    assert (found.rates_begin, found.rates_width_s) == (0.0, 1.0)
    assert [i for i, (a, b) in enumerate(zip(main.recorded, main.rehearsed, strict=True)) if a != b] == [
        5,
        8,
        9,
    ]


def test_what_was_set_while_it_ran_is_rehearsed_too(ran, command) -> None:
    append(ran, '{"cid": 4, "time": 10.0}\n')
    path = ran.folder / "app.py"
    path.write_text(path.read_text().replace("tasks=[Suppress()", "tasks=[Suppress(window_s=9.0)"))
    assert command("run", "app.py", "-q").code == 0
    append(ran, '{"cid": 3, "time": 11.0}\n')
    assert command("run", "app.py", "-q").code == 0
    assert told(command).differences == 0
    # The setting of the rehearsal holds throughout.
    assert counts(told(command, "--set", "Suppress.window_s=3"))["main"] == (7, 8, 7, 0, 1, 0)


def test_a_setting_that_was_set_last_is_a_change_too(ran, command) -> None:
    assert command("task", "set", "app.py", "Suppress.window_s=5").code == 0
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--set", "Suppress.window_s=5")
    assert found.changes == ["Suppress.window_s: 5.0 throughout"]
    assert counts(found)["main"] == (6, 3, 3, 3, 0, 0)
    assert told(command, "--set", "Suppress.window_s=6").changes == ["Suppress.window_s: 5.0 -> 6.0"]


@pytest.fixture
def renamed(project, command):
    """Low passes what is below its limit and counts it; a start called it High, half-way through four events."""
    path = project.write(
        "app.py",
        """
        class Low(Task[Seen]):
            limit: int = 5
            total = value(int, 0)

            def handle(self, event: Seen) -> Seen | None:
                self.total += 1
                return event.replace(cid=self.total) if event.cid < self.limit else None

        app = App("low", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Low()])
        """,
    )
    project.seen(1, 20)
    assert command("run", "app.py", "-q").code == 0
    path.write_text(path.read_text().replace("[Low()]", '[Low().options(name="High")]'))
    project.seen(1, 20, 21, 3)
    assert command("run", "app.py", "-q", "--rename", "Low=High").code == 0
    return project


@pytest.mark.parametrize("name", ["Low", "High"])
@pytest.mark.parametrize("begin", ["0", "1", "2"])
def test_a_setting_of_a_renamed_task_holds_before_it_was_renamed_too(
    renamed, command, name: str, begin: str
) -> None:
    found = told(command, "--set", f"{name}.limit=100", "--from", begin)
    assert found.changes == ["High.limit: 5 -> 100"]
    assert [(d.kind, d.position, d.rehearsed["cid"]) for d in found.first] == [
        ("new", position, position + 1) for position in (1, 2) if position >= int(begin)
    ]


@pytest.mark.parametrize("name", ["Low", "High"])
@pytest.mark.parametrize("begin", ["0", "1", "2"])
def test_a_renamed_task_is_left_out_before_it_was_renamed_too(
    renamed, command, name: str, begin: str
) -> None:
    found = told(command, "--without", name, "--from", begin)
    assert found.changes == ["without task High"]
    new = [(d.position, d.rehearsed["cid"]) for d in found.first if d.kind == "new"]
    assert new == [(position, cid) for position, cid in ((1, 20), (2, 21)) if position >= int(begin)]


@pytest.mark.parametrize("file", ["app.py", "other.py"])
@pytest.mark.parametrize("begin", ["0", "1", "2"])
def test_new_code_of_a_renamed_task_runs_before_it_was_renamed_too(
    renamed, command, file: str, begin: str
) -> None:
    text = (renamed.folder / "app.py").read_text()
    (renamed.folder / file).write_text(text.replace("< self.limit", "< self.limit + 100"))
    if file == "app.py" and begin == "1":
        done = command("rehearse", "app.py", "--from", begin)
        assert (done.code, "task Low, which ran at position 0, is not there any more" in done.err) == (
            1,
            True,
        )
        return  # the state there is not known
    found = told(command, "--code", file, "--from", begin)
    assert found.changes == ["High: new code"]
    assert [(d.kind, d.position, d.rehearsed["cid"]) for d in found.first] == [
        ("new", position, position + 1) for position in (1, 2) if position >= int(begin)
    ]


def test_a_renamed_task_is_asked_for_once(renamed, command) -> None:
    done = command("rehearse", "app.py", "--without", "Low", "--set", "High.limit=9")
    assert (done.code, "task High is left out, and so has no settings" in done.err) == (2, True)
    assert told(command, "--without", "Low", "--without", "High").changes == ["without task High"]


def test_a_task_that_was_removed_since_can_be_left_out_where_it_ran(ran, command) -> None:
    assert command("task", "remove", "app.py", "mark").code == 0
    assert command("run", "app.py", "-q").code == 0
    path = ran.folder / "app.py"
    path.write_text(path.read_text().replace("tasks=[Suppress(), mark]", "tasks=[Suppress()]"))
    append(ran, '{"cid": 4, "time": 11.0}\n')
    assert command("run", "app.py", "-q").code == 0
    found = told(command, "--without", "mark")
    assert found.changes == ["without task mark"]
    assert counts(found)["main"] == (7, 7, 1, 0, 0, 6)
    done = command("rehearse", "app.py", "--without", "mark", "--from", "11")
    assert (done.code, "the chain has no task mark; it has: Suppress" in done.err) == (2, True)


def test_code_that_ran_in_the_whole_part_is_no_new_code(ran, command) -> None:
    path = ran.folder / "app.py"
    was, now = path.read_text(), path.read_text().replace("+ 100", "+ 200")
    process = ran.start("run", "app.py", "--follow")
    try:
        append(ran, '{"cid": 4, "time": 10.0}\n')
        while told(command).end < 11:
            assert process.poll() is None, process.communicate()
        path.write_text(now)
        assert command("task", "replace", "app.py", "mark").out.startswith(
            "replace mark: done at position 11"
        )
        append(ran, '{"cid": 5, "time": 12.0}\n')
        while told(command).end < 13:
            assert process.poll() is None, process.communicate()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    found = told(command, "--from", "12")
    assert (found.changes, found.differences) == ([], 0)
    assert told(command).changes == ["mark: new code"]
    path.write_text(was)
    assert told(command, "--to", "11").changes == []


def test_a_difference_where_nothing_was_changed_is_an_error(ran, command) -> None:
    path = ran.folder / "in.jsonl"
    path.write_text(path.read_text().replace('"cid": 2', '"cid": 5', 1))
    done = command("rehearse", "app.py")
    assert done.code == 1
    assert "nothing was changed, and yet it differs" in done.out
    done = command("rehearse", "app.py", "--set", "Suppress.window_s=5")
    assert (done.code, done.out) == (1, "")
    assert "run again it is" in done.err


@pytest.mark.parametrize(("cids", "end"), [((1, 9, 3), 1), ((9, 3), 0)])
def test_a_changed_chain_that_stops_the_app_is_no_chain_without_a_difference(
    project, command, cids: tuple[int, ...], end: int
) -> None:
    project.write(
        "app.py",
        """
        class Most(Task[Seen]):
            most: int = 5

            def handle(self, event: Seen) -> Seen:
                if event.cid > self.most:
                    raise ValueError("too many")
                return event


        class Fragile(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                if event.cid == 9:
                    raise ValueError("nine")
                return event


        app = App("stops", source=JsonLines(HERE / "in.jsonl", Seen),
                  tasks=[Most(), Fragile().options(on_error="stop")])
        """,
    )
    project.seen(*cids)
    assert command("run", "app.py", "-q").code == 0
    done = command("rehearse", "app.py", "--set", "Most.most=20", "--html", "report.html")
    assert done.code == 1
    head = "position 0 to 0" if end else "no position from 0 on"
    assert done.out.splitlines()[0] == f"stops: {head} rehearsed with"
    assert f"no difference before position {end}; there the changed chain stops the app" in done.out
    assert "stopped: ValueError: nine" in done.out
    assert "mend it" not in done.out
    page = " ".join((project.folder / "report.html").read_text().split())
    assert f"from what was put out, until the changed chain stops at position {end}." in page
    done = command("rehearse", "app.py", "--set", "Most.most=20", "--json")
    report = done.document(RehearsalReport)
    assert (done.code, report.end, report.differences) == (1, end, 0)
    assert (report.stopped or "").startswith("ValueError: nine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "Suppress"], "write TASK.SETTING=VALUE"),
        (["--set", "Other.x=1"], "the chain has no task Other; it has: Suppress, mark"),
        (["--set", "Suppress.widow_s=1"], "Suppress has no setting 'widow_s'; its settings: window_s"),
        (["--set", 'Suppress.window_s="long"'], "Suppress(window_s='long')"),
        (["--without", "Other"], "the chain has no task Other"),
        (["--from", "soon"], "soon: write a position"),
        (["--from", "nan"], "nan: write a position"),
        (["--to=-inf"], "-inf: write a position"),
        (["--from", "9", "--to", "3"], "there is nothing in the log from position 9 to 2"),
        (["--from", "10"], "there is nothing in the log from there on: it has positions 0 to 9"),
        (["--from", "1e9"], "there is nothing in the log from there on: it has positions 0 to 9"),
        (["--to", "0"], "there is nothing in the log before position 0"),
        (["--without", "mark", "--set", "mark.x=1"], "task mark is left out, and so has no settings"),
        (["--code", "none.py"], "none.py"),
        (["--code", "."], "is a directory"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(ran, command, arguments: list[str], said: str) -> None:
    done = command("rehearse", "app.py", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(\n", "other.py cannot be imported: it raised SyntaxError"),
        ("1 / 0\n", "other.py cannot be imported: it raised ZeroDivisionError"),
        ("raise SystemExit(3)\n", "other.py cannot be imported: it raised SystemExit"),
        ("x = 1\n", "holds no App"),
        ("from secondpass import App\na = App('a', source=[])\nb = App('b', source=[])\n", "several"),
    ],
)
def test_other_code_that_cannot_be_loaded_is_the_users(ran, command, code: str, said: str) -> None:
    (ran.folder / "other.py").write_text(code)
    done = command("rehearse", "app.py", "--code", "other.py")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "a bug of secondpass" not in done.err


def test_a_report_that_cannot_be_written_is_said_before_the_work(ran, command) -> None:
    done = command("rehearse", "app.py", "--html", "nowhere/report.html")
    assert (done.code, done.out) == (5, "")
    assert done.err == "error: nowhere/report.html cannot be written: there is no folder nowhere\n"


def test_the_live_store_is_only_read(ran, command) -> None:
    def hashes() -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(ran.folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(("-shm", "-wal"))
        }

    before = hashes()
    assert command("rehearse", "app.py", "--set", "Suppress.window_s=5", "--workers", "2").code == 0
    assert hashes() == before


def test_workers_give_the_same(ran, command) -> None:
    options = ("--set", "Suppress.window_s=5", "--json")
    one = json.loads(command("rehearse", "app.py", "--workers", "0", *options).out)
    two = json.loads(command("rehearse", "app.py", "--workers", "2", *options).out)
    for report in (one, two):
        del report["seconds"], report["events_per_second"]
    assert one == two


# ---------------------------------------------------------------- the page


EMPTY = ("meta", "br", "line", "path")


class Page(html.parser.HTMLParser):
    """What a page consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in EMPTY or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def report(ran, command) -> Path:
    append(ran, '{"cid": 4, "time": 20.0}\n')
    command("run", "app.py", "-q")
    done = command("rehearse", "app.py", "--set", "Suppress.window_s=5", "--html", "report.html")
    assert done.code == 0
    assert "the report is in report.html" in done.err
    return ran.folder / "report.html"


def test_the_page_is_whole_and_needs_nothing_beside_it(report: Path) -> None:
    page = Page()
    page.feed(report.read_text())
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe"} & set(names)
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "href", "style", "onclick")]
    assert "url(" not in report.read_text()
    assert names.count("svg") == 2
    assert "prefers-color-scheme: dark" in report.read_text()
    assert "Suppress.window_s: 3.0 -> 5.0" in page.text
    assert "secondpass explain app.py 8" in page.text


def test_what_events_hold_is_no_markup(ran, command) -> None:
    ran.write(
        "named.py",
        """
        class Named(Event):
            name: str

        def keep(event: Named) -> Named | None:
            return None if event.name.startswith("x") else event

        app = App("named", source=JsonLines(HERE / "named.jsonl", Named), tasks=[keep])
        """,
    )
    ran.events([{"name": "<script>alert(1)</script>"}, {"name": "x"}], "named.jsonl")
    assert command("run", "named.py", "-q").code == 0
    assert command("rehearse", "named.py", "--without", "keep", "--html", "report.html").code == 0
    (ran.folder / "named.py").write_text((ran.folder / "named.py").read_text().replace('"x"', '"<"'))
    assert command("rehearse", "named.py", "--html", "report.html").code == 0
    text = (ran.folder / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def browse(page: Path, *options: str) -> str:
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000", *options, page.as_uri()],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page(report: Path) -> None:
    page = Page()
    page.feed(browse(report, "--dump-dom"))
    assert page.open == []
    assert "3 differences" in page.text
    assert [attrs.get("id") for tag, attrs in page.tags if tag == "table" and "id" in attrs] == [
        "streams",
        "first",
    ]
    assert "3 differences from what was put out" in " ".join(page.text.split())
    picture = report.parent / "page.png"
    browse(report, f"--screenshot={picture}", "--window-size=900,1400")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


SEEN = """
<script>
const wide = [...document.querySelectorAll("main, table#streams, figure, svg")]
  .filter(e => e.scrollWidth > e.clientWidth && e.tagName != "svg" || e.getBoundingClientRect().right > innerWidth);
const height = (e) => e.getBoundingClientRect().height;
document.body.dataset.seen = JSON.stringify({
  wide: wide.map(e => e.tagName), scrolls: document.documentElement.scrollWidth > innerWidth,
  ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  letters: Math.min(...[...document.querySelectorAll("svg text")].map(height)),
  curves: [...document.querySelectorAll("svg .curve")].map(e => e.getTotalLength() > 100),
  colours: new Set([...document.querySelectorAll("svg .curve")].map(e => getComputedStyle(e).stroke)).size,
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_in_wide_and_narrow_windows_in_light_and_dark(
    report: Path, *, width: int, dark: bool
) -> None:
    looked = report.with_name("looked.html")
    looked.write_text(report.read_text().replace("</body>", SEEN))
    page = Page()
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    page.feed(browse(looked, "--dump-dom", f"--window-size={width},1000", *options))
    (body,) = [attrs for tag, attrs in page.tags if tag == "body"]
    seen = json.loads(body["data-seen"])
    assert (seen["wide"], seen["scrolls"]) == ([], False)
    assert (seen["ground"] == "rgb(13, 17, 23)") is dark
    assert seen["ground"] != seen["ink"]
    assert seen["letters"] > 10
    assert (seen["curves"], seen["colours"]) == ([True] * 4, 2)
