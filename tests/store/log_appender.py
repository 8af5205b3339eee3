"""A process that appends to a log from some threads, and says what it was told: one JSON line for each append.

    python log_appender.py STORE NAME THREADS APPENDS MOST

Each thread is a producer of its own, `NAME-THREAD`; a record is the text `NAME-THREAD:SEQUENCE:INDEX`. It goes on where
its last appends ended, and first sends the last one again, as one does who has lost the answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from pathlib import Path

import msgspec

from secondpass.store import log as store_log
from secondpass.store.log import StoredLog

KEPT = os.environ.get("SECONDPASS_TEST_KEPT")
"""All that is durable counts as committed, and so many bytes of it are kept."""


def body_of(producer: str, sequence: int, most: int) -> tuple[bytes, int]:
    """The records of an append: the same whenever it is sent."""
    count = random.Random(f"{producer} {sequence}").randint(1, most)
    return msgspec.msgpack.encode([f"{producer}:{sequence}:{i}" for i in range(count)]), count


def feed(log: StoredLog, producer: str, appends: int, most: int) -> None:
    last = log.last(producer)
    first = 0 if last is None else last.sequence
    for sequence in range(first, first + appends):
        body, count = body_of(producer, sequence, most)
        found = log.append(body, count, producer, sequence)
        told = json.dumps([producer, sequence, found.start, len(found)])
        os.write(1, told.encode() + b"\n")  # at once and whole, whatever happens to the process then
        if KEPT is not None and sequence % 7 == 6:
            log.retain(log.ends.durable, size=int(KEPT))


def main(store: str, name: str, threads: int, appends: int, most: int) -> None:
    store_log.SEGMENT_BYTES = int(os.environ.get("SECONDPASS_TEST_SEGMENT", "20000"))
    log = StoredLog(Path(store))
    feeding = [
        threading.Thread(target=feed, args=(log, f"{name}-{i}", appends, most)) for i in range(threads)
    ]
    for thread in feeding:
        thread.start()
    for thread in feeding:
        thread.join()
    log.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
