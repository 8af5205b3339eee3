"""Other code for a task, tried before it takes over: on a copy of the task's state, in a process of its own.

What may happen there (a crash, an endless loop, an exhausted memory) happens beside the stream. The trial takes the
state over as the change will, with `setup` and `upgrade`, and hands the task the last events that the old code was given.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from secondpass.app import App
from secondpass.aside import aside
from secondpass.binding import look_into
from secondpass.calls import keys_of
from secondpass.change import Link, changed
from secondpass.codec import pack
from secondpass.engine.bundle import decode_events, encode_events
from secondpass.engine.compare import codecs_of
from secondpass.engine.lookups import recorded
from secondpass.engine.recipe import NotPortable, Recipe, load_tasks, recipe_for
from secondpass.errors import ChangeRefused, SecondpassError
from secondpass.lookups import Contents, specs_of
from secondpass.record import Change, error_text
from secondpass.step import CAUGHT, Step
from secondpass.store.database import Store
from secondpass.task import Task

_SAID = 2000  # characters of what a process that died has said


class _Told(msgspec.Struct):
    refusal: str | None
    tried: int


class Trial:
    """One task that is to stand in for another."""

    def __init__(self, app: App, old: Task[Any], new: Task[Any], directory: Path | None) -> None:
        self._old = old
        self._new = new
        self._directory = directory
        twin = copy.copy(app)
        twin.tasks = (old, new)
        try:
            self._recipe: Recipe | None = recipe_for(twin) if directory is not None else None
            if self._recipe is not None and not self._recipe.tasks:
                self._recipe = None
        except NotPortable:
            self._recipe = (
                None  # no other process can load it: the trial is a call less safe, and still a trial
            )

    def run(self, events: list[Any], limit_s: float) -> int:
        """Try the task; gives on how many events, and raises `ChangeRefused` that says why it may not take over."""
        if self._recipe is None:
            return try_on(Link(self._old), self._new, events, 0, float("-inf"))
        asked = pack([self._recipe, str(self._directory), encode_events(events)])
        process = subprocess.Popen(
            [sys.executable, "-m", "secondpass.engine.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, said = process.communicate(asked, timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise ChangeRefused(f"{self._new.name}: its trial took longer than {limit_s:g} s") from None
        if process.returncode != 0:
            last = said.decode(errors="replace").strip()[-_SAID:]
            raise ChangeRefused(
                f"{self._new.name}: its trial ended with {_how(process.returncode)}\n{last}".rstrip()
            )
        told = msgspec.msgpack.decode(out, type=_Told)
        if told.refusal is not None:
            raise ChangeRefused(told.refusal)
        return told.tried


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@aside()
def try_on(old: Link, task: Task[Any], events: list[Any], position: int, now: float) -> int:
    """Let a task take over another's state, and handle events; raises `ChangeRefused`, gives how many it handled."""
    (link,) = changed([old], {}, Change("replace", old.name, task), position, now)
    link.let_go(now)
    step = Step(link.task, link.cells, link.values)
    tried = 0
    for event in events:
        if not step.takes(event):
            continue
        try:
            step.call(event, position, now, (), keys_of(step.task, event))
        except KeyboardInterrupt:
            raise
        except CAUGHT as error:
            raise ChangeRefused(
                f"{task.name} failed in its trial: {error_text(error)}, at {event!r}"
            ) from error
        tried += 1
    return tried


def _answer(message: bytes) -> bytes:
    asked = msgspec.msgpack.decode(message, type=tuple[Recipe, str, msgspec.Raw])
    old, new = load_tasks(asked[0])
    store = Store.open_to_read(Path(asked[1]))
    try:
        with store.snapshot():
            specs = specs_of((old, new))
            held = recorded(store, specs)
            contents = {name: Contents(spec.wake(held[name])) for name, spec in specs.items()}
            old, new = look_into(old, contents), look_into(new, contents)
            found = store.load(codecs_of((old,)))
            position, now = store.progress.position, store.progress.now
    finally:
        store.close()
    shape = type(old)._shape
    values = {n: found[old.name, n][None] for n in shape.values if found[old.name, n]}
    link = Link(old, {n: found[old.name, n] for n in shape.tables}, values)
    events = decode_events(
        msgspec.msgpack.decode(asked[2], type=tuple[list[str | None], list[int] | None, msgspec.Raw])
    )
    try:
        return pack(_Told(None, try_on(link, new, events, position, now)))
    except SecondpassError as error:
        return pack(_Told(str(error), 0))


def main() -> None:
    """The process of a trial: asked on standard input, answers on standard output."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the task prints is no answer
    answer = _answer(sys.stdin.buffer.read())
    with os.fdopen(answers, "wb") as out:
        out.write(answer)


if __name__ == "__main__":
    main()
