"""A hub that reads its log, and those who append to it, under kill -9: each event is taken exactly once."""

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import HERE, Process, Server, until
from pushed_app import Number, Seen, Sent

from secondpass import Log, reference
from secondpass.engine.eventlog import decode
from secondpass.errors import StoreError
from secondpass.store.database import Store
from secondpass.store.log import StoredLog
from secondpass.store.logreader import LogReader

NAME = "pushed_app.py"
POINTS = [
    "take.before",
    "take.after",
    "commit.before",
    "commit.write.after",
    "commit.sync.before",
    "commit.after",
    "deliver.before",
    "deliver.after",
    "log.retain.before",
    "log.retain.after",
    "finish.before",
    "close.after",
]


class Live:
    """A directory with the app, its log and its output."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory = directory
        self.server = server
        self.store = directory / ".secondpass" / "pushed"
        self.sent: list[Sent] = []
        """Everything that was appended, in the log's order."""
        shutil.copy(HERE / NAME, directory / NAME)

    def send(self, rng: random.Random, count: int) -> None:
        log = Log(self.store)
        last: dict[str, int] = {}
        for event in self.sent:
            last[event.by] = event.n
        for _ in range(count):
            by = rng.choice("abc")
            first = last.get(by, -1) + 1
            size = rng.randint(1, 5)
            events = [Sent(n=n, by=by, time=float(n)) for n in range(first, first + size)]
            assert log.append(events, producer=by).start == len(self.sent)
            last[by] = first + size - 1
            self.sent += events
        log.close()

    def start(self, *options: str, **env: str) -> Process:
        # The limit ends the run, which would wait for more.
        taken = self.position
        arguments = ["run", NAME, "--limit", str(len(self.sent) - taken), *options]
        settings = {"SECONDPASS_EPOCH_RECORDS": "7", "SECONDPASS_TEST_LOG": "300", **env}
        return self.server.start(self.directory, self.directory / "log.txt", arguments, settings)

    @property
    def position(self) -> int:
        try:
            store = Store.open_to_read(self.store)
        except StoreError:
            return 0  # there is none yet
        try:
            return store.progress.position
        finally:
            store.close()

    def check(self) -> None:
        """All that was sent was taken once, in the log's order, and put out once."""
        wanted = reference.run([Number()], self.sent)
        found = [json.loads(line) for line in (self.directory / "out.jsonl").read_text().splitlines()]
        assert [Seen(**event) for event in found] == wanted.streams["main"]
        store = Store.open_to_read(self.store)
        try:
            letters = [letter.position for _, _, letter in store.letters()]
        finally:
            store.close()
        assert letters == [letter.position for letter in wanted.dead_letters]


@pytest.fixture
def live(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Live:
    monkeypatch.setattr("secondpass.store.log.SEGMENT_BYTES", 800)
    return Live(tmp_path, server)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_hub_killed_at_a_point_takes_each_event_once(
    live: Live, point: str, number: int, rng: random.Random
) -> None:
    live.send(rng, 60)
    once = number if not point.startswith(("finish.", "close.")) else 1
    assert live.start(SECONDPASS_KILL_AT=f"{point}:{once}").wait() == -9
    live.send(rng, 10)
    assert live.start().wait() == 0, (live.directory / "log.txt").read_text()
    live.check()


def test_a_hub_killed_again_and_again_while_events_arrive_takes_each_once(
    live: Live, rng: random.Random
) -> None:
    live.send(rng, 5)
    stop = threading.Event()
    sending = random.Random(rng.random())

    def send() -> None:
        while not stop.is_set():
            live.send(sending, 5)

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(12):
        before = live.position
        process = live.server.start(
            live.directory, live.directory / "log.txt", ["run", NAME], {"SECONDPASS_EPOCH_RECORDS": "20"}
        )
        until(lambda before=before: live.position > before)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    stop.set()
    thread.join()
    if live.position < len(live.sent):
        assert live.start().wait() == 0
    live.check()


def test_a_producer_killed_again_and_again_that_sends_again_is_taken_once(
    live: Live, rng: random.Random
) -> None:
    """It sends line after line of a list that it has, with the line's number as the sequence."""
    code = (
        "import sys; from secondpass import Log; from pushed_app import Sent\n"
        "log = Log(sys.argv[1])\n"
        "last = log.last('a')\n"
        "for n in range(last.sequence if last else 0, 200):\n"
        "    log.append([Sent(n=n, by='a', time=float(n))], producer='a', sequence=n)\n"
    )
    command = [sys.executable, "-c", code, str(live.store)]
    points = [
        "log.append.before",
        "log.write.before",
        "log.write.after",
        "log.sync.after",
        "log.append.after",
    ]
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        env = {"PYTHONPATH": str(HERE), "SECONDPASS_KILL_AT": f"{rng.choice(points)}:{rng.randint(2, 40)}"}
        codes.append(subprocess.run(command, env=env, timeout=60, check=False).returncode)
        assert codes[-1] in {0, -signal.SIGKILL}
    assert len(codes) > 4
    live.sent = [Sent(n=n, by="a", time=float(n)) for n in range(200)]
    assert list(_events(live.store)) == live.sent
    assert live.start().wait() == 0
    live.check()


def _events(store: Path) -> Iterator[object]:
    log = StoredLog(store)
    reader = LogReader(log)
    try:
        for frame, body in reader.frames(1_000_000):
            yield from decode(body, frame.first)
    finally:
        reader.close()
        log.close()


def test_a_stopped_run_leaves_the_rest_to_the_next(live: Live, rng: random.Random) -> None:
    live.send(rng, 50)
    process = live.server.start(live.directory, live.directory / "log.txt", ["run", NAME], {})
    until(lambda: live.position == len(live.sent))
    process.kill(signal.SIGTERM)
    assert process.wait(10) == 0
    live.send(rng, 10)
    assert live.start().wait() == 0
    live.check()
