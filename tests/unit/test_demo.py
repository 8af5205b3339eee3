"""The demo: its motorway repeats itself, its app does what it says, and its scores are true."""

import ast
import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from secondpass import testing
from secondpass.demo import as_json, render, roadside_app, run_demo, simulate
from secondpass.demo.__main__ import main
from secondpass.demo.report import DemoReport
from secondpass.demo.roadside_app import (
    ConfirmByRepetition,
    Detection,
    EscalateByDuration,
    Page,
    SuppressNeighbours,
    make_app,
)
from secondpass.demo.run import score_directory
from secondpass.demo.scoring import PAGED_S, Score, score
from secondpass.demo.simulation import CAMERAS, WESTBOUND, Simulation, Truth
from secondpass.errors import SettingsError, StoreLocked
from secondpass.loading import load
from secondpass.store.lock import StoreLock


def detections(*seen: tuple[int, float]) -> list[Detection]:
    return [Detection(cid=cid, time=time, kind="debris") for cid, time in seen]


# ---------------------------------------------------------------- the motorway


@pytest.fixture(scope="module")
def morning() -> Simulation:
    return simulate(7, hours=3.0)


def test_a_seed_gives_the_same_motorway_on_every_version_of_python() -> None:
    simulation = simulate(7, hours=1.0)
    lines = msgspec.json.Encoder().encode_lines([*simulation.detections, *simulation.truth])
    assert hashlib.sha256(lines).hexdigest()[:16] == "4555d549db9d3225"


def test_another_seed_gives_another_motorway() -> None:
    assert simulate(1, hours=0.2).detections != simulate(2, hours=0.2).detections


def test_detections_come_in_order_of_time_from_cameras_that_exist(morning: Simulation) -> None:
    times = [event.time for event in morning.detections]
    assert times == sorted(times)
    assert min(times) >= 0.0
    assert max(times) <= 3 * 3600.0
    cameras = {event.cid for event in morning.detections}
    assert cameras == {*range(CAMERAS), *range(WESTBOUND, WESTBOUND + CAMERAS)}


def test_a_limit_cuts_detections_and_the_incidents_after_them(morning: Simulation) -> None:
    short = simulate(7, hours=3.0, limit=5_000)
    assert short.detections == morning.detections[:5_000]
    last = short.detections[-1].time
    assert short.truth == [incident for incident in morning.truth if incident.start <= last]
    assert 0 < len(short.truth) < len(morning.truth)


def test_an_incident_is_seen_best_from_the_nearest_camera() -> None:
    simulation = simulate(3, hours=6.0)
    crash = max(
        (t for t in simulation.truth if t.length_km == 0.0 and 2.0 < t.km < 58.0), key=lambda t: t.severity
    )
    seen = [e for e in simulation.detections if crash.start <= e.time < crash.end]
    counts: dict[int, int] = {}
    for event in seen:
        if crash.distance_km(event.cid, event.time) < 1.2:
            counts[event.cid] = counts.get(event.cid, 0) + 1
    nearest = min(counts, key=lambda cid: crash.distance_km(cid, crash.end))
    assert len(counts) >= 4
    assert counts[nearest] == max(counts.values())
    assert counts[nearest] > 0.25 * (crash.end - crash.start) / 2.0


def test_a_queue_grows_and_other_incidents_stay_where_they_are() -> None:
    queue = Truth(0, 10.25, 1.5, "queue", 1000.0, 4000.0, 1.0)
    assert [queue.distance_km(23, time) for time in (1000.0, 1300.0, 1600.0, 4000.0)] == [1.5, 0.75, 0.0, 0.0]
    assert queue.distance_km(WESTBOUND + 20, 1000.0) == math.inf
    debris = Truth(1, 10.25, 0.0, "debris", 1000.0, 4000.0, 1.0)
    assert debris.distance_km(WESTBOUND + 21, 4000.0) == 0.5


# ---------------------------------------------------------------- its tasks


