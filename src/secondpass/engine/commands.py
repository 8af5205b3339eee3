"""Commands that wait for an app, in the order in which they came: from the spool, and from this process.

What is asked of a dead letter is an epoch of its own; what is asked of the chain or the app is done between two epochs.
A command that cannot be done is left out, which is recorded with its reason: it must not stop this start or any later
one. Its file goes once it is committed, and is recognised if a crash comes in between.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from secondpass.app import App
from secondpass.engine.chain import Chain
from secondpass.engine.changes import TO_CHAIN, CrewMaker, Preparation
from secondpass.engine.epoch import Epoch
from secondpass.engine.intake import Intake
from secondpass.engine.outbox import decode_event
from secondpass.engine.quarantine import KILLED
from secondpass.errors import StoreError
from secondpass.event import owned, untyped
from secondpass.record import INTAKE, Firing, Retry, error_text
from secondpass.store.database import Store
from secondpass.store.format import Progress, StoredLetter
from secondpass.store.spool import Command, Spool

KEPT = 64
"""So many names of done commands are remembered in the progress record."""
_LOOK_S = 0.005
LETTERS = ("retry", "drop")


@dataclass
class Answer:
    """What becomes of a command, for whoever waits for it."""

    done: threading.Event = field(default_factory=threading.Event)
    position: int | None = None
    refusal: str | None = None

    def close(self, *, stays: bool) -> None:
        """The run has ended; a command that is kept beside the store `stays` for the next."""
        if not stays:
            self.refusal = "the run has ended"
        self.done.set()


class _Waiting:
    """A command, by its name; with what came along from this process."""

    def __init__(
        self,
        name: str,
        command: Command,
        given: Any = None,
        answer: Answer | None = None,
        *,
        kept: bool = True,
    ) -> None:
        self.name = name
        self.command = command
        self.kept = kept
        """Whether it has a file beside the store."""
        self.given = given
        self.answer = answer
        self.preparation: Preparation | None = None


class Commands:
    """The commands that wait for one app."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        chain: Chain,
        app: App,
        make_crew: CrewMaker,
        began_at: float,
    ) -> None:
        self._spool = Spool(store.directory) if store.directory is not None else None
        self._store = store
        self._intake = intake
        self._chain = chain
        self.app = app
        """The app that tasks are loaded from: another one, once its file was read again."""
        self._make_crew = make_crew
        self._given: deque[_Waiting] = deque()
        self._waiting: list[_Waiting] = []
        self._asked: dict[str, Answer] = {}
        """Who waits, in a process of their own, for what becomes of a command."""
        self._seen: set[str] = set()
        self._closed = False
        self._began_at = began_at
        self._renames = store.renames()  # since the start they stay as they are
        self.refusal: str | None = None
        """Why what is asked of the dead letter at hand is left out."""

    def give(self, command: Command, given: Any = None) -> Answer:
        """A command from this process; may be called by any thread."""
        answer = Answer()
        if self._closed:
            answer.close(stays=False)
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.here"
        self._given.append(_Waiting(name, command, given, answer, kept=False))
        return answer

    def ask(self, name: str, command: Command) -> Answer:
        """A command from another process, durable when this returns; may be called by any thread.

        Raises `StoreError` where it cannot be kept.
        """
        assert self._spool is not None
        answer = self._asked[name] = Answer()  # first: whoever finds the file finds who waits for it
        try:
            self._spool.put(command, name)
        except StoreError:
            self._asked.pop(name, None)
            raise
        if self._closed:
            answer.close(stays=True)
        return answer

    def _oldest(self) -> _Waiting | None:
        if self._spool is not None and not self._waiting:
            for name, command in self._spool.waiting():
                if name in self._store.progress.commands:
                    self._spool.remove(name)  # a crash came between its commit and this
                    if (answer := self._asked.pop(name, None)) is not None:
                        answer.done.set()  # it was done before it was asked for again
                elif name not in self._seen:
                    self._seen.add(name)
                    self._waiting.append(_Waiting(name, command, answer=self._asked.pop(name, None)))
        while self._given:
            self._waiting.append(self._given.popleft())
        return self._waiting[0] if self._waiting else None

    # ---- of the chain and the app

    def next_change(self, *, wait: bool = False) -> Preparation | Command | None:
        """The oldest command, if it is one to the chain (once it is ready) or to the app; with `wait`, when it is.

        What was left for this run comes before its first event, and is waited for.
        """
        found = self._oldest()
        if found is None or found.command.kind in LETTERS:
            return None
        if found.command.kind not in TO_CHAIN:
            return found.command
        if found.preparation is None:
            found.preparation = Preparation(
                found.command, self.app, self._chain, self._store, self._make_crew, found.given
            )
        if wait or self.too_late(found.command):
            found.preparation.wait()
            while not found.preparation.warm():
                time.sleep(_LOOK_S)  # between two looks at workers that start
            return found.preparation
        return found.preparation if found.preparation.ready and found.preparation.warm() else None

    def too_late(self, command: Command) -> bool:
        """Whether it was given before this run."""
        return command.at < self._began_at

    def settle_change(
        self, progress: Progress, details: dict[str, Any], refusal: str | None
    ) -> tuple[str, Any]:
        """What to commit of the command at hand, noted in `progress`: its history."""
        found = self._waiting[0]
        command = found.command
        if found.kept:
            progress.commands = [*progress.commands, found.name][-KEPT:]
        if command.timetable:
            progress.timetables = {**progress.timetables, command.timetable: command.due}
        told = {
            "command": found.name,
            "asked": command.kind,
            "task": command.task,
            "by": command.by,
            "at": command.at,
        }
        if refusal is not None and command.timetable and refusal.endswith("already"):
            return "timetable", {**told, "reason": f"{command.reason}; {refusal}"}
        if refusal is not None:
            return "left out", {**told, "reason": refusal}
        return "command", {**told, "reason": command.reason, **details}

    # ---- of dead letters

    @property
    def letter_waits(self) -> bool:
        """Whether the oldest command is about a dead letter."""
        found = self._oldest()
        return found is not None and found.command.kind in LETTERS

    def next_epoch(self, number: int) -> Epoch | None:
        """The oldest waiting command as an epoch; None when none waits, or none of a dead letter."""
        found = self._oldest()
        if found is None or found.command.kind not in LETTERS:
            return None
        return self._epoch(number, self._store.progress, found.command)

    def _epoch(self, number: int, progress: Progress, command: Command) -> Epoch:
        self.refusal, retry = None, Retry(command.letter, INTAKE, None)
        events: list[Any] = []
        dangerous = False
        found = self._store.letter(command.letter)
        if found is None:
            self.refusal = f"there is no dead letter {command.letter}"
        elif found[0] != "open":
            self.refusal = f"dead letter {command.letter} was {found[0]} already"
        elif command.kind == "retry":
            letter = found[1]
            dangerous = letter.error.startswith(KILLED)
            try:
                event = self._event_of(letter, command)
                task = self._renames.now(letter.task, letter.position)
                self.refusal = self._no_timer(task, event)
                if self.refusal is None:
                    names = [stage.name for stage in self._chain.stages]
                    at = task if task in names else INTAKE
                    retry, events = Retry(command.letter, at, event), [event]
            except Exception as error:  # noqa: BLE001 - data from outside, and a type's own checks may raise anything
                self.refusal = f"dead letter {command.letter} is no event: {error_text(error)}"
        if self.refusal is not None:
            logging.getLogger("secondpass").warning("the %s is left out: %s", command.kind, self.refusal)
        return Epoch(
            number=number,
            first=progress.position,
            count=1,
            events=events,
            origin=range(len(events)),
            times=[progress.now] * len(events),
            refused={},
            now=progress.now,
            now_after=progress.now,
            offsets=progress.sources,
            kinds=set(map(type, events)),
            retry=retry,
            dangerous=dangerous,
        )

    def _no_timer(self, task: str, event: Any) -> str | None:
        """Why a timer cannot be fired again; None where it can, or where it is no timer. Raises for what is no key of it."""
        if not isinstance(event, Firing):
            return None
        for stage in self._chain.stages:
            if stage.name == task and event.timer in stage.timers:
                stage.timers[event.timer].wake(event.key)
                return f"{task} is stopped; start it first" if stage.stopped else None
        return f"the timer {event.timer} that it is about has gone"

    def _event_of(self, letter: StoredLetter, command: Command) -> Any:
        """The event to send again: as it was, or mended with new fields."""
        event = decode_event(letter.event)
        if event is None:
            raw = letter.raw if command.event is None else msgspec.json.encode(command.event)
            return self._intake.decode(letter.source, raw)
        if command.event is None:
            return event
        if isinstance(event, dict):
            return untyped(command.event)
        return owned(msgspec.convert({**msgspec.to_builtins(event), **command.event}, event.__class__))

    def settle(self, progress: Progress) -> tuple[tuple[str, Any], dict[int, str]]:
        """What to commit of the command at hand, noted in `progress`: its history, and its letter's status."""
        found = self._waiting[0]
        name, command = found.name, found.command
        if found.kept:
            progress.commands = [*progress.commands, name][-KEPT:]
        details = {"letter": command.letter, "command": name, "by": command.by, "at": command.at}
        details["reason"] = self.refusal or command.reason
        if self.refusal is not None:
            return ("left out", details), {}
        return (command.kind, details), {command.letter: "sent" if command.kind == "retry" else "dropped"}

    def done(self, position: int | None = None, refusal: str | None = None) -> None:
        """The command at hand is committed, or has stopped the app: it must not come again."""
        found = self._waiting.pop(0)
        self._seen.discard(found.name)
        # Who asks may do so late: where the file was left before the hub could read the line.
        for answer in (found.answer, self._asked.pop(found.name, None)):
            if answer is not None:
                answer.position, answer.refusal = position, refusal
                answer.done.set()
        if found.kept and self._spool is not None:
            self._spool.remove(found.name)

    def close(self) -> None:
        """The run has ended: nobody here answers any more."""
        self._closed = True  # first: whoever gives one from now on sees it, or is seen below
        for found in [*self._waiting, *self._given]:
            if found.preparation is not None:
                found.preparation.give_up()
            if found.answer is not None:
                found.answer.close(stays=found.kept)
        for answer in list(self._asked.values()):
            answer.close(stays=True)
