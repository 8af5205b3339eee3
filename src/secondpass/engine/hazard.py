"""What is known of the last run's end: which epoch ran in the hub when its process died, and whether that was its own doing.

    running     which records are in the hands of tasks in this process, how often it ended with the same in hand, and
                how often the kernel had killed for want of memory when it began
    crash       the stack that a fatal signal left (faulthandler)
    tried       after a crash: which call a process is in that runs the records before this one does (`scout.Scout`)

Small files beside the store. `running` is mapped into memory, so that a note costs nothing and outlives the
process; it need not outlive the machine. After a crash the next runs keep the tasks out of their own process until those
records are committed: they find the event that is to blame, and do not crash again. A kill from outside says nothing about
an event, unless the kernel has killed for want of memory meanwhile; but whoever dies twice with the same records in
hand is taken to have died of them. To be wrong costs little: those records run on workers once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secondpass.engine.oom import boot, kills_on_machine

RUNNING, CRASH, TRIED = "running", "crash", "tried"
_NOTE = struct.Struct("<qqqqq")
"""What of them, first position, records, times ended with them in hand, exit code + 1."""
_IN_HAND, _BLAMED = 1, 2
_MACHINE = struct.Struct("<16sq")
"""Which start of the machine, and how often it had killed for want of memory when the run began."""
_SIZE = _NOTE.size + _MACHINE.size
STRIKES = 2


class Hazard:
    """The notes of one store."""

    def __init__(self, directory: Path, position: int) -> None:
        self._crash = directory / CRASH
        self._tried = directory / TRIED
        self.stack = self._crash.read_text(errors="replace") if self._crash.exists() else ""
        path = directory / RUNNING
        with path.open("ab") as file:
            file.truncate(_SIZE)
        with path.open("r+b") as file:
            self._note = mmap.mmap(file.fileno(), _SIZE)
        self._left, self.first, self.count, strikes, exit_code = _NOTE.unpack_from(self._note)
        if self.first + self.count <= position:
            self._left = 0
        self._strikes = strikes + 1 if self._left else 0
        self._until = self.first + self.count if self._left else 0
        self.exit_code = exit_code - 1 if self._left and exit_code else None
        self.for_memory = self._kills_seen()
        evidence = self.stack or self.exit_code is not None or self.for_memory or self._strikes >= STRIKES
        self.found = self._left == _BLAMED or (self._left == _IN_HAND and bool(evidence))
        """Whether the records at hand ended the process that ran them."""
        self._write(_BLAMED if self.found else 0, exit_code=0)
        self._file: Any = None
        self._undo: list[Callable[[], object]] = []

    def _kills_seen(self) -> bool:
        """Whether the kernel has killed for want of memory since the last run began; notes the count for the next."""
        then, now = _MACHINE.unpack_from(self._note, _NOTE.size), (boot(), kills_on_machine())
        _MACHINE.pack_into(self._note, _NOTE.size, *now)
        return then[0] == now[0] and then[1] < now[1]

    def watch(self) -> None:
        """From now on a crash of this process leaves its stack, and an `os._exit` its code."""
        self._file = self._crash.open("wb")
        if faulthandler.is_enabled():
            self._undo.append(lambda: faulthandler.enable(sys.__stderr__ or 2))
        else:
            self._undo.append(faulthandler.disable)
        faulthandler.enable(self._file, all_threads=False)
        before = os._exit

        def noted_exit(status: int) -> Any:
            self._write(_NOTE.unpack_from(self._note)[0], exit_code=status + 1)
            before(status)

        os._exit = noted_exit  # type: ignore[assignment]
        self._undo.append(lambda: setattr(os, "_exit", before))

    def covers(self, first: int) -> bool:
        """Whether the record at this position is among those that ended a run."""
        return self.found and first < self._until

    def command_at(self, position: int) -> None:
        """A command is about to take this place: records that ended a run move on by one."""
        if self.covers(position):
            self.count, self._until = self.count + 1, self._until + 1
            self._write(_BLAMED, exit_code=0)

    def begin(self, first: int, count: int) -> None:
        """These records come into the hands of tasks in this process."""
        if first >= self._until:
            self._strikes = 0
        self.first, self.count = first, count
        self._write(_IN_HAND, exit_code=0)

    def end(self) -> None:
        """They are out of their hands."""
        self._write(0, exit_code=0)

    def _write(self, left: int, *, exit_code: int) -> None:
        _NOTE.pack_into(self._note, 0, left, self.first, self.count, self._strikes, exit_code)

    def told(self) -> str:
        """How the last run ended, in words."""
        records = f"records {self.first} to {self.first + self.count - 1}"
        if self._left == _BLAMED:
            return f"an earlier run ended while it ran {records}, which are not done yet"
        if self.exit_code is not None:
            return f"the last run ended itself with exit code {self.exit_code} while it ran {records}"
        if self.stack:
            return f"the last run crashed while it ran {records}:\n{self.stack.rstrip()}"
        if self.for_memory:
            return f"the last run was killed, it seems for want of memory, while it ran {records}"
        return f"the last {self._strikes} runs were killed while they ran {records}"

    def close(self) -> None:
        """The run has ended well, or with an error that it could tell."""
        for undo in reversed(self._undo):
            undo()
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                self._crash.unlink()
        with contextlib.suppress(OSError):
            self._tried.unlink()
        self._note.close()