def test_a_report_passes_when_it_is_repeated_soon_enough_here_or_next_door() -> None:
    task = ConfirmByRepetition(reports=3, within_s=10.0)
    seen = detections((5, 0.0), (6, 1.0), (4, 2.0), (5, 3.0), (5, 12.5), (9, 12.6), (5, 12.7))
    assert testing.run(task, seen).outputs == [seen[3], seen[6]]


def test_reports_from_two_cameras_away_confirm_nothing() -> None:
    task = ConfirmByRepetition(reports=2, within_s=10.0)
    assert testing.run(task, detections((5, 0.0), (7, 1.0))).outputs == []


def test_a_long_incident_is_paged_once_though_neighbours_see_it_too() -> None:
    task = EscalateByDuration(after_s=60.0, gap_s=30.0)
    seen = detections(*((5 + i % 3, 10.0 * i) for i in range(20)))
    result = testing.run(task, seen)
    assert result.outputs == seen
    assert result.output("pages") == [Page(cid=6, time=70.0, kind="debris", since=0.0)]


def test_an_incident_after_a_pause_is_a_new_one() -> None:
    task = EscalateByDuration(after_s=60.0, gap_s=30.0)
    first = detections(*((5, 10.0 * i) for i in range(8)))
    again = detections(*((5, 100.0 + 10.0 * i) for i in range(8)))
    pages = testing.run(task, [*first, *again]).output("pages")
    assert [(page.time, page.since) for page in pages] == [(70.0, 0.0), (170.0, 100.0)]


def test_a_report_is_suppressed_while_it_or_a_neighbour_goes_on_reporting() -> None:
    task = SuppressNeighbours(window_s=100.0)
    seen = detections((5, 0.0), (6, 99.0), (7, 198.0), (5, 199.0), (20, 200.0), (7, 298.0))
    assert testing.run(task, seen).outputs == [seen[0], seen[3], seen[4], seen[5]]


def test_the_order_of_the_chain_matters_as_the_app_says(morning: Simulation) -> None:
    confirm, escalate, suppress = make_app(Path()).tasks

    def found(*chain: Any) -> tuple[Score, Score]:
        result = testing.run(chain, morning.detections)
        pages = result.output("pages")
        return score(morning.truth, result.outputs), score(morning.truth, pages, lasting_s=PAGED_S)

    incidents, pages = found(confirm, escalate, suppress)
    assert incidents.found >= 0.9 * incidents.incidents > 20
    assert incidents.false + incidents.repeated <= 0.2 * incidents.incidents
    assert pages.found >= 0.9 * pages.incidents > 20
    assert (pages.false, pages.repeated) <= (0, 2)
    assert 0.0 < incidents.delay_s < 60.0 < 300.0 < pages.delay_s < 400.0

    without_repeats, _ = found(suppress, confirm, escalate)
    assert without_repeats.found < 0.1 * incidents.found
    unconfirmed, _ = found(escalate, suppress)
    assert unconfirmed.false > 20 * incidents.false


# ---------------------------------------------------------------- scoring


CRASH = Truth(0, 10.25, 0.0, "debris", 1000.0, 1600.0, 1.0)
BRIEF = Truth(0, 40.25, 0.0, "pedestrian", 1000.0, 1100.0, 1.0)


def test_found_missed_repeated_and_false_reports_are_told_apart() -> None:
    reports = detections((20, 1010.0), (21, 1500.0), (20, 1625.0), (20, 999.0), (1020, 1100.0), (60, 1100.0))
    found = score([CRASH, BRIEF], reports)
    assert (found.incidents, found.found, found.missed) == (2, 1, 1)
    assert (found.reports, found.repeated, found.false) == (6, 1, 4)
    assert found.delay_s == found.delay_s_p90 == 10.0


def test_a_report_of_an_incident_too_short_to_count_is_neither_right_nor_wrong() -> None:
    found = score([CRASH, BRIEF], detections((20, 1400.0), (80, 1090.0)), lasting_s=300.0)
    assert (found.incidents, found.found, found.reports, found.repeated, found.false) == (1, 1, 1, 0, 0)


