"""THE LOOP: what the hub does, over and over.

take        the records after the last committed position
run         each started task over the epoch, in chain order
commit      positions, deltas, outputs, dead letters, commands: one transaction
deliver     the outputs to the sinks, each with its number
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from secondpass.engine.chain import Chain, Cut
from secondpass.engine.changes import Applied, Preparation
from secondpass.engine.commands import Commands
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.hazard import Hazard
from secondpass.engine.intake import Intake
from secondpass.engine.lookups import OWNER, Lookups, Reload
from secondpass.engine.outbox import Outbox, encode_event, stored_letter
from secondpass.engine.pacer import Pacer
from secondpass.engine.reclaim import Reclaim
from secondpass.engine.summary import Summary, merge_tally
from secondpass.engine.ticks import Ticks
from secondpass.engine.timetables import Timetables
from secondpass.errors import ChangeRefused, TaskError
from secondpass.failpoints import failpoint
from secondpass.garbage import not_collected
from secondpass.record import error_text
from secondpass.reference import Tally, stop_error
from secondpass.store.database import Store
from secondpass.store.format import Progress
from secondpass.store.spool import Command
from secondpass.timetable import Timetable

_IDLE_MIN_S, _IDLE_MAX_S, _AWAKE_S = 0.001, 0.05, 2.0
WARMING_S = 0.02
"""Until workers have started, which takes a tenth of a second, the hub works so long between two looks at them."""
TRIED_AT_ONCE = 1000
"""So many records at most are tried by another process in one go: what is behind one that ends it is sent once more."""
SHORTER = 8
"""So many times shorter epochs are while cells are deleted for a command."""


class Hub:
    """One running app: intake, chain, store and outbox, and the loop through them."""

    def __init__(
        self,
        intake: Intake,
        chain: Chain,
        store: Store,
        outbox: Outbox,
        summary: Summary,
        commands: Commands,
        lookups: Lookups,
        timetables: tuple[Timetable, ...] = (),
    ) -> None:
        self.intake = intake
        self.chain = chain
        self.store = store
        self.outbox = outbox
        self.summary = summary
        self.pacer = Pacer()
        self.commands = commands
        self.lookups = lookups
        self.timetables = Timetables(timetables, commands)
        self.hazard: Hazard | None = None
        self.ticks = Ticks()
        self.ticking = True
        """Whether time passes on an idle stream."""
        self.held: deque[tuple[str, float]] = deque(maxlen=1000)
        """The last commands to the chain, and how long each held up the stream, in seconds."""
        self.stopping = False
        self.limit: int | None = None
        self.on_epoch: Callable[[Hub], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        """The chain is another from here on."""
        self.sleep: Callable[[float], None] = time.sleep
        self._reclaim: Reclaim | None = None
        """What is deleted before the command at hand gets its position."""
        self._spent: Reclaim | None = None
        self._rest: Epoch | None = None
        """What was taken with the epoch at hand, and could not run with it."""
        self._active_at = time.monotonic()
        self._tallies = {
            name: msgspec.convert(tally, Tally) for name, tally in store.progress.tallies.items()
        }
        for stage in chain.stages:
            self._tallies.setdefault(stage.name, Tally())

    def run(self) -> None:
        """Run until the input ends or somebody asks to stop."""
        while not self.stopping:
            with not_collected():
                obeyed = self.obey()
            if obeyed:
                continue
            if self.store.progress.paused and not self.commands.letter_waits:
                self.ticks.busy()
                self.wait()
                continue
            began = time.perf_counter()
            with not_collected():
                epoch = self.take()  # 1. take
                if epoch is None:
                    if self.summary.ended != "limit" and self.obey(wait=True):
                        continue  # something was being made ready
                    break
                if epoch.count:
                    epoch = self.safe_part(epoch)
                outcome = self.run_epoch(epoch) if epoch.count else None  # 2. run
            if outcome is None:
                self.wait()
                continue
            rows = self.commit(epoch, outcome)  # 3. commit
            self.outbox.deliver(rows, outcome.streams)  # 4. deliver
            if not self.chain.warming:
                self.pacer.ran(epoch.count, time.perf_counter() - began, heavy=self.chain.placement.heavy)
            self.on_epoch(self)
        self.finish()

    # ---- between two epochs

    def obey(self, *, wait: bool = False) -> bool:
        """Do the oldest command to the chain or the app, if there is one and it is ready; whether there was."""
        if self._spent is not None and self._spent.free():
            self._spent = None
        if self._rest is not None or self.chain.judged(self.store.progress.position):
            return False
        reload = self.lookups.ready()
        if reload is not None:
            self._reload(reload)
            return True
        self.timetables.look(self.store.progress.timetables)
        found = self.commands.next_change(wait=wait)
        if found is None:
            return False
        if isinstance(found, Command):
            self._command(found)
            return True
        refusal, applied, began = found.refusal, None, time.perf_counter()
        if refusal is None:
            if not self._reclaimed(found):
                return wait
            try:
                applied = Applied(found, self.chain, self.store)
            except ChangeRefused as error:
                refusal = str(error)
        if refusal is not None or applied is None:
            found.give_up()
            self._record_command({}, refusal)
            return True
        position = self.store.progress.position
        for link in applied.links:
            self._tallies.setdefault(link.name, Tally())
            self.summary.tasks.setdefault(link.name, Tally())
        details = {**found.details, **applied.told()}
        self._record_command(details, None, applied)
        applied.take_effect()
        self.on_change()
        self.commands.app = found.app
        self.summary.changes.append(f"position {position}: {applied.change.kind} {applied.change.task}")
        self.held.append((found.command.kind, time.perf_counter() - began))
        return True

    def _reclaimed(self, found: Preparation) -> bool:
        """Delete some of what a longer time to live would bring back; whether nothing of that is left."""
        if self._reclaim is None:
            self._reclaim = found.reclaim()
        deltas, done = self._reclaim.step(self.store.progress.now)
        if deltas:
            failpoint("reclaim.before")
            self.store.commit(msgspec.structs.replace(self.store.progress), deltas, [], [])
            failpoint("reclaim.after")
        if done:
            self._reclaim, self._spent = None, self._reclaim
        else:
            self._active_at = time.monotonic()  # there is more to do: no long sleep
        return done

    def _command(self, command: Command) -> None:
        """A command to the app as a whole."""
        paused, refusal = self.store.progress.paused, None
        if command.kind == "end":
            if self.commands.too_late(command):
                refusal = "it was meant for a run that had ended"
            else:
                self.stopping = True
        elif (command.kind == "pause") == paused:
            refusal = "it is paused already" if paused else "it is not paused"
        else:
            paused = not paused
        self._record_command({}, refusal, paused=paused)

    def _reload(self, reload: Reload) -> None:
        """Let a lookup hold what was loaded, from the next event on."""
        began, position = time.perf_counter(), self.store.progress.position
        failpoint("reload.before")
        if self.hazard is not None:
            self.hazard.command_at(position)
        deltas: dict[Any, Any] = {(OWNER, reload.name): reload.delta}
        self.store.commit(self._progress_with(position + 1), deltas, [], [], [("command", reload.noted())])
        failpoint("reload.after")
        self.lookups.take(reload)
        self.summary.position = position + 1
        self.summary.commands += 1
        logging.getLogger("secondpass").info(
            "position %d: lookup %s loaded again: %s", position, reload.name, reload.told
        )
        self.held.append(("reload", time.perf_counter() - began))

    def _progress_with(self, position: int) -> Progress:
        """Where the app stands after a record that is no event."""
        before = self.store.progress
        return msgspec.structs.replace(
            before,
            position=position,
            tallies=dict(self._tallies),
            numbers=dict(before.numbers),
            totals=dict(before.totals),
            kept_from=dict(before.kept_from),
        )

    def _record_command(
        self,
        details: dict[str, Any],
        refusal: str | None,
        applied: Applied | None = None,
        *,
        paused: bool | None = None,
    ) -> None:
        """Commit what became of a command: one that is done takes a position."""
        before = self.store.progress
        failpoint("command.before")
        if self.hazard is not None and refusal is None:
            self.hazard.command_at(before.position)
        progress = self._progress_with(before.position + (refusal is None))
        progress.paused = before.paused if paused is None else paused
        entry = self.commands.settle_change(progress, details, refusal)
        if refusal is not None and entry[0] == "left out":
            logging.getLogger("secondpass").warning("a command is left out: %s", refusal)
        deltas, new = ({}, None) if applied is None else (applied.deltas, applied.new)
        self.store.commit(progress, deltas, [], [], [entry], chain=new)
        failpoint("command.after")
        self.summary.position = progress.position
        if refusal is None:
            self.summary.commands += 1
            told = f"{entry[1]['asked']} {entry[1]['task']}".strip()
            logging.getLogger("secondpass").info("position %d: %s", before.position, told)
        self.commands.done(before.position, refusal)

    # ---- 1. take

    def take(self) -> Epoch | None:
        """The next records, waiting for none; commands first, each an epoch of its own. A paused app takes only these."""
        failpoint("take.before")
        progress = self.store.progress
        number = self.store.epoch + 1
        if self._rest is not None:
            rest, self._rest = self._rest, None
            self.ticks.busy()
            return rest
        # A verdict is about a position that is still to come: until then nothing else may take one.
        judged = self.chain.judged(progress.position) and not progress.paused
        command = None if judged else self.commands.next_epoch(number)
        if command is not None:
            return command
        self.chain.warm_up()
        limit = self.pacer.limit()
        if self.chain.warming:
            limit = min(limit, int(WARMING_S / self.chain.placement.cost_s()) or 1)
        if self._reclaim is not None:
            limit = max(1, limit // SHORTER)  # a command waits for what is done between two epochs
        if self.limit is not None:
            limit = min(limit, self.limit - self.summary.events_in)
            if limit <= 0:
                self.summary.ended = "limit"
                return None
        if self._scouts(progress.position):
            limit = min(limit, TRIED_AT_ONCE)
        epoch = self.intake.take(number, progress.position, progress.now, limit)
        if judged and (epoch is None or not epoch.count):  # it was on a command's event
            epoch = self.commands.next_epoch(number) or epoch
        if epoch is not None and not epoch.count and not judged and self.intake.following:
            epoch = self._tick(epoch) or epoch
        else:
            self.ticks.busy()
        failpoint("take.after")
        return epoch

    def _tick(self, idle: Epoch) -> Epoch | None:
        """Nothing is there to read: where that makes a timer due, the time that has passed is the next record."""
        time = self.ticks.due(idle.now, self.chain.earliest()) if self.ticking else None
        return None if time is None else Epoch.of_tick(idle.number, idle.first, time, idle.now, idle.offsets)

    def wait(self) -> None:
        """Nothing there: look again soon after activity, seldom after a silence."""
        self.outbox.sync()
        idle_s = time.monotonic() - self._active_at
        self.sleep(_IDLE_MIN_S if idle_s < _AWAKE_S else _IDLE_MAX_S)
        self.on_epoch(self)

    # ---- 2. run

    def _scouts(self, position: int, *, dangerous: bool = False) -> bool:
        """Whether another process runs what begins here before this one does."""
        crew, hazard = self.chain.crew, self.hazard
        if crew is None or hazard is None or not crew.may_scout or not self.chain.has_timers:
            return False
        return dangerous or hazard.covers(position)

    def safe_part(self, epoch: Epoch) -> Epoch:
        """The part of an epoch that may run now: where its records have ended this process, another one tries them first."""
        if not self._scouts(epoch.first, dangerous=epoch.dangerous) or (epoch.retry and not epoch.events):
            return epoch
        from secondpass.engine.scouting import Scouting  # only after a crash

        crew, directory = self.chain.crew, self.store.directory
        assert crew is not None
        assert directory is not None
        try:
            passes = Scouting(crew, self.chain.stages, directory).passes(epoch)
        except Cut as cut:
            raise self._stop(epoch, cut) from cut.error
        if passes == epoch.count:
            return epoch
        self._rest = epoch.rest(passes)
        return epoch.cut(passes, self.intake.places_at(epoch.behind + passes))

    def run_epoch(self, epoch: Epoch) -> Outcome:
        """Run the chain; where a task must stop the app, commit what precedes and raise."""
        self._active_at = time.monotonic()
        if epoch.retry is not None and not epoch.events:
            return Outcome()  # a dead letter is dropped, or the command is left out
        try:
            # What another process has tried runs in the same way as there.
            careful = self.pacer.careful or epoch.retry is not None or self._scouts(epoch.first)
            with self._in_hand(epoch):
                return self.chain.run(epoch, careful=careful)
        except Cut as cut:
            self.chain.discard()
            raise self._stop(epoch, cut) from cut.error

    @contextlib.contextmanager
    def _in_hand(self, epoch: Epoch) -> Generator[None]:
        """Note what runs in this process, for the next start if this one does not survive it."""
        hazard, placement = self.hazard, self.chain.placement
        if hazard is not None and epoch.retry is not None:
            hazard.command_at(epoch.first)
        elsewhere = self.chain.crew is not None and not self.chain.has_timers
        if hazard is None or (epoch.dangerous and elsewhere):
            yield
            return
        if placement.isolated:
            placement.isolated = hazard.covers(epoch.first)
        if placement.isolated:
            yield
            return
        hazard.begin(epoch.first, epoch.count)
        try:
            yield
        finally:
            hazard.end()

    def _stop(self, epoch: Epoch, cut: Cut) -> TaskError:
        """Commit what precedes the event that stops the app; gives the error to raise."""
        if epoch.retry is not None:
            # Its retry must not stop every later start.
            self.commands.refusal = f"it stopped the app: {error_text(cut.error)}"
            self.commit(dataclasses.replace(epoch, events=[]), Outcome())
            return stop_error(cut.task, epoch.first, cut.event, cut.error, epoch.retry.letter)
        if cut.index > 0:
            part = epoch.cut(cut.index, self.intake.places_at(epoch.behind + cut.index))
            try:
                with self._in_hand(part):
                    outcome = self.chain.run(part, careful=True)
            except Cut as earlier:
                # A later task stops the app at an earlier event.
                self.chain.discard()
                return self._stop(epoch, earlier)
            self.outbox.deliver(self.commit(part, outcome), outcome.streams)
            self.finish()
        return stop_error(cut.task, epoch.first + cut.index, cut.event, cut.error)

    # ---- 3. commit

    def commit(self, epoch: Epoch, outcome: Outcome) -> list[Any]:
        """Make the epoch durable; gives the outputs to deliver."""
        self.intake.verify()
        rows = self.outbox.rows(self.store, outcome.streams, epoch.first)
        before = self.store.progress
        for name, tally in outcome.tallies.items():
            merge_tally(self._tallies.setdefault(name, Tally()), tally)
            merge_tally(self.summary.tasks.setdefault(name, Tally()), tally)
        no_record = epoch.retry is not None and not epoch.events
        progress = msgspec.structs.replace(
            before,
            position=before.position + (0 if no_record else epoch.count),
            now=epoch.now_after,
            sources=epoch.offsets,
            tallies=dict(self._tallies),
            numbers=dict(before.numbers),
            totals=dict(before.totals),
            kept_from=dict(before.kept_from),
            sinks=self.outbox.sync(),
            places={name: msgspec.to_builtins(p) for name, p in self.chain.placement.placed().items()},
        )
        history: list[tuple[str, Any]] = []
        status: dict[int, str] = {}
        if epoch.retry is not None:
            (kind, details), status = self.commands.settle(progress)
            if epoch.events:  # it may have been mended
                details = {**details, "task": epoch.retry.task, "event": encode_event(epoch.retry.event)}
            history.append((kind, details))
        if epoch.intake_time is not None:
            history.append(("intake", {"count": epoch.count, "time": epoch.intake_time}))
        if epoch.ahead:
            positions = [epoch.first + i for i in epoch.ahead]
            history.append(("ahead", {"positions": positions, "clock": epoch.ahead_of}))
        if epoch.tick is not None:
            history.append(("tick", {"position": epoch.first, "time": epoch.tick}))
        if epoch.taken:
            history.append(("taken", epoch.taken))
        history += [("ordered", decided) for decided in epoch.decided]
        deltas: dict[Any, Any] = dict(outcome.deltas)
        for task, values in outcome.values.items():
            deltas.update({(task, name): _ValueDelta({None: rest}) for name, rest in values.items()})
        letters = [stored_letter(letter) for letter in outcome.letters]
        self.store.commit(progress, deltas, rows, letters, history, status)
        if self._reclaim is not None:
            self._reclaim.wrote(deltas, before.now)
        self.chain.apply(outcome)
        if epoch.retry is not None:
            self.commands.done(epoch.first, self.commands.refusal)
        self._count(epoch, outcome)
        return rows

    def _count(self, epoch: Epoch, outcome: Outcome) -> None:
        summary = self.summary
        summary.epochs += 1
        summary.ticks += epoch.tick is not None
        summary.events_in += epoch.count if epoch.retry is None and epoch.tick is None else 0
        summary.position = self.store.progress.position
        summary.dead_letters += len(outcome.letters)
        summary.outputs_total = dict(self.store.progress.numbers)
        summary.tasks_total = self._tallies
        for stream, (events, _) in outcome.streams.items():
            summary.outputs[stream] = summary.outputs.get(stream, 0) + len(events)
        for stage in self.chain.stages:
            summary.busy_s[stage.name] = stage.busy_s
        summary.placed = self.chain.placement.placed()
        if self.chain.crew is not None:
            self.chain.crew.tell(summary)
        for record in outcome.logged:
            logging.getLogger(record.name).handle(record)

    def finish(self) -> None:
        """Make the sinks durable and record it."""
        failpoint("finish.before")
        states = self.outbox.sync(now=True)
        if states != self.store.progress.sinks:
            self.store.commit(msgspec.structs.replace(self.store.progress, sinks=states), {}, [], [])
        failpoint("finish.after")


class _ValueDelta:
    """A changed value, in the shape of a table's delta."""

    __slots__ = ("changed", "gone")

    def __init__(self, changed: dict[Any, Any]) -> None:
        self.changed = changed
        self.gone: set[Any] = set()
