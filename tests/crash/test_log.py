"""The log under kill -9 at each of its points, and under losses of power."""

import contextlib
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import SOURCE
from log_appender import body_of
from log_kit import Told, appender, compare, frames_of, told
from power_loss import Disk, Image

from secondpass.store import ends as store_ends
from secondpass.store import log as store_log
from secondpass.store.log import StoredLog

POINTS = sorted(set(re.findall(r"failpoint\(\"(log\.[^\"]+)\"\)", (SOURCE / "store" / "log.py").read_text())))
REPAIRS = [p for p in POINTS if p.startswith(("log.cut", "log.repair"))]
KEPT = {"SECONDPASS_TEST_KEPT": "3000", "SECONDPASS_TEST_SEGMENT": "600"}
IMAGES = int(os.environ.get("SECONDPASS_POWERLOSS_IMAGES", "0")) // 100 or 2000


def env_for(point: str) -> dict[str, str]:
    return KEPT if "retain" in point else {"SECONDPASS_TEST_SEGMENT": "2000"}


@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize("point", [p for p in POINTS if p not in REPAIRS])
def test_an_appender_killed_at_a_point_loses_nothing_it_was_told(
    point: str, number: int, tmp_path: Path
) -> None:
    env = env_for(point)
    killed = appender(tmp_path, "p", appends=300, SECONDPASS_KILL_AT=f"{point}:{number}", **env)
    acknowledged = told(killed, expect=-signal.SIGKILL)
    # Another one goes on, and so does the killed one, sending again what it was not told of.
    for name in ("q", "p"):
        acknowledged += told(appender(tmp_path, name, appends=30, **env))
    compare(tmp_path, acknowledged)


@pytest.mark.parametrize("point", REPAIRS)
def test_a_repair_killed_at_a_point_is_made_again(point: str, tmp_path: Path) -> None:
    torn = appender(tmp_path, "p", appends=20, SECONDPASS_KILL_AT="log.write.after:12")
    acknowledged = told(torn, expect=-signal.SIGKILL)
    path = max((tmp_path / "log").glob("*.log"))
    with path.open("ab") as file:
        file.write(b"SPfr and no more of it")
    killed = appender(tmp_path, "p", SECONDPASS_KILL_AT=point)
    assert told(killed, expect=-signal.SIGKILL) == []
    acknowledged += told(appender(tmp_path, "p"))
    compare(tmp_path, acknowledged)


def test_appenders_killed_at_random_points_lose_nothing_they_were_told(
    tmp_path: Path, rng: random.Random
) -> None:
    acknowledged: list[Told] = []
    for _ in range(6):
        running = [
            appender(
                tmp_path,
                f"p{i}",
                threads=2,
                appends=60,
                SECONDPASS_KILL_AT=f"{rng.choice(POINTS)}:{rng.randint(1, 40)}",
            )
            for i in range(3)
        ]
        for process in running:
            out, _ = process.communicate(timeout=60)
            assert process.returncode in {0, -signal.SIGKILL}
            lines: list[Any] = [line.strip(b"[]\n").split(b", ") for line in out.splitlines()]
            acknowledged += [(p.decode().strip('"'), int(s), int(f), int(n)) for p, s, f, n in lines]
        compare(tmp_path, acknowledged)
    assert acknowledged


# ---------------------------------------------------------------- losses of power


