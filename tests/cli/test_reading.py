"""`status`, `outputs`, `state` and `doctor`: what a store says, without the app's code."""

import json
import re
import signal

import pytest

from secondpass.cli.doctor import file_system
from secondpass.cli.shapes import Cell, DoctorReport, OutputLine, StateReport, StatusReport, TaskExport
from secondpass.store.lock import StoreLock

KEEPING = """
class Kept(Event):
    cid: int
    name: str


class Keep(Task[Seen]):
    total = value(int, 0)
    last = table(int, float)
    names = table(tuple[int, str], list[str])
    fading = table(str, float, ttl_s=2.0)
    pages = output(Kept)

    def handle(self, event: Seen) -> Seen:
        self.total += event.cid
        self.last[event.cid] = event.time
        self.names[event.cid, "x"] = [f"camera {event.cid}"]
        self.fading[f"{event.cid}"] = event.time
        self.pages.emit(Kept(cid=event.cid, name="é"))
        return event


app = App("keeping", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Keep()], sink=JsonLines(HERE / "out.jsonl"))
"""


@pytest.fixture
def kept(project, command):
    """An app that ran over three events; its file is broken since, so whoever imports it fails."""
    path = project.write("keeping.py", KEEPING)
    project.seen(5, 3, 4)
    assert command("run", "keeping.py", "-q").code == 0
    path.write_text("raise SystemExit('imported')\n")
    return project


RECENT = """
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Track:
    cid: int
    times: deque[float] = field(default_factory=deque)


class Recent(Task[Seen]):
    times = table(int, deque[float], factory=lambda: deque(maxlen=2))
    tracks = table(int, Track)
    all = value(tuple[int, dict[str, list[deque[int]]]] | None, None)

    def handle(self, event: Seen) -> None:
        times = self.times[event.cid]
        times.append(event.time)
        self.times[event.cid] = times
        self.tracks[event.cid] = Track(event.cid, deque(times))
        self.all = (len(times), {"x": [deque([event.cid]), deque()]})


app = App("recent", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Recent()])
"""


# ---------------------------------------------------------------- finding the store


@pytest.mark.parametrize(
    "named",
    [
        [],
        ["keeping.py"],
        ["./keeping.py:app"],
        ["keeping"],
        ["keeping:app"],
        ["--store", ".secondpass/keeping"],
    ],
)
def test_a_store_is_found_by_everything_that_names_its_app(kept, command, named: list[str]) -> None:
    report = command("status", *named, "--json").document(StatusReport)
    assert [s.app for s in report.stores] == ["keeping"]