def test_of_two_incidents_in_reach_the_one_not_yet_told_is_found() -> None:
    beside = Truth(0, 10.75, 0.0, "queue", 1000.0, 1600.0, 1.0)
    found = score([CRASH, beside], detections((20, 1010.0), (20, 1020.0), (20, 1030.0)))
    assert (found.found, found.repeated) == (2, 1)


def test_nothing_reported_is_everything_missed() -> None:
    assert score([CRASH], []) == Score(1, 0, 1, 0, 0, 0, 0.0, 0.0)


# ---------------------------------------------------------------- running it


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoReport]:
    directory = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    return directory, run_demo(directory, hours=0.5)


def untimed(report: DemoReport) -> dict[str, Any]:
    tasks = [{**row, "busy_s": 0.0} for row in as_json(report)["tasks"]]
    return {**as_json(report), "seconds": 0.0, "events_per_second": 0.0, "epochs": 0, "tasks": tasks}


def test_the_engine_gives_the_plain_loops_answer(demo: tuple[Path, DemoReport]) -> None:
    directory, report = demo
    simulation = simulate(7, hours=0.5)
    result = testing.run(make_app(directory).tasks, simulation.detections)
    encoder = msgspec.json.Encoder()
    assert (directory / "incidents.jsonl").read_bytes() == encoder.encode_lines(result.outputs)
    assert (directory / "pages.jsonl").read_bytes() == encoder.encode_lines(result.output("pages"))
    assert report.detections == len(simulation.detections)
    for row in report.tasks:
        tally = result.tally(row.name)
        assert (row.events, row.passed, row.dropped) == (tally.events, tally.passed, tally.dropped)
    assert report.incidents == score(simulation.truth, result.outputs)
    assert report.pages == score(simulation.truth, result.output("pages"), lasting_s=PAGED_S)


def test_running_it_again_starts_over(tmp_path: Path) -> None:
    first = run_demo(tmp_path, hours=0.2, seed=3)
    outputs = (tmp_path / "incidents.jsonl").read_bytes()
    assert outputs
    assert untimed(run_demo(tmp_path, hours=0.2, seed=3)) == untimed(first)
    assert (tmp_path / "incidents.jsonl").read_bytes() == outputs
    assert run_demo(tmp_path, hours=0.2, seed=4).incidents != first.incidents


def test_the_app_in_the_directory_goes_on_where_the_demo_ended(tmp_path: Path) -> None:
    run_demo(tmp_path, hours=0.4, limit=1_000)
    app = load(str(tmp_path / "roadside_app.py"))
    assert app.run().nothing_new
    last = simulate(7, hours=0.4, limit=1_000).detections[-1]
    with (tmp_path / "detections.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(last.replace(time=last.time + 1.0)) + b"\n")
    assert load(str(tmp_path / "roadside_app.py")).run().events_in == 1


def test_a_changed_app_in_the_directory_is_left_as_it_is(tmp_path: Path) -> None:
    run_demo(tmp_path, hours=0.4, limit=500)
    copy = tmp_path / "roadside_app.py"
    assert copy.read_text() == Path(roadside_app.__file__).read_text()
    copy.write_text("changed = True\n")
    report = run_demo(tmp_path, hours=0.4, limit=500)
    assert copy.read_text() == "changed = True\n"
    text = shown(report, 200)
    assert f"the demo's own app. {tmp_path}/roadside_app.py has been changed and has not run" in text
    assert f"run {tmp_path}/roadside_app.py --fresh" in text
    assert f"-m secondpass.demo {tmp_path}" in text
    assert "The app is" not in text


def test_detections_of_someone_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "detections.jsonl").write_text("mine\n")
    with pytest.raises(SettingsError, match="is not the demo's; choose an empty directory"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["detections.jsonl"]


def test_a_directory_that_cannot_be_written_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "demo", Path("/proc/demo")):
        with pytest.raises(
            SettingsError, match=f"cannot write {directory}: .*; name another directory: secondpass demo"
        ):
            run_demo(directory, hours=0.1)


