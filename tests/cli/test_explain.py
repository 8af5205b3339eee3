"""`explain`: why an event became what it became, and when that cannot be told."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from secondpass.cli import text
from secondpass.cli.shapes import ExplainReport

SUPPRESS = """
import limits


class Suppress(Task[Seen]):
    window_s: float = 3.0
    last = table(int, float, ttl_s="window_s")
    taken = value(int, 0)
    pages = output(Seen)

    def handle(self, event: Seen) -> Seen | None:
        limits.look(event)
        was = self.last.get(event.cid)
        self.last[event.cid] = event.time
        self.taken += 1
        if event.cid == 9:
            raise ValueError("nine")
        if event.cid == 8:
            self.pages.emit(event)
            self.count("eights")
            self.log.warning("an eight")
        return event if was is None else None


def twice(event: Seen) -> list[Seen]:
    return [event, event.replace(cid=event.cid + 100)]


class Other(Event):
    name: str


class Elsewhere(Task[Other]):
    def handle(self, event: Other) -> Other:
        return event


app = App(
    "suppress", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Suppress(), twice, Elsewhere()],
    sink=JsonLines(HERE / "out.jsonl"),
)
"""


@pytest.fixture
def ran(project, command):
    """An app that ran: two of camera 1, one dropped; a dead letter, a refused line, an event that pages."""
    project.write("limits.py", "", "").write_text("def look(event):\n    pass\n")
    project.write("app.py", SUPPRESS)
    project.seen(1, 2, 1, 9, 8, 2)
    with (project.folder / "in.jsonl").open("a") as file:
        file.write("no json\n")
    assert command("run", "app.py", "-q").code == 0
    return project


def told(command, *arguments: str) -> ExplainReport:
    done = command("explain", "app.py", "--json", *arguments)
    assert done.code == 0, done.err
    return done.document(ExplainReport)


# ---------------------------------------------------------------- what became of it


def test_a_dropped_event_is_told_with_who_wrote_what_was_read(ran, command) -> None:
    assert command("explain", "app.py", "2").out == (
        "position 2, 2 s: dropped by Suppress\n"
        '{"cid":1,"time":2.0}\n'
        "└── Suppress dropped it\n"
        "    ├── read  last[1]: 0.0, of 0 s\n"
        '    │   └── by position 0: {"cid":1,"time":0.0}\n'
        "    │       └── secondpass explain app.py 0\n"
        "    ├── read  taken: 2\n"
        '    │   └── by position 1: {"cid":2,"time":1.0}\n'
        "    │       └── secondpass explain app.py 1\n"
        "    ├── wrote last[1]: 0.0 -> 2.0\n"
        "    └── wrote taken: 2 -> 3\n"
        "\n"
        "run again from position 0; 4 recorded outputs since there came out the same\n"
    )


def test_a_passed_event_is_told_with_its_outputs_and_what_had_expired(ran, command) -> None:
    found = told(command, "5")
    first, split, *passed_by = found.calls
    (read, _) = first.reads
    assert (read.there, read.expired, read.value, read.by) == (False, True, 1.0, 1)
    assert (first.outcome, split.outcome, len(split.results)) == ("passed", "emitted", 2)
    assert [(c.outcome, c.why, c.path) for c in passed_by] == [
        ("passed by", "type", [0]),
        ("passed by", "type", [1]),
    ]
    assert [(o.stream, o.number, o.event["cid"]) for o in found.outputs] == [("main", 6, 2), ("main", 7, 102)]
    assert found.ended == "output 6 of main, output 7 of main"


def test_a_dead_letter_is_told_with_its_error_and_nothing_written(ran, command) -> None:
    found = told(command, "3")
    (call,) = found.calls
    assert (call.outcome, call.error, call.writes) == ("failed", "ValueError: nine", [])
    assert 'raise ValueError("nine")' in (call.traceback or "")
    assert [(s.number, s.task) for s in found.set_aside] == [(0, "Suppress")]
    out = command("explain", "app.py", "3").out
    assert "Suppress failed: ValueError: nine" in out
    assert 'raise ValueError("nine")' in out


def test_what_was_no_event_is_told_with_the_reason(ran, command) -> None:
    found = told(command, "6")
    assert (found.kind, found.raw, found.calls) == ("refused", "no json", [])
    assert found.ended.startswith("dead letter 1: JSON is malformed")
    assert "└── refused: JSON is malformed" in command("explain", "app.py", "6").out


def test_named_outputs_counters_and_logs_are_told(ran, command) -> None:
    call = told(command, "4").calls[0]
    assert (call.counts, call.logged) == ({"eights": 1}, ["WARNING: an eight"])
    assert call.emitted == [["pages", {"cid": 8, "time": 4.0}]]


def test_the_writers_are_explained_too_as_far_back_as_is_asked_for(ran, command) -> None:
    found = told(command, "5", "--back", "2")
    assert [e.position for e in found.earlier] == [4, 1, 2, 0]
    # A dead letter wrote nothing: the event before it did.
    assert [r.by for r in found.earlier[0].calls[0].reads if r.name == "taken"] == [2]
    out = command("explain", "app.py", "5", "--back", "1").out
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("position")] == [
        "position 5",
        "position 4",
        "position 1",
    ]


def test_a_command_is_told_in_words_and_as_the_one_who_wrote(ran, command) -> None:
    assert command("task", "set", "app.py", "Suppress", "window_s=9", "--reason", "too few").code == 0
    assert command("task", "drop", "app.py", "Suppress", "--yes").code == 0
    command(
        "run", "app.py", "-q"
    )  # a setting is made ready beside the events, so it comes where there are none
    with (ran.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 1, "time": 7.0}\n')
    command("run", "app.py", "-q")
    out = command("explain", "app.py", "7").out
    assert out.startswith(
        "position 7, 5 s: a command: the chain from here on is Suppress -> twice -> Elsewhere\n"
    )
    assert "set Suppress: window_s 3.0 -> 9.0\n  by   " in out
    assert "\n  why  too few\n" in out
    # Of a cell that is not there nobody is named from before a snapshot, and a command takes one.
    shutil.rmtree(ran.folder / ".secondpass" / "suppress" / "snapshots")
    read = told(command, "9").calls[0].reads[1]
    assert (read.name, read.value, read.by, read.by_kind) == ("taken", 0, 8, "command")
    assert "by position 8: drop Suppress\n" in command("explain", "app.py", "9").out


def test_what_was_written_at_the_same_position_is_told_so(project, command) -> None:
    project.write(
        "app.py",
        """
        def twice(event: Seen) -> list[Seen]:
            return [event, event.replace(cid=2)]

        class Count(Task[Seen]):
            n = value(int, 0)

            def handle(self, event: Seen) -> Seen:
                self.n += 1
                return event

        app = App("twice", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[twice, Count()])
        """,
    )
    project.seen(1, 1)
    assert command("run", "app.py", "-q").code == 0
    assert [c.reads[0].by for c in told(command, "1").calls[1:]] == [0, 1]
    out = command("explain", "app.py", "1").out
    assert out.count("└── by position 0: ") == out.count("└── by an earlier call at this position\n") == 1


def test_outputs_that_are_not_kept_any_more_are_said_not_to_be_compared(
    ran, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 1)
    with (ran.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 6, "time": 60.0}\n')
    command("run", "app.py", "-q")
    found = told(command, "7")
    assert (found.compared, found.forgotten) == (3, 8)
    assert "3 recorded outputs since there came out the same; 8 not compared" in (
        command("explain", "app.py", "7").out
    )


def test_a_retry_is_told_as_a_record_of_its_own(ran, command) -> None:
    assert command("dead-letters", "retry", "app.py", "0", "--event", '{"cid": 5}').code == 0
    command("run", "app.py", "-q")
    found = told(command, "7")
    assert (found.kind, found.event["cid"]) == ("retry", 5)
    assert found.calls[0].task == "Suppress"
    assert command("explain", "app.py", "7").out.splitlines()[1].startswith('sent again: {"cid":5')


# ---------------------------------------------------------------- which event


def test_the_event_of_an_output_is_found_by_its_number(ran, command) -> None:
    assert told(command, "--output", "3").position == 1
    assert told(command, "--output", "0", "--stream", "pages").position == 4


def test_events_are_found_by_their_fields(ran, command) -> None:
    done = command("explain", "app.py", "--where", "cid=1")
    assert done.out.startswith("position 2,")
    assert "2 events have cid=1; this is the last, before it 0" in done.err
    assert command("explain", "app.py", "--where", "cid=1", "--where", "time=0.0").out.startswith(
        "position 0,"
    )


@pytest.mark.parametrize(
    ("where", "position"),
    [
        ("time=2", 2),
        ("time=2.0", 2),
        ("ok=true", 1),
        ("ok=True", 1),
        ("ok=1", None),
        ("name=null", 0),
        ("name=a=b", 2),
        ('name="a=b"', 2),
        ("name=3", 3),
        ("tags=[1,2]", 3),
        ("tags=[2,1]", None),
        ("level=loud", 1),
    ],
)
def test_a_field_is_found_by_what_one_writes_for_its_value(
    project, command, where: str, position: int | None
) -> None:
    project.write(
        "app.py",
        """
        import enum

        class Level(enum.Enum):
            QUIET = "quiet"
            LOUD = "loud"

        class Said(Event):
            time: float
            ok: bool = False
            name: str | None = ""
            tags: tuple[int, ...] = ()
            level: Level = Level.QUIET

        app = App("said", source=JsonLines(HERE / "in.jsonl", Said))
        """,
    )
    project.events(
        [
            {"time": 0.0, "name": None},
            {"time": 1.0, "ok": True, "level": "loud"},
            {"time": 2.0, "name": "a=b"},
            {"time": 3.0, "name": "3", "tags": [1, 2]},
        ],
        "in.jsonl",
    )
    assert command("run", "app.py", "-q").code == 0
    done = command("explain", "app.py", "--where", where)
    assert done.out.startswith(f"position {position},") if position is not None else done.code == 2, done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99"], "position 99 is not in the log: it has positions 0 to 6"),
        ([], "say which event"),
        (["1", "--output", "1"], "say which event"),
        (["--output", "99"], "there is no output 99 of main: the store keeps 0 to 7"),
        (["--where", "cid=77"], "no event has cid=77"),
        (["--where", "cid=1", "--where", "time=1"], "no event has cid=1 and time=1"),
        (["--where", "cdi=1"], "no event has a field cdi; there are: cid, time"),
        (["--where", "cid"], "write FIELD=VALUE"),
        (["1", "--stream", "pages"], "--stream names the stream of --output N"),
    ],
)
def test_an_event_that_is_not_there_is_said(ran, command, arguments: list[str], said: str) -> None:
    done = command("explain", "app.py", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


# ---------------------------------------------------------------- when it cannot be told


def test_changed_code_is_named_instead_of_explaining(ran, command) -> None:
    path = ran.folder / "app.py"
    path.write_text(path.read_text().replace("event if was is None", "event if was is not None"))
    done = command("explain", "app.py", "2")
    assert (done.code, done.out) == (1, "")
    assert "the code of task Suppress has changed since position 0" in done.err


def test_an_output_that_comes_out_differently_is_told_instead_of_explaining(ran, command) -> None:
    (ran.folder / "limits.py").write_text(
        "def look(event):\n    if event.cid == 2: raise LookupError('no')\n"
    )
    done = command("explain", "app.py", "4")
    assert (done.code, done.out) == (1, "")
    assert "dead letter 0: it was position 3, task Suppress: ValueError: nine" in done.err
    assert "run again it is position 1, task Suppress: LookupError: no" in done.err
    assert command("explain", "app.py", "0").code == 0  # up to there it is as it was


def test_an_input_that_was_edited_is_noticed_by_what_comes_out(ran, command) -> None:
    path = ran.folder / "in.jsonl"
    path.write_text(path.read_text().replace('"cid": 2', '"cid": 3', 1))
    done = command("explain", "app.py", "2")
    assert done.code == 1
    assert (
        'output 2 of main was {"cid":2,"time":1.0} at position 1; run again it is {"cid":3,"time":1.0}'
        in done.err
    )


@pytest.mark.parametrize(
    ("line", "position", "said"),
    [
        (
            1,
            1,
            'position 1 put {"cid":2,"time":1.0} out on main (number 2), which it does not do when it is run',
        ),
        (3, 3, "position 3 was set aside (dead letter 0); run again it is not"),
    ],
)
def test_what_does_not_come_out_any_more_is_noticed(
    ran, command, line: int, position: int, said: str
) -> None:
    path = ran.folder / "in.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace('"cid": 2', '"cid": 1').replace('"cid": 9', '"cid": 1')
    path.write_text("".join(lines))
    done = command("explain", "app.py", str(position))
    assert (done.code, done.out) == (1, "")
    assert said in done.err


@pytest.mark.parametrize("keep", [0, 2])
def test_an_input_that_is_gone_is_told(ran, command, keep: int) -> None:
    path = ran.folder / "in.jsonl"
    if keep:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:keep]))
    else:
        path.unlink()
    done = command("explain", "app.py", "4")
    assert (done.code, done.out) == (4, "")
    assert "no such file" in done.err or f"at position {keep} there are no more records" in done.err


def test_another_setting_in_the_file_since_is_no_obstacle(ran, command) -> None:
    path = ran.folder / "app.py"
    path.write_text(path.read_text().replace("tasks=[Suppress()", "tasks=[Suppress(window_s=100.0)"))
    assert told(command, "5").calls[0].reads[0].expired
    with (ran.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 2, "time": 50.0}\n')
    command("run", "app.py", "-q")
    assert told(command, "7").calls[0].reads[0].by == 5
    assert told(command, "5").calls[0].reads[0].expired  # as it ran then


def test_nothing_is_written_anywhere(ran, command) -> None:
    def hashes() -> dict[str, str]:
        return {
            str(path.relative_to(ran.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(ran.folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(("-shm", "-wal"))
        }

    before = hashes()
    assert command("explain", "app.py", "5", "--back", "3").code == 0
    assert hashes() == before


def test_a_narrow_terminal_cuts_no_command(ran, command, monkeypatch) -> None:
    monkeypatch.setattr(text, "width", lambda: 24)
    lines = command("explain", "./app.py", "2").out.splitlines()
    assert any(line.endswith("└── secondpass explain ./app.py 0") for line in lines)
    assert any(line.endswith("…") for line in lines)


def test_the_numbers_of_the_text_are_those_of_the_document(ran, command) -> None:
    found = json.loads(command("explain", "app.py", "2", "--json").out)
    assert found["calls"][0]["reads"][0] == {
        "name": "last",
        "key": 1,
        "there": True,
        "value": 0.0,
        "written": 0.0,
        "expired": False,
        "by": 0,
        "by_kind": "event",
        "by_event": {"cid": 1, "time": 0.0},
        "unknown": None,
    }
