"""Running the demo: simulate, run the app on a durable store, compare with what really happened.

DIRECTORY/
    detections.jsonl     what the cameras report: the app's source
    truth.jsonl          what really happened
    roadside_app.py      the app, to read and change
    incidents.jsonl      what the chain passes
    pages.jsonl          its named output
    .secondpass/         the app's store
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from secondpass.demo import roadside_app
from secondpass.demo.report import DemoReport, TaskRow
from secondpass.demo.roadside_app import Detection, Page
from secondpass.demo.scoring import PAGED_S, Score, score
from secondpass.demo.simulation import Truth, simulate
from secondpass.errors import SettingsError
from secondpass.store.lock import StoreLock

T = TypeVar("T")

APP = "roadside_app.py"
OUTPUTS = ("incidents.jsonl", "pages.jsonl")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


def run_demo(
    directory: Path,
    *,
    seed: int = 7,
    hours: float = 24.0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Simulate a day on a motorway in `directory`, run the app over it, and say how good it was.

    `hours` (about 11,000 detections each) and `limit` (detections at most) make it shorter or longer.
    Running it again starts over. Raises `SettingsError` for a directory that holds other detections or cannot be
    written, and `StoreLocked` where an app runs over its store.
    """
    if hours <= 0:
        raise SettingsError(f"hours={hours:g}: simulate some time, for example hours=1")
    directory = directory.resolve()
    app = roadside_app.make_app(directory)
    store = directory / ".secondpass" / app.name
    with _written_to(directory):
        if (directory / "detections.jsonl").exists() and not (directory / "truth.jsonl").exists():
            raise SettingsError(f"{directory}/detections.jsonl is not the demo's; choose an empty directory")
        directory.mkdir(parents=True, exist_ok=True)
    tell = progress or _silent
    tell("simulate", 0, 1)
    simulation = simulate(seed, hours=hours, limit=limit)
    with _written_to(directory), _at_rest(store):
        write_inputs(directory, simulation.detections, simulation.truth)
    tell("simulate", 1, 1)
    total = len(simulation.detections)
    tell("run", 0, total)

    def on_epoch(hub: Any) -> None:
        tell("run", hub.summary.events_in, total)

    summary = app.run(store=store, fresh=True, on_epoch=on_epoch)
    incidents, pages = score_directory(directory)
    return DemoReport(
        directory=_shown(directory),
        seed=seed,
        hours=hours,
        detections=summary.events_in,
        seconds=summary.seconds,
        events_per_second=summary.events_per_second,
        epochs=summary.epochs,
        tasks=tuple(
            TaskRow(name, tally.events, tally.passed, tally.dropped, summary.busy_s.get(name, 0.0))
            for name, tally in summary.tasks.items()
        ),
        incidents=incidents,
        pages=pages,
        edited=(directory / APP).read_bytes() != Path(roadside_app.__file__).read_bytes(),
    )


def _silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def _written_to(directory: Path) -> Generator[None]:
    """Say what keeps the directory from being written."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"cannot write {_shown(directory)}: {error.strerror or error}; name another directory: "
            f"secondpass demo DIRECTORY"
        ) from error


@contextmanager
def _at_rest(store: Path) -> Generator[None]:
    """Hold the store, so that no app runs whose input is taken away; raises `StoreLocked` where one does."""
    if not store.is_dir():
        yield
        return
    lock = StoreLock(store)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_inputs(directory: Path, detections: Sequence[Detection], truth: Sequence[Truth]) -> None:
    """Start over: what the app reads, what really happened, and the app itself unless it is there, changed."""
    for name in OUTPUTS:
        (directory / name).unlink(missing_ok=True)
    encoder = msgspec.json.Encoder()
    (directory / "truth.jsonl").write_bytes(encoder.encode_lines(truth))
    (directory / "detections.jsonl").write_bytes(encoder.encode_lines(detections))
    copy = directory / APP
    if not copy.exists():
        shutil.copyfile(roadside_app.__file__, copy)


def score_directory(directory: Path) -> tuple[Score, Score]:
    """The incidents and the pages in a demo's directory, compared with what really happened there."""
    truth = _read(directory / "truth.jsonl", Truth)
    reports = _read(directory / OUTPUTS[0], Detection)
    pages = _read(directory / OUTPUTS[1], Page)
    return score(truth, reports), score(truth, pages, lasting_s=PAGED_S)


def _read(path: Path, tp: type[T]) -> list[T]:
    if not path.exists():
        raise SettingsError(f"{path} is not there; make it with `secondpass demo`")
    return msgspec.json.Decoder(tp).decode_lines(path.read_bytes())


def _shown(directory: Path) -> str:
    """Relative to where the user stands, if it is below."""
    here = Path.cwd()
    return (
        str(directory.relative_to(here))
        if directory.is_relative_to(here) and directory != here
        else str(directory)
    )
