"""`secondpass schedule`: what waits for what, and how many events can run at once."""

import itertools
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from secondpass.cli.shapes import ScheduleReport

NEAR = """
class Near(Task[Seen]):
    last = table(int, float)

    def keys(self, event: Seen) -> tuple[int, ...]:
        return (event.cid - 1, event.cid, event.cid + 1)

    def handle(self, event: Seen) -> Seen:
        raise AssertionError("the task itself is not called")
"""


def app(tasks: str) -> str:
    return f'\n\napp = App("ordered", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[{tasks}])\n'


@pytest.fixture
def ordered(project, command):
    """The report about an app with these tasks and events of these cameras."""

    def report(body: str, tasks: str, *cids: int, options: tuple[str, ...] = ()) -> ScheduleReport:
        project.write("app.py", body, app(tasks))
        project.seen(*cids)
        done = command("schedule", "app.py", "--json", *options)
        assert done.code == 0, done.err
        return done.document(ScheduleReport)

    return report


def waits(report: ScheduleReport) -> list[list[int]]:
    return [event.waits_for for event in report.events]


def steps(report: ScheduleReport) -> list[int]:
    return [event.step for event in report.events]


# ---------------------------------------------------------------- the order


def test_an_event_waits_for_the_last_one_before_it_with_one_of_its_keys(ordered) -> None:
    found = ordered(NEAR, "Near()", 1, 5, 2, 9, 4, 1)
    assert [event.keys for event in found.events] == [[c - 1, c, c + 1] for c in (1, 5, 2, 9, 4, 1)]
    assert waits(found) == [[], [], [0], [], [1, 2], [0, 2]]
    assert steps(found) == [1, 1, 2, 1, 3, 3]


def test_the_figures_follow_from_the_longest_chain(ordered) -> None:
    found = ordered(NEAR, "Near()", 1, 5, 2, 9, 4, 1)
    assert (found.steps, found.width) == (3, 2.0)
    assert found.at_once == {"2": 2.0, "8": 2.0, "32": 2.0}
    assert len(found.chain) == found.steps
    assert all(earlier in found.events[later].waits_for for earlier, later in itertools.pairwise(found.chain))


def test_events_that_share_no_key_run_all_at_once(ordered) -> None:
    found = ordered(NEAR, "Near()", *range(0, 90, 3))
    assert len(found.events) == 24
    assert (found.steps, found.width, found.at_once["8"], found.at_once["32"]) == (1, 24.0, 8.0, 24.0)
    assert found.advice == []


def test_events_without_a_key_wait_for_nothing(ordered) -> None:
    body = NEAR.replace("return (event.cid - 1, event.cid, event.cid + 1)", "return ()")
    found = ordered(body, "Near()", 1, 1, 1)
    assert waits(found) == [[], [], []]
    assert found.events[0].keys == []


def test_state_without_keys_is_one_chain_and_the_advice_is_to_write_keys(ordered) -> None:
    body = """
    class Count(Task[Seen]):
        seen = value(int, 0)

        def handle(self, event: Seen) -> Seen:
            return event
    """
    found = ordered(body, "Count()", 1, 2, 3)
    assert waits(found) == [[], [0], [1]]
    assert [event.keys for event in found.events] == [None, None, None]
    assert (found.steps, found.width) == (3, 1.0)
    assert "no keys()" in found.advice[0]


def test_all_waits_for_all_before_and_all_after_wait_for_it(ordered) -> None:
    body = NEAR.replace("return (", "from secondpass import ALL\n        return ALL if event.cid == 0 else (")
    found = ordered(body, "Near()", 10, 20, 0, 30, 10)
    assert waits(found) == [[], [], [0, 1], [2], [2]]
    assert found.events[2].keys is None
    assert found.events[2].error is None
    assert "ALL for 1 event:" in found.advice[0]