def test_a_store_is_found_beside_the_apps_file_from_elsewhere(kept, command, monkeypatch, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert command("outputs", "../keeping.py", "--limit", "1").out == '{"cid":5,"time":0.0}\n'


def test_among_several_stores_one_has_to_be_named(kept, command) -> None:
    kept.write("other.py", 'app = App("other", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[])\n')
    command("run", "other.py", "-q")
    done = command("outputs")
    assert done.code == 2
    assert "--store .secondpass/keeping" in done.err
    assert "--store .secondpass/other" in done.err
    assert len(command("outputs", "other.py").out.splitlines()) == 3
    assert command("outputs", "keeping.py", "--limit", "1").out == '{"cid":5,"time":0.0}\n'


def test_where_there_is_no_store_the_way_to_make_one_is_told(project, command) -> None:
    for arguments in (["status"], ["outputs"], ["dead-letters", "list"], ["state", "ls"]):
        done = command(*arguments)
        assert done.code == 2
        assert "`secondpass run APP` makes one" in done.err


def test_an_app_without_a_store_is_told_from_those_that_have_one(kept, command) -> None:
    kept.write("never_run.py", "")
    done = command("status", "never_run.py")
    assert done.code == 2
    assert "no store in .secondpass belongs to never_run.py" in done.err
    assert "--store .secondpass/keeping" in done.err


# ---------------------------------------------------------------- status


def test_status_tells_where_an_app_stands(kept, command) -> None:
    done = command("status", "keeping.py")
    assert re.search(r"^  state +at rest$", done.out, re.MULTILINE)
    assert re.search(r"^  events +3$", done.out, re.MULTILINE)
    assert re.search(r"^  source +in.jsonl: all \d+ B read$", done.out, re.MULTILINE)
    assert re.search(r"^Keep +3 +3 +0 +0$", done.out, re.MULTILINE)
    assert re.search(r"^main +3 +out.jsonl$", done.out, re.MULTILINE)


def test_status_tells_what_is_not_read_yet(kept, command) -> None:
    with (kept.folder / "in.jsonl").open("a") as file:
        file.write('{"cid": 1, "time": 9.0}\n')
    assert "24 B of" in command("status").out


def test_status_names_the_process_that_runs_the_app(kept, command) -> None:
    lock = StoreLock(kept.folder / ".secondpass" / "keeping")
    lock.acquire()
    try:
        report = command("status", "--json").document(StatusReport)
        shown = command("status").out
    finally:
        lock.release()
    assert report.stores[0].running is not None
    assert f"running: process {report.stores[0].running.pid}" in shown
    assert command("status", "--json").document(StatusReport).stores[0].running is None


def test_status_lists_all_stores_and_tells_which_cannot_be_read(kept, command) -> None:
    broken = kept.folder / ".secondpass" / "broken"
    broken.mkdir()
    (broken / "store.db").write_bytes(b"nothing of the kind" * 100)
    done = command("status")
    assert done.code == 6
    assert re.search(r"^keeping +at rest +3 ", done.out, re.MULTILINE)
    assert re.search(r"^broken +unreadable ", done.out, re.MULTILINE)
    report = command("status", "--json").document(StatusReport)
    assert [(s.app, s.problem is None) for s in report.stores] == [(None, False), ("keeping", True)]


# ---------------------------------------------------------------- outputs


def test_outputs_are_json_lines(kept, command) -> None:
    done = command("outputs")
    assert [json.loads(line)["cid"] for line in done.out.splitlines()] == [5, 3, 4]


def test_outputs_of_a_stream_without_a_sink_are_in_the_store(kept, command) -> None:
    assert command("outputs", "--stream", "pages", "--limit", "1").out == '{"cid":5,"name":"é"}\n'


def test_outputs_with_json_have_their_numbers_and_positions(kept, command) -> None:
    lines = command("outputs", "--after", "0", "--json").lines(OutputLine)
    assert [(x.stream, x.number, x.position, x.event["cid"]) for x in lines] == [
        ("main", 1, 1, 3),
        ("main", 2, 2, 4),
    ]


def test_an_unknown_stream_is_told_with_those_there_are(kept, command) -> None:
    done = command("outputs", "--stream", "pgaes")
    assert (done.code, done.out) == (0, "")
    assert "no outputs of pgaes yet; it has main, pages" in done.err


def test_outputs_that_left_the_store_are_told_to_be_in_the_file(kept, command, monkeypatch) -> None:
    monkeypatch.setattr("secondpass.store.database.KEEP_OUTPUT_BYTES", 0)
    kept.write("keeping.py", KEEPING)
    # What a sink holds for certain is known one commit later.
    for more in ((5, 3, 4, 1), (5, 3, 4, 1, 2), (5, 3, 4, 1, 2, 7)):
        kept.seen(*more)
        assert command("run", "keeping.py", "-q").code == 0
    done = command("outputs")
    assert "no longer in the store" in done.err
    assert "out.jsonl has them" in done.err
    kept_ones = [json.loads(line)["cid"] for line in done.out.splitlines()]
    assert len(kept_ones) < 6
    assert kept_ones == [5, 3, 4, 1, 2, 7][6 - len(kept_ones) :]


def test_following_outputs_prints_what_is_added_until_ctrl_c(first) -> None:
    first.run("run", "first.py", "-q")
    with first.start("outputs", "first.py", "--follow") as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["cid"] for _ in range(3)] == [1, 2, 3]
        first.seen(1, 2, 1, 3, 2, 1, 9)
        first.run("run", "first.py", "-q")
        assert json.loads(process.stdout.readline())["cid"] == 9
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


