"""The examples do what they say: on their own samples to the byte, on real data to the known counts."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secondpass import App, testing
from secondpass.connectors import Csv
from secondpass.loading import load

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
NAMES = {
    "access_log_sessions",
    "freeway_congestion",
    "freeway_worst_hours",
    "network_alarms",
    "roadside_detections",
    "three_feeds",
}


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[found.__name__] = found
    spec.loader.exec_module(found)
    return found


def kept(source: Any, *tasks: Any) -> list[Any]:
    """What the engine passes."""
    passed: list[Any] = []
    App("example", source=source, tasks=tasks, sink=passed.append).run(store=None)
    return passed


def test_every_example_is_tested_here_and_fits_on_a_page() -> None:
    examples = {path.stem: path.read_text().count("\n") for path in EXAMPLES.glob("*.py")}
    assert set(examples) == NAMES
    assert {name for name, lines in examples.items() if lines > 60} == set()


def test_the_samples_are_small_and_made_by_a_fixed_seed() -> None:
    samples = module(HERE / "samples.py")
    made = {"detections.jsonl": samples.detections(), "access.log": samples.access_log()}
    assert {path.name: path.read_text() for path in samples.DATA.iterdir()} == made
    assert all(len(text) < 50_000 for text in made.values())


# ---------------------------------------------------------------- on their own samples


@pytest.mark.parametrize(
    ("name", "written"), [("roadside_detections", "kept.jsonl"), ("access_log_sessions", "sessions.jsonl")]
)
def test_an_example_writes_what_is_expected(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = load(str(EXAMPLES / f"{name}.py"))
    app.run(store=tmp_path / "store")
    assert (tmp_path / written).read_bytes() == (HERE / "expected" / written).read_bytes()
    app.run(store=tmp_path / "store")
    assert (tmp_path / written).read_bytes() == (HERE / "expected" / written).read_bytes()


@pytest.mark.parametrize("how", ["secondpass run", "python"])
def test_a_thread_a_process_and_jobs_of_a_pool_feed_one_stream(how: str, tmp_path: Path) -> None:
    path = shutil.copy(EXAMPLES / "three_feeds.py", tmp_path)
    bin_ = Path(sys.executable).parent
    command = [bin_ / "secondpass", "run", path] if how == "secondpass run" else [sys.executable, path]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)
    found = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    example = module(EXAMPLES / "three_feeds.py")
    names = ["thread", "process", "job 1", "job 2", "job 3"]
    assert {event["feed"] for event in found} == set(names)
    for name in names:
        sent = [example.Reading(feed=name, n=n, value=float(n * 7919 % 1000)) for n in range(200)]
        wanted = [event.n for event in testing.run(example.Alarm(), sent).outputs]
        assert [event["n"] for event in found if event["feed"] == name] == wanted


def test_one_camera_reports_for_its_neighbours() -> None:
    example = module(EXAMPLES / "roadside_detections.py")
    seen = [
        example.Detection(cid, time) for cid, time in [(5, 0.0), (6, 1.0), (7, 2.0), (9, 3.0), (6, 302.0)]
    ]
    assert testing.run(example.SuppressNeighbours(), seen).outputs == [seen[0], seen[3], seen[4]]


def test_sessions_and_those_still_going_on_are_all_there_is() -> None:
    example = module(EXAMPLES / "access_log_sessions.py")
    requests = [
        found for line in example.lines if isinstance(found := example.request(line), example.Request)
    ]
    by_client: dict[str, list[Any]] = {}
    for request in requests:
        ended = by_client.setdefault(request.client, [[request]])
        if request.time - ended[-1][-1].time >= 1800.0:
            ended.append([request])
        elif request is not ended[-1][-1]:
            ended[-1].append(request)
    offline = {
        example.Session(client, s[0].time, s[-1].time, s[0].path, len(s))
        for client, sessions in by_client.items()
        for s in sessions
    }

    result = testing.run(example.Sessions(), requests)
    going = set(result.state("Sessions")["going"].values())
    assert set(result.outputs) | going == offline
    assert len(result.outputs) + len(going) == len(offline) > 100
    assert all(requests[-1].time - session.end < 1800.0 + 60.0 for session in going)


def test_a_line_that_is_no_request_becomes_a_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = load(str(EXAMPLES / "access_log_sessions.py")).run(store=None, limit=150)
    assert summary.dead_letters == 1


# ---------------------------------------------------------------- on real data


@pytest.fixture(scope="module")
def alarms(shared_data: Path) -> Path:
    return shared_data / "telecom_alarms"


@pytest.mark.parametrize(
    ("window_s", "same_kind", "count"),
    [
        (30.0, False, 25_948),
        (300.0, False, 13_963),
        (900.0, False, 6_744),
        (30.0, True, 46_656),
        (300.0, True, 29_120),
        (900.0, True, 15_267),
    ],
)
def test_as_many_alarms_are_kept_as_a_loop_by_hand_keeps(
    alarms: Path, window_s: float, same_kind: bool, count: int
) -> None:
    example = module(EXAMPLES / "network_alarms.py")
    links = example.read_links(alarms / "links.csv")
    task = example.FirstOfLinked(links=links, window_s=window_s, same_kind=same_kind)
    assert len(kept(Csv(alarms / "alarms.csv", example.Alarm), task)) == count


def test_the_engine_keeps_the_alarms_that_the_plain_loop_keeps(
    alarms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = module(EXAMPLES / "network_alarms.py")
    app = example.app_for(alarms / "alarms.csv", alarms / "links.csv")
    events = kept(Csv(alarms / "alarms.csv", example.Alarm))
    assert len(events) == 64_598
    result = testing.run(app.tasks, events)
    assert len(result.outputs) == 13_963
    assert kept(events, *app.tasks) == result.outputs


@pytest.fixture(scope="module")
def freeway(shared_data: Path) -> Path:
    return shared_data / "la_freeway"


def test_as_many_onsets_are_passed_as_a_loop_by_hand_passes(freeway: Path) -> None:
    example = module(EXAMPLES / "freeway_congestion.py")
    app = example.app_for(str(freeway / "los_speed.csv"), str(freeway / "los_adj.csv"))
    (events,), (task,) = app.sources, app.tasks
    assert len(events) == 207 * 2_016

    def passed(window_s: float) -> list[Any]:
        return kept(events, type(task)(neighbours=task.neighbours, window_s=window_s))

    assert [len(passed(window_s)) for window_s in (-1.0, 300.0)] == [4_302, 2_667]
    assert len(onsets := passed(900.0)) == 1_897
    assert testing.run(app.tasks, events).outputs == onsets


def test_the_worst_hours_are_those_that_a_loop_by_hand_finds(
    freeway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = 1000.0
    records: list[dict[str, Any]] = []
    with (freeway / "los_speed.csv").open(newline="") as file:
        sensors, *steps = csv.reader(file)
    last = {sensor: deque([float(row[i]) for row in steps[:11]], 12) for i, sensor in enumerate(sensors)}
    for step, row in list(enumerate(steps))[11:]:
        for sensor, mph in zip(sensors, row, strict=True):
            last[sensor].append(float(mph))
            if (mean := sum(last[sensor]) / 12) < lowest:
                lowest = mean
                records.append({"sensor": sensor, "time": 300.0 * step, "mph": mean})

    monkeypatch.chdir(tmp_path)
    module(EXAMPLES / "freeway_worst_hours.py").app_for(freeway / "los_speed.csv").run(store=None)
    written = [json.loads(line) for line in (tmp_path / "worst_hours.jsonl").read_text().splitlines()]
    assert written == records
    assert len(records) > 20


# ---------------------------------------------------------------- as a user starts them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples, so that their stores and outputs stay out of the checkout."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    return tmp_path


def python(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_alarms_of_two_small_files_run_as_a_script(folder: Path) -> None:
    (folder / "alarms.csv").write_text(
        "alarm_id,device_id,start_timestamp,end_timestamp\n1,1,0,9\n2,2,10,19\n1,3,20,29\n1,2,301,309\n"
    )
    (folder / "links.csv").write_text("device_a,device_b\n1,2\n")
    out = python("examples/network_alarms.py", "alarms.csv", "links.csv", cwd=folder)
    assert "events_in=4" in out
    kept = [json.loads(line) for line in (folder / "first_alarms.jsonl").read_text().splitlines()]
    assert [(alarm["device_id"], alarm["start_timestamp"]) for alarm in kept] == [
        (1, 0.0),
        (3, 20.0),
        (2, 301.0),
    ]


def test_the_freeways_of_two_small_files_run_as_scripts(folder: Path) -> None:
    (folder / "speeds.csv").write_text("a,b\n60,60\n30,60\n60,35\n60,60\n60,35\n60,60\n60,60\n60,39\n")
    (folder / "weights.csv").write_text("1,0.5\n0.5,1\n")
    out = python("examples/freeway_congestion.py", "speeds.csv", "weights.csv", cwd=folder)
    assert out.splitlines() == [
        "Speed(sensor=0, time=300.0, mph=30.0)",
        "Speed(sensor=1, time=2100.0, mph=39.0)",
    ]
    python("examples/freeway_worst_hours.py", "speeds.csv", cwd=folder)
    assert (folder / "worst_hours.jsonl").read_text() == ""