def test_an_event_at_which_keys_raises_waits_for_all_and_says_why(ordered) -> None:
    body = NEAR.replace("return (", 'if event.cid == 7: raise LookupError("no seven")\n        return (')
    found = ordered(body, "Near()", 10, 20, 7, 30)
    assert waits(found) == [[], [], [0, 1], [2]]
    assert (found.events[2].keys, found.events[2].error) == (None, "LookupError: no seven")
    assert "keys() raised at 1 event (LookupError: no seven)" in found.advice[0]


def test_one_key_in_most_events_is_named_in_the_advice(ordered) -> None:
    found = ordered(NEAR, "Near()", *[7] * 10)
    assert found.width == 1.0
    assert "is in 10 of 10 events" in found.advice[0]


# ---------------------------------------------------------------- which task, which events

CHAIN = (
    """
class Odd(Task[Seen]):
    def handle(self, event: Seen) -> Seen | None:
        return event if event.cid % 2 else None


class Twice(Task[Seen]):
    def handle(self, event: Seen) -> list[Seen]:
        return [event, event.replace(cid=event.cid + 100)]


class Other(Event):
    cid: int


class Serial(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        return event


class Others(Task[Other]):
    known = table(int, int)

    def handle(self, event: Other) -> Other:
        return event
"""
    + NEAR
)


def test_the_first_task_with_keys_is_taken_and_sees_what_the_tasks_before_pass(ordered) -> None:
    found = ordered(CHAIN, "Serial(), Odd(), Twice(), Near()", 1, 2, 3, 4, 5)
    assert found.task == "Near"
    assert [(e.position, e.path) for e in found.events] == [(p, [i]) for p in (0, 2, 4) for i in (0, 1)]
    assert [e.keys[1] for e in found.events if e.keys] == [1, 101, 3, 103, 5, 105]


def test_a_task_is_chosen_by_its_name(ordered) -> None:
    assert ordered(CHAIN, "Near(), Serial()", 1, 2).task == "Near"
    body = CHAIN.replace('raise AssertionError("the task itself is not called")', "return event")
    found = ordered(body, "Near(), Serial()", 1, 2, options=("--task", "Serial"))
    assert (found.task, found.steps) == ("Serial", 2)


def test_events_that_pass_a_task_by_are_not_its_events(ordered) -> None:
    found = ordered(CHAIN, "Others()", 1, 2)
    assert (found.events, found.steps, found.width) == ([], 0, 0.0)


def test_the_limit_counts_events_that_reach_the_task(ordered) -> None:
    found = ordered(CHAIN, "Odd(), Near()", *range(400), options=("--limit", "50"))
    assert [e.position for e in found.events] == list(range(1, 100, 2))


def test_lines_that_are_no_events_take_a_position_and_no_row(project, command) -> None:
    project.write("app.py", NEAR, app("Near()"))
    project.events([{"cid": 1, "time": 0.0}, {"cid": "x", "time": 1.0}, {"cid": 1, "time": 2.0}])
    found = command("schedule", "app.py", "--json").document(ScheduleReport)
    assert [e.position for e in found.events] == [0, 2]


def test_keys_may_use_what_setup_has_made(ordered) -> None:
    body = NEAR.replace("return (event.cid - 1, event.cid, event.cid + 1)", "return (self.group,)").replace(
        "    def keys", "    def setup(self) -> None:\n        self.group = 42\n\n    def keys"
    )
    assert [e.keys for e in ordered(body, "Near()", 1, 2).events] == [[42], [42]]


def test_nothing_is_stored_or_put_out(first, command) -> None:
    before = {path.name for path in first.folder.iterdir()}
    assert command("schedule", "first.py").code == 0
    assert {path.name for path in first.folder.iterdir()} - before <= {"__pycache__"}


# ---------------------------------------------------------------- to read


