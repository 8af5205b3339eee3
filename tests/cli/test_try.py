"""`secondpass try`: an app in memory, printed."""

import json

import pytest

from secondpass.cli.shapes import TryLine

MIXED = """
class Sort(Task[Seen]):
    even = output(Seen)

    def handle(self, event: Seen) -> Seen | None:
        if event.cid == 13:
            raise ValueError("unlucky")
        if event.cid % 2:
            return event
        self.even.emit(event)
        return None


app = App("sort", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Sort()],
          sink=JsonLines(HERE / "odd.jsonl"), sinks={"even": JsonLines(HERE / "even.jsonl")})
"""


@pytest.fixture
def mixed(project):
    project.write("sort.py", MIXED)
    project.seen(1, 2, 13, 4, 5)
    return project


def test_what_the_chain_passes_goes_to_standard_output_as_json_lines(mixed, command) -> None:
    done = command("try", "sort.py")
    assert done.code == 0
    assert [json.loads(line)["cid"] for line in done.out.splitlines()] == [1, 5]


def test_named_outputs_and_the_summary_go_to_standard_error(mixed, command) -> None:
    done = command("try", "sort.py")
    assert 'even: {"cid":2,"time":1.0}' in done.err
    assert "sort: 5 events in" in done.err
    assert "even: 2 outputs" in done.err


def test_another_stream_can_have_standard_output(mixed, command) -> None:
    done = command("try", "sort.py", "--stream", "even")
    assert [json.loads(line)["cid"] for line in done.out.splitlines()] == [2, 4]


def test_an_unknown_stream_is_refused_with_those_there_are(mixed, command) -> None:
    done = command("try", "sort.py", "--stream", "evne")
    assert done.code == 2
    assert "main, even" in done.err


def test_neither_a_store_is_made_nor_a_sink_touched(mixed, command) -> None:
    before = sorted(p.name for p in mixed.folder.iterdir() if p.name != "__pycache__")
    command("try", "sort.py")
    assert sorted(p.name for p in mixed.folder.iterdir() if p.name != "__pycache__") == before


def test_a_set_aside_event_is_shown_with_its_error_and_the_users_line(mixed, command) -> None:
    done = command("try", "sort.py")
    assert "set aside: ValueError: unlucky\n  at task Sort, position 2, " in done.err
    assert 'raise ValueError("unlucky")' in done.err
    assert "1 event set aside" in done.err


def test_show_prints_so_many_of_each_stream_and_counts_the_rest(mixed, command) -> None:
    done = command("try", "sort.py", "--show", "1")
    assert [json.loads(line)["cid"] for line in done.out.splitlines()] == [1]
    assert done.err.count("even: {") == 1
    assert "main: 2 outputs (1 not shown: --show 2)" in done.err


def test_a_limit_takes_so_many_events(mixed, command) -> None:
    done = command("try", "sort.py", "--limit", "1", "--quiet")
    assert (done.out, done.err) == ('{"cid":1,"time":0.0}\n', "")


def test_json_prints_outputs_dead_letters_and_the_summary_as_lines(mixed, command) -> None:
    done = command("try", "sort.py", "--json")
    lines = done.lines(TryLine)
    assert [(x.stream, x.event["cid"]) for x in lines if x.stream] == [
        ("main", 1),
        ("main", 5),
        ("even", 2),
        ("even", 4),
    ]
    assert [x.dead_letter.error for x in lines if x.dead_letter] == ["ValueError: unlucky"]
    assert lines[-1].summary.events == 5
    assert done.err == ""