class Recorder:
    """What is done to the files of a log, recorded on a `Disk`; `ends`, which is mapped, as it stood then and then."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.disk = Disk()
        self.ends: list[tuple[int, bytes]] = []
        self.told: list[tuple[int, Told]] = []
        self._patch = patch
        for name in ("pwrite", "ftruncate"):
            self._record(os, name)
        for name in ("fsync", "fdatasync"):
            self._record_sync(name)
        rename, unlink = Path.rename, Path.unlink

        def renamed(path: Path, target: Path) -> Path:
            if path.parent == directory:
                self.disk.rename(path.name, target.name)
            return rename(path, target)

        def unlinked(path: Path, **more: Any) -> None:
            unlink(path, **more)
            if path.parent == directory:
                self.disk.delete(path.name)

        patch.setattr(Path, "rename", renamed)
        patch.setattr(Path, "unlink", unlinked)

    def _file(self, fd: int) -> int | None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        return (
            self.disk.file(path.name)
            if path.parent == self.directory and path.suffix in {".log", ".new"}
            else None
        )

    def _record(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def recorded(fd: int, *arguments: Any) -> Any:
            found = real(fd, *arguments)
            file = self._file(fd)
            if file is not None and name == "pwrite":
                self.disk.ops.append(("write", file, arguments[1], bytes(arguments[0])))
            elif file is not None:
                self.disk.ops.append(("truncate", file, arguments[0]))
            self.look()
            return found

        self._patch.setattr(module, name, recorded)

    def _record_sync(self, name: str) -> None:
        real = getattr(os, name)

        def recorded(fd: int) -> None:
            real(fd)
            if Path(f"/proc/self/fd/{fd}").readlink() == self.directory:
                self.disk.sync_names()
            elif (file := self._file(fd)) is not None:
                self.disk.ops.append(("sync", file))

        self._patch.setattr(os, name, recorded)

    def look(self) -> None:
        with contextlib.suppress(OSError):
            content = (self.directory / store_ends.FILE).read_bytes()
            self.ends.append(
                (len(self.disk.ops), content)
            )  # counted after: all that it speaks of is among them


def session(store: Path, recorder: Recorder, rng: random.Random) -> None:
    """Some threads append, with retention beside them; each notes when it was told what."""
    log = StoredLog(store)
    acknowledged: list[tuple[int, Told]] = recorder.told

    def feed(producer: str) -> None:
        for sequence in range(25):
            body, count = body_of(producer, sequence, 40)
            found = log.append(body, count, producer, sequence)
            acknowledged.append((len(recorder.disk.ops), (producer, sequence, found.start, len(found))))
            recorder.look()
            if rng.random() < 0.2:
                log.retain(log.ends.durable, size=4000)

    threads = [threading.Thread(target=feed, args=(f"p{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()


@pytest.fixture
def other_boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The machine starts again."""
    boots: Iterator[int] = iter(range(2, 1_000_000))
    return lambda: monkeypatch.setattr(store_ends, "_boot", next(boots))


def test_after_a_loss_of_power_all_that_was_acknowledged_is_there(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, other_boot: Callable[[], None]
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(store_log, "SEGMENT_BYTES", 1500)
        recorder = Recorder(store / "log", patched)
        session(store, recorder, rng)
    assert sum(op[0] == "delete" and op[1].endswith(".log") for op in recorder.disk.ops), (
        "nothing left the log"
    )
    again = tmp_path / "again"
    (again / "log").mkdir(parents=True)
    image = Image(again / "log")
    torn = 0
    for done, files in recorder.disk.images(IMAGES, rng):
        known = [body for at, body in recorder.ends if at <= done]
        if known and rng.random() < 0.8:
            files["ends"] = rng.choice(known)
        image.put(files)
        other_boot()
        acknowledged = [t for at, t in recorder.told if at <= done]
        if acknowledged or any(name.endswith(".log") for name in files):
            sizes = {name: len(body) for name, body in files.items() if name.endswith(".log")}
            compare(again, acknowledged, most=40)
            torn += any((again / "log" / name).stat().st_size != size for name, size in sizes.items())
            check_that_it_goes_on(again, acknowledged)
    assert torn > IMAGES // 50, "too few images had a torn tail: the test shows too little"


def check_that_it_goes_on(store: Path, acknowledged: list[Told]) -> None:
    """Both producers send what they were not told of, and it is there once."""
    log = StoredLog(store)
    for name in ("p0", "p1"):
        sequence = max((s for p, s, _, _ in acknowledged if p == name), default=-1) + 1
        body, count = body_of(name, sequence, 40)
        found = log.append(body, count, name, sequence)
        acknowledged = [*acknowledged, (name, sequence, found.start, len(found))]
    log.close()
    compare(store, acknowledged, most=40)


def test_without_syncs_a_loss_of_power_loses_what_was_acknowledged(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, other_boot: Callable[[], None]
) -> None:
    """The test above would notice."""
    store = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(store_log, "datasync", lambda fd: None)
        recorder = Recorder(store / "log", patched)
        session(store, recorder, rng)
    again = tmp_path / "again"
    (again / "log").mkdir(parents=True)
    image = Image(again / "log")
    for done, files in recorder.disk.images(200, rng):
        image.put(files)
        other_boot()
        try:
            compare(again, [t for at, t in recorder.told if at <= done], most=40)
        except AssertionError:
            return
    pytest.fail("nothing was lost")


def test_the_points_are_found() -> None:
    assert len(POINTS) >= 15
    assert frames_of