# ---------------------------------------------------------------- state


def test_state_ls_lists_tables_and_values_with_their_types_and_cells(kept, command) -> None:
    report = command("state", "ls", "--json").document(StateReport)
    assert {(t.name, t.kind, t.key, t.value, t.cells) for t in report.tables} == {
        ("total", "value", None, "int", 1),
        ("last", "table", "int", "float", 3),
        ("names", "table", "tuple[int, str]", "list[str]", 3),
        ("fading", "table", "str", "float", 2),
    }
    assert re.search(r"^Keep.last +int -> float +3$", command("state", "ls").out, re.MULTILINE)


def test_state_ls_of_a_table_lists_its_cells_in_key_order(kept, command) -> None:
    done = command("state", "ls", "keeping.py", "Keep.last")
    assert [line.split() for line in done.out.splitlines()] == [
        ["key", "value"],
        ["3", "1.0"],
        ["4", "2.0"],
        ["5", "0.0"],
    ]
    assert "2 more" in command("state", "ls", "Keep.last", "--limit", "1").out


def test_cells_as_json_lines_have_when_they_were_written(kept, command) -> None:
    cells = command("state", "ls", "Keep.fading", "--json").lines(Cell)
    assert [(c.key, c.value, c.written) for c in cells] == [("3", 1.0, 1.0), ("4", 2.0, 2.0)]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["Keep.last", "3"], "1.0"),
        (["last", "3"], "1.0"),
        (["keeping.py", "last", "3"], "1.0"),
        (["Keep.names", '[3, "x"]'], '["camera 3"]'),
        (["Keep.fading", "4"], "2.0"),
        (["Keep.fading", '"4"'], "2.0"),
        (["Keep.total"], "12"),
        (["keeping.py", "Keep.total"], "12"),
    ],
)
def test_state_get_prints_one_value_as_json(kept, command, arguments: list[str], value: str) -> None:
    assert command("state", "get", *arguments).out == f"{value}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Keep.last", "77"], "no cell 77 among 3 cells"),
        (["Keep.last", "three"], "Keep.last has no cell three: its keys are int"),
        (["Keep.last", "true"], "its keys are int"),
        (["Keep.fading", "5"], "it may have expired"),
        (["Keep.last"], "say which key"),
        (["Keep.total", "1"], "is a value, it has no keys"),
        (["Keep.nothing", "1"], "has Keep."),
        (["keeping.py"], "say which table or value"),
    ],
)
def test_state_get_says_what_is_wrong(kept, command, arguments: list[str], said: str) -> None:
    done = command("state", "get", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_deque_is_shown_as_its_items(project, command) -> None:
    project.write("recent.py", RECENT)
    project.seen(5, 3, 5, 5)
    assert command("run", "recent.py", "-q").code == 0
    assert command("state", "get", "Recent.times", "5").out == "[2.0,3.0]\n"
    assert command("state", "get", "Recent.tracks", "3").out == '{"cid":3,"times":[1.0]}\n'
    assert command("state", "get", "Recent.all").out == '[2,{"x":[[5],[]]}]\n'
    assert "[2.0,3.0]" in command("state", "ls", "Recent.times").out
    cells = command("state", "ls", "Recent.times", "--json").lines(Cell)
    assert [(cell.key, cell.value) for cell in cells] == [(3, [1.0]), (5, [2.0, 3.0])]
    exported = command("task", "export", "Recent").document(TaskExport)
    assert [cell.value for cell in exported.state[0].cells] == [[1.0], [2.0, 3.0]]
    assert "wrote times[5]: [0.0,2.0] -> [2.0,3.0]" in command("explain", "recent.py", "3").out


def test_cells_are_seen_whether_they_are_folded_or_not(project, command, monkeypatch) -> None:
    monkeypatch.setattr("secondpass.store.fold.BYTES_MIN", 1)
    project.write("keeping.py", KEEPING)
    for upto in range(1, 8):  # the cells of older epochs are folded, those of the newest wait
        project.seen(*range(upto))
        command("run", "keeping.py", "-q")
    cells = command("state", "ls", "Keep.last", "--json").lines(Cell)
    assert [(c.key, c.value) for c in cells] == [(n, float(n)) for n in range(7)]


# ---------------------------------------------------------------- doctor


def test_doctor_examines_the_machine_and_measures_the_disk(project, command) -> None:
    report = command("doctor", "--json").document(DoctorReport)
    assert 0 < report.fsync_p50_s <= report.fsync_p99_s
    assert report.directory == str(project.folder)
    assert {f.name for f in report.findings} >= {
        "Python",
        "SQLite",
        "disk space",
        "fsync",
        "open files",
        "file size",
    }


def test_doctor_reads_all_of_a_store(kept, command) -> None:
    done = command("doctor", "keeping.py")
    assert "all checksums fit (3 events, 9 cells, 6 outputs, 0 dead letters)" in done.out


def test_doctor_finds_a_damaged_byte_and_ends_with_6(kept, command) -> None:
    path = kept.folder / ".secondpass" / "keeping" / "store.db"
    content = path.read_bytes()
    at = content.index(b'{"cid":3')
    path.write_bytes(content[:at] + b'{"cid":9' + content[at + 8 :])
    done = command("doctor", "keeping.py")
    assert done.code == 6
    assert re.search(r"^BAD +store", done.out, re.MULTILINE)
    assert "does not match its checksum" in done.out


def test_the_file_system_of_a_directory_is_that_of_the_longest_mount(tmp_path) -> None:
    inside = tmp_path / "a b" / "c"
    inside.mkdir(parents=True)
    mounts = (
        f"/dev/x / ext4 rw 0 0\nserver:/y {str(tmp_path / 'a b').replace(' ', chr(92) + '040')} nfs4 rw 0 0\n"
    )
    assert file_system(inside, mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "ext4"


# ---------------------------------------------------------------- what is pushed

PUSHED = """
app = App("pushed", sink=JsonLines(HERE / "out.jsonl"), keep_log="1GB")


@app.source
def well():
    yield [Seen(cid=n, time=float(n)) for n in range(5)]


@app.source
def broken():
    yield Seen(cid=9, time=9.0)
    raise OSError("the camera is gone")
"""


def test_status_and_the_summary_tell_of_functions_that_are_sources(project, command):
    project.write("pushed.py", PUSHED)
    done = command("run", "pushed.py", "--limit", "7")  # the last one after a second, from its second life
    assert re.search(r"well +ended +5 +0", done.out)
    assert re.search(r"broken +\w.* 2 +\d +OSError: the camera is gone", done.out)
    told = command("status", "pushed.py").out
    assert "source         log: all 7 records taken" in told
    assert re.search(r"broken +stopped +2 +\d +OSError: the camera is gone", told)
    report = command("status", "pushed.py", "--json").document(StatusReport).stores[0]
    found = [(f.name, f.state, f.events) for f in report.functions]
    assert found == [("well", "ended", 5), ("broken", "stopped", 2)]
    source = report.sources[0]
    assert (source.name, source.done, source.total, source.oldest) == ("log", 7, 7, 0)


def test_a_fresh_start_takes_the_log_again(project, command):
    project.write("pushed.py", PUSHED.replace('    raise OSError("the camera is gone")\n', ""))
    assert command("run", "pushed.py", "-q").code == 0
    assert command("run", "pushed.py", "-q", "--fresh", "--yes").code == 0
    assert len(project.output()) == 12


def test_check_takes_what_the_log_holds(project, command):
    project.write("pushed.py", PUSHED.replace('    raise OSError("the camera is gone")\n', ""))
    assert command("run", "pushed.py", "-q").code == 0
    assert "6 events" in command("check", "pushed.py").out
