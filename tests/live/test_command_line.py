"""Commands by the real command line to a real process: what it put out is what the plain loop gives for its record."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import live_app
import msgspec
import pytest
from live_app import Seen
from test_commands import CHAIN, meant

from secondpass.control import Control
from secondpass.errors import StoreError
from secondpass.store.reader import StoreReader

GIVEN = (
    ("task", "stop", "Count"),
    ("task", "start", "Count"),
    ("task", "start", "Count", "--fresh"),
    ("task", "stop", "Marked"),
    ("task", "start", "Marked"),
    ("task", "set", "First.window_s=0.5"),
    ("task", "set", "First", "window_s=5"),
    ("task", "set", "Count.step=3"),
    ("task", "set", "Marked.mark=z"),
    ("task", "set", "Marked.mark=17"),  # refused: no text
    ("task", "remove", "Count"),
    ("task", "add", "Count", "--before", "Marked"),
    ("task", "add", "Count"),
    ("task", "replace", "First", "--trial", "5"),
    ("task", "replace", "Count"),
    ("task", "drop", "Count", "total", "--yes"),
    ("pause",),
    ("resume",),
)


def secondpass(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "secondpass", *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "SECONDPASS_"))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def position(store: Path) -> int:
    try:
        reader = StoreReader.open_to_read(store)
    except StoreError:
        return 0  # it is not there yet
    try:
        return reader.progress.position
    finally:
        reader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_with_commands_by_the_command_line_gives_what_the_plain_loop_gives(
    tmp_path: Path, rng: random.Random, workers: int
) -> None:
    shutil.copy(live_app.__file__, tmp_path)
    source, store = tmp_path / "input.jsonl", tmp_path / ".secondpass" / "live"
    source.touch()
    events: list[Seen] = []
    over = threading.Event()

    def feed() -> None:
        with source.open("a") as file:
            while not over.wait(0.005):
                for _ in range(rng_of_feed.randrange(20)):
                    events.append(Seen(n=len(events), time=len(events) / 10))
                    file.write(json.dumps({"n": events[-1].n, "time": events[-1].time}) + "\n")
                file.flush()

    rng_of_feed = random.Random(rng.random())
    feeder = threading.Thread(target=feed)
    codes: list[int] = []
    hub = secondpass(tmp_path, "run", "live_app.py", "--follow", "--workers", str(workers), "-q")
    try:
        feeder.start()
        while position(store) < 100:
            assert hub.poll() is None, hub.communicate()
            time.sleep(0.02)
        for command in (*rng.sample(GIVEN, 6), ("resume",), ("task", "start", "Marked")):
            giving = secondpass(tmp_path, *command)
            _, err = giving.communicate(timeout=100)
            assert giving.returncode == 0 or err.startswith("error: refused: "), (command, err)
            codes.append(giving.returncode)
        over.set()
        feeder.join()
        assert codes.count(0) >= 2
        deadline = time.monotonic() + 60
        while position(store) < len(events) + codes.count(0):
            assert hub.poll() is None, hub.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ending = secondpass(tmp_path, "stop")
        ending.communicate(timeout=60)
        assert ending.returncode == 0
        hub.communicate(timeout=60)
        assert hub.returncode == 0
    finally:
        over.set()
        if hub.poll() is None:
            hub.send_signal(signal.SIGKILL)
            hub.communicate()
    history = Control(store).history()
    assert sum(entry["kind"] == "command" for entry in history) == codes.count(0) + 1
    want = meant(CHAIN, events, history)
    for stream, file in (("main", "kept.jsonl"), ("odd", "odd.jsonl")):
        lines = (tmp_path / file).read_bytes().splitlines()
        assert [msgspec.json.decode(line, type=Seen) for line in lines] == want.streams.get(stream, []), (
            stream
        )
