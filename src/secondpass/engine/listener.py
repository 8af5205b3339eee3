"""The hub's end of the line on which other processes give commands: a thread that listens, one for each who asks.

A command is durable beside the store before the client hears that it is kept, and is then one of those that wait, like
any other. Where there can be no socket, commands still come by their files.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

from secondpass.engine.commands import Commands
from secondpass.errors import StoreError
from secondpass.store.line import FILE, Answered, Broken, Line, listen

_LOOK_S = 1.0
_CLOSE_S = 2.0
"""So long the answers of what was done last have to reach those who asked."""


class Listener:
    """Takes commands for the app that runs here."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self._path = directory / FILE
        self._commands = commands
        self._asking: set[threading.Thread] = set()
        self._closed = False
        try:
            self._socket = listen(directory)
        except OSError as error:
            logging.getLogger("secondpass").info(
                "no socket in %s (%s): commands come by their files", directory, error.strerror or error
            )
            self._closed = True
            return
        self._socket.settimeout(_LOOK_S)
        self._thread = threading.Thread(target=self._accept, name="secondpass-control", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:  # closed; or no descriptors are left, and commands come by their files
                time.sleep(0 if self._closed else _LOOK_S)
                continue
            line = Line(connection)
            try:
                threading.Thread(
                    target=self._serve, args=(line,), name="secondpass-asked", daemon=True
                ).start()
            except RuntimeError:  # the system gives no more threads
                line.close()

    def _serve(self, line: Line) -> None:
        self._asking.add(threading.current_thread())
        try:
            with contextlib.suppress(Broken, TimeoutError):
                self._answer(line)
        finally:
            line.close()
            self._asking.discard(threading.current_thread())

    def _answer(self, line: Line) -> None:
        try:
            asked = line.asked()
            answer = self._commands.ask(asked.name, asked.command)
        except StoreError as error:
            line.tell(Answered("", refusal=str(error)))
            return
        line.tell(Answered(asked.name))
        if not asked.wait:
            return
        answer.done.wait()
        line.tell(Answered(asked.name, done=True, position=answer.position, refusal=answer.refusal))

    def close(self) -> None:
        """Nobody is heard any more; what was answered still goes out."""
        if self._closed:
            return
        self._closed = True
        self._path.unlink(missing_ok=True)
        self._socket.close()
        until = time.monotonic() + _CLOSE_S
        for thread in list(self._asking):
            thread.join(max(0.0, until - time.monotonic()))


__all__ = ["Listener"]
