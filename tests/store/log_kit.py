"""Reading a log whole, starting processes that append, and comparing the two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from log_appender import body_of

from secondpass.store.log import StoredLog
from secondpass.store.logreader import LogReader
from secondpass.store.segments import Frame

APPENDER = Path(__file__).with_name("log_appender.py")

Told = tuple[str, int, int, int]
"""What an append was told: producer, sequence, first number, count."""


def frames_of(store: Path, start: int | None = None) -> list[tuple[Frame, bytes]]:
    """All durable frames, as the hub would read them."""
    log = StoredLog(store)
    reader = LogReader(log)
    try:
        reader.seek(reader.oldest if start is None else start)
        found: list[tuple[Frame, bytes]] = []
        while some := reader.frames(7):
            found += some
        return found
    finally:
        reader.close()
        log.close()


def appender(
    store: Path, name: str, *, threads: int = 1, appends: int = 20, most: int = 5, **env: str
) -> Any:
    """Start a process that appends."""
    arguments = [sys.executable, str(APPENDER), str(store), name, str(threads), str(appends), str(most)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, **env})


def told(process: Any, expect: int = 0) -> list[Told]:
    """What a process was told until it ended."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == expect, f"exit code {process.returncode}"
    return [(p, s, f, n) for p, s, f, n in map(json.loads, out.splitlines())]


def compare(store: Path, acknowledged: Iterable[Told], most: int = 5) -> None:
    """What was acknowledged is there once, in its producer's order; what was not is whole or absent."""
    frames = frames_of(store)
    oldest = following = frames[0][0].first if frames else 0
    sequences: dict[str, int] = {}
    there: set[Told] = set()
    for frame, body in frames:
        assert frame.first == following, "numbers have no gaps"
        following += frame.records
        before = sequences.get(frame.producer, -1 if oldest == 0 else frame.sequence - 1)
        assert frame.sequence == before + 1, "the order of a producer"
        sequences[frame.producer] = frame.sequence
        wanted, count = body_of(frame.producer, frame.sequence, most)
        assert (bytes(body), frame.records) == (wanted, count), "a frame is whole"
        there.add((frame.producer, frame.sequence, frame.first, frame.records))
    missing = {t for t in acknowledged if t[2] >= oldest} - there
    assert not missing, f"acknowledged and lost: {sorted(missing)[:5]}"


def records_of(store: Path) -> list[str]:
    return [record for _, body in frames_of(store) for record in msgspec.msgpack.decode(body, type=list[str])]