def test_each_event_has_a_row_with_its_mark_in_the_column_of_its_step(first, command) -> None:
    done = command("schedule", "first.py")
    lines = done.out.splitlines()
    assert lines[0].startswith("First: 6 events in 3 steps")
    assert lines[2].split() == ["position", "keys", "waits", "for", "1", "2", "3"]
    column = {step: lines[2].index(f" {step}") + 1 for step in (1, 2, 3)}
    rows = lines[3:9]
    wanted = [
        (0, "1", "-", 1),
        (1, "2", "-", 1),
        (2, "1", "0", 2),
        (3, "3", "-", 1),
        (4, "2", "1", 2),
        (5, "1", "2", 3),
    ]
    for row, (position, keys, waited, step) in zip(rows, wanted, strict=True):
        assert row.split()[:3] == [str(position), keys, waited]
        assert row[column[step]] in "●○"
        assert len(row.rstrip()) == column[step] + 1
    assert [row.split()[-1] for row in rows] == ["●", "○", "●", "○", "○", "●"]
    assert lines[10].split() == ["at", "once", "3", "2", "1"]
    assert "at most 2.0 times with 2, 2.0 times with 8, 2.0 times with 32 workers" in done.out


def test_the_picture_fits_a_terminal_however_many_steps_there_are(first) -> None:
    first.seen(*[5] * 200)
    for limit in ("24", "40", "200"):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "secondpass", "schedule", "first.py", "--limit", limit],
            cwd=first.folder,
            env=first.environment() | {"COLUMNS": "80", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(theirs)
            said = b""
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:
                    break
                if not part:
                    break
                said += part
        os.close(ours)
        chart = said.decode().split("events  ")[0].splitlines()
        assert process.returncode == 0
        assert max(map(len, chart[2:])) <= 80
        assert sum("●" in line for line in chart) == min(int(limit), 60)
        assert "…" not in "".join(chart), "no mark is cut away"


def test_events_beyond_what_is_drawn_count_in_the_figures(first, command) -> None:
    first.seen(*range(100))
    done = command("schedule", "first.py", "--limit", "100")
    assert "events  100 (40 not shown)" in done.out
    assert "100.0: events / steps" in done.out


# ---------------------------------------------------------------- the picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text())


def test_the_svg_has_a_box_for_each_event_and_an_arrow_for_each_wait(project, command) -> None:
    project.write("app.py", NEAR, app("Near()"))
    project.seen(1, 5, 2, 9, 4, 1)
    assert command("schedule", "app.py", "--svg", "order.svg").code == 0
    svg = drawn(project.folder / "order.svg")
    places = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "place"]
    assert sorted(places) == ["0", "1", "2", "3", "4", "5"]
    columns = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "step"]
    assert columns == ["step 1", "step 2", "step 3"]
    arrows = [path for path in svg.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(arrows) == 4
    assert sum("hot" in (path.get("class") or "") for path in arrows) == 2


def test_what_an_arrow_says_already_is_not_drawn_again(project, command) -> None:
    project.write("app.py", NEAR, app("Near()"))
    project.seen(
        1, 2, 2, 0
    )  # the last waits for the first by key 0 and for the second by key 1, which waits for it
    found = command("schedule", "app.py", "--svg", "order.svg", "--json").document(ScheduleReport)
    svg = drawn(project.folder / "order.svg")
    assert sum(len(event.waits_for) for event in found.events) == 4
    assert len([path for path in svg.iter(f"{SVG}path") if path.get("marker-end")]) == 3


def test_the_svg_needs_nothing_beside_it_and_keeps_what_keys_hold_as_text(project, command) -> None:
    body = (
        NEAR.replace("int, float", "str, float")
        .replace("return (event.cid - 1, event.cid, event.cid + 1)", 'return ("<script>&\\x1b",)')
        .replace("tuple[int, ...]", "tuple[str, ...]")
    )
    project.write("app.py", body, app("Near()"))
    project.seen(1, 2)
    assert command("schedule", "app.py", "--svg", "order.svg").code == 0
    text = (project.folder / "order.svg").read_text()
    drawn(project.folder / "order.svg")
    assert "<script" not in text
    assert "href" not in text
    assert "@import" not in text
    assert text.count("://") == 1, "only the namespace"
    assert "prefers-color-scheme: dark" in text


def test_no_two_boxes_of_the_svg_lie_on_each_other(project, command) -> None:
    project.write("app.py", NEAR, app("Near()"))
    project.seen(*[n * n % 23 for n in range(60)])
    assert command("schedule", "app.py", "--limit", "60", "--svg", "order.svg").code == 0
    svg = drawn(project.folder / "order.svg")
    boxes = [
        (float(r.attrib["x"]), float(r.attrib["y"]), float(r.attrib["width"]), float(r.attrib["height"]))
        for r in svg.iter(f"{SVG}rect")
        if r.get("class") == "box"
    ]
    assert len(boxes) == 60
    for i, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, _, _ in boxes[i + 1 :]:
            assert abs(x - other_x) >= w or abs(y - other_y) >= h


def test_the_picture_in_the_docs_is_what_the_command_draws(root: Path, project, command) -> None:
    page = root / "docs" / "explanation" / "parallel.md"
    shown = re.search(r"^```python file=cameras.py\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert shown is not None
    (project.folder / "cameras.py").write_text(shown[1])
    assert command("schedule", "cameras.py", "--svg", "parallel.svg").code == 0
    drawn_now = (project.folder / "parallel.svg").read_text()
    assert drawn_now == page.with_suffix(".svg").read_text(), (
        "docs/explanation/parallel.svg is out of date: the page says how it is made"
    )


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        ("Odd()", (), "no task of ordered has state: their events wait for nothing"),
        ("", (), "no task of ordered has state"),
        ("Odd(), Near()", ("--task", "Odd"), "Odd has no state: its events wait for nothing"),
        ("Near()", ("--task", "Far"), "no such task; its tasks: Near"),
        ("Near()", ("--limit", "0"), "0 is not in the range"),
    ],
)
def test_what_has_no_order_is_refused_with_the_reason(project, command, tasks, options, said) -> None:
    project.write("app.py", CHAIN, app(tasks))
    project.seen(1, 2)
    done = command("schedule", "app.py", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_keys_that_are_none_stop_it_as_they_stop_the_app(project, command) -> None:
    body = NEAR.replace("return (event.cid - 1, event.cid, event.cid + 1)", "return event.cid")
    project.write("app.py", body.replace("-> tuple[int, ...]", "-> int"), app("Near()"))
    project.seen(4)
    done = command("schedule", "app.py")
    assert done.code == 3
    assert "Near.keys returned 4" in done.err
    assert "position 0" in done.err


@pytest.mark.parametrize("tasks", ["Broken()", "Broken(), Near()"])
def test_a_setup_that_raises_is_told_as_such(project, command, tasks) -> None:
    body = (
        NEAR
        + """

class Broken(Task[Seen]):
    total = value(int, 0)

    def setup(self) -> None:
        raise FileNotFoundError("no model.onnx")

    def handle(self, event: Seen) -> Seen:
        return event
"""
    )
    project.write("app.py", body, app(tasks))
    project.seen(1)
    done = command("schedule", "app.py")
    assert done.code == 3
    assert "setup() failed: FileNotFoundError: no model.onnx" in done.err


def test_a_task_before_it_that_stops_the_app_at_once_is_the_error(project, command) -> None:
    body = CHAIN.replace("return event if event.cid % 2 else None", 'raise ValueError("no")')
    project.write("app.py", body, app('Odd().options(on_error="stop"), Near()'))
    project.seen(1)
    done = command("schedule", "app.py")
    assert done.code == 3
    assert "ValueError: no" in done.err


def test_no_event_at_all_is_said(project, command) -> None:
    project.write("app.py", NEAR, app("Near()"))
    project.events([])
    done = command("schedule", "app.py", "--svg", "order.svg")
    assert done.code == 0
    assert "reached it" in done.out
    drawn(project.folder / "order.svg")


def test_a_picture_that_cannot_be_written_is_an_output_error(first, command) -> None:
    done = command("schedule", "first.py", "--svg", "nowhere/order.svg")
    assert done.code == 5
    assert "cannot be written: No such file or directory" in done.err


def test_standard_input_is_not_taken(project, command) -> None:
    project.write("app.py", NEAR, '\n\napp = App("piped", source=JsonLines("-", Seen), tasks=[Near()])\n')
    done = command("schedule", "app.py")
    assert done.code == 2
    assert "give a file" in done.err