def test_the_input_of_an_app_that_runs_is_left_as_it_is(tmp_path: Path) -> None:
    run_demo(tmp_path, hours=0.1)
    files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    lock = StoreLock(tmp_path / ".secondpass" / "roadside")
    lock.acquire()
    try:
        with pytest.raises(StoreLocked, match="is in use by"):
            run_demo(tmp_path, hours=0.1, seed=8)
    finally:
        lock.release()
    assert {path: path.read_bytes() for path in files} == files


def test_no_time_is_no_demo(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="simulate some time"):
        run_demo(tmp_path / "demo", hours=0.0)
    assert not (tmp_path / "demo").exists()


def test_progress_is_told_up_to_the_last_detection(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = run_demo(tmp_path, hours=0.4, limit=1_000, progress=lambda *done: told.append(done))
    assert [what for what, _, _ in told[:3]] == ["simulate", "simulate", "run"]
    assert told[-1] == ("run", report.detections, 1_000)
    assert [done for _, done, _ in told[2:]] == sorted(done for _, done, _ in told[2:])


# ---------------------------------------------------------------- showing it


def shown(report: DemoReport, width: int) -> str:
    text = io.StringIO()
    render(report, Console(file=text, width=width))
    return text.getvalue()


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of this environment are found by name."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize("width", [80, 120])
def test_the_report_shows_every_number_and_what_to_do_next(demo: tuple[Path, DemoReport], width: int) -> None:
    directory, report = demo
    text = shown(report, width)
    rows = {" ".join(line.split()) for line in text.splitlines()}
    for row in report.tasks:
        assert f"{row.name} {row.events:,} {row.passed:,} {row.dropped:,} {row.busy_s:.2f}" in rows
    assert f"found {report.incidents.found} {report.pages.found}" in rows
    assert f"told of nothing {report.incidents.false} {report.pages.false}" in rows
    assert f"secondpass run {directory}/roadside_app.py --fresh" in rows
    assert f"python -m secondpass.demo {directory}" in rows
    assert "…" not in text


def test_the_hints_name_programs_that_no_path_leads_to(
    demo: tuple[Path, DemoReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python3"))
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    assert f" {tmp_path}/venv/bin/python3 -m secondpass run " in shown(demo[1], 80)
    (tmp_path / "venv" / "bin" / "secondpass").touch()
    monkeypatch.chdir(tmp_path)
    assert " venv/bin/secondpass run " in shown(demo[1], 80)
    assert " venv/bin/python3 -m secondpass.demo " in shown(demo[1], 80)


@pytest.mark.usefixtures("on_path")
def test_a_directory_named_like_markup_is_shown_as_it_is(demo: tuple[Path, DemoReport]) -> None:
    report = msgspec.structs.replace(demo[1], directory="[bold]demo")
    assert "secondpass run [bold]demo/roadside_app.py" in shown(report, 80)


def test_the_report_is_plain_data_too(demo: tuple[Path, DemoReport]) -> None:
    _, report = demo
    again = json.loads(json.dumps(as_json(report)))
    assert msgspec.convert(again, DemoReport) == report


def test_the_scores_can_be_shown_again(
    demo: tuple[Path, DemoReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, report = demo
    assert score_directory(directory) == (report.incidents, report.pages)
    assert main([str(directory)]) == 0
    assert f"found {report.incidents.found} {report.pages.found}" in {
        " ".join(line.split()) for line in capsys.readouterr().out.splitlines()
    }
    assert main([str(tmp_path)]) == 1
    assert "make it with `secondpass demo`" in " ".join(capsys.readouterr().err.split())
    assert main([]) == 2


# ---------------------------------------------------------------- the app as a page to read


def test_the_app_is_written_with_public_names_only() -> None:
    tree = ast.parse(Path(roadside_app.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    assert {node.module for node in imports if isinstance(node, ast.ImportFrom)} == {
        "collections",
        "pathlib",
        "secondpass",
        "secondpass.connectors",
    }
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in names if name.startswith("_")]


def test_the_app_loads_without_what_only_the_report_needs() -> None:
    script = "import sys, secondpass.demo.roadside_app; print(*sorted({'rich', 'apsw'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
