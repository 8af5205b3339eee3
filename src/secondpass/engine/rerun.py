"""The recorded log through the engine once more, in memory and on every core: the chain, its workers, nothing else.

No store, no sinks: what an epoch puts out goes to whoever asked for the run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from secondpass.app import MAIN, App
from secondpass.aside import aside
from secondpass.engine.chain import Chain, Cut
from secondpass.engine.crew import Crew
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.executor import Executor
from secondpass.engine.lookups import Held
from secondpass.engine.pacer import Pacer
from secondpass.engine.placement import cores, needs_workers, never_inline
from secondpass.engine.recipe import NotPortable, recipe_for
from secondpass.engine.replay import Replay, Restarted, WasLoaded
from secondpass.engine.stage import Stage
from secondpass.engine.standing import Standing
from secondpass.errors import SecondpassError, SetupFailed, TaskError
from secondpass.record import Firing, Retry, Verdict, error_text
from secondpass.reference import stop_error

OnEpoch = Callable[[Epoch, Outcome], None]


class Rerun:
    """A chain on its way through a recorded log; `standing` is where it is."""

    def __init__(self, app: App, replay: Replay, standing: Standing, workers: int | None) -> None:
        self._app = app
        self.replay = replay
        self.standing = standing
        self._workers = workers
        self._crew: Crew | None = None
        self._held = Held(())
        self._pacer = Pacer()
        self.verdicts: list[Verdict] = []
        """Of events that ended workers in this run."""
        self.stopped: TaskError | None = None
        self.busy_s: dict[str, float] = {}
        self._chain = self._new_chain()

    def dismiss(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()

    def close(self) -> None:
        """End the workers, let go of the sources."""
        self.dismiss()
        self.replay.close()

    def changed(self) -> None:
        """The chain of `standing` is another one."""
        self._note_busy()
        if self._crew is not None:
            self._crew.close()
        self._chain = self._new_chain()

    @aside()
    def run(self, upto: int, on_epoch: OnEpoch) -> None:
        """Go on to a position, or to where a task stops it."""
        replay = self.replay
        while replay.position < upto and self.stopped is None:
            began = time.perf_counter()
            item = replay.next(min(self._pacer.limit(), upto - replay.position))
            if item is None:
                break
            if isinstance(item, WasLoaded):
                self.standing.was_loaded(item)
                continue
            if not isinstance(item, Epoch):
                self.standing.links = self._chain.links
                if isinstance(item, Restarted):
                    self.standing.restarted(item, replay.now)
                else:
                    self.standing.commanded(item, replay.now)
                    if item.details["asked"] == "reload":
                        self._held.changed()
                        continue
                self.changed()
                continue
            self._run(item, on_epoch)
            self._pacer.ran(item.count, time.perf_counter() - began, heavy=self._chain.placement.heavy)
        self.standing.links = self._chain.links
        self._note_busy()

    def _run(self, epoch: Epoch, on_epoch: OnEpoch) -> None:
        chain = self._chain
        if epoch.retry is not None:
            at = self.standing.entry(epoch.retry)
            event = epoch.retry.event
            timer = event.timer if isinstance(event, Firing) else None
            if at == len(chain.stages) and timer is None:
                on_epoch(epoch, Outcome(streams={MAIN: ([event], [0])}))
                return
            stage = None if at is None or at == len(chain.stages) else chain.stages[at]
            if stage is None or (timer is not None and (stage.stopped or timer not in stage.timers)):
                on_epoch(epoch, Outcome())
                return
            epoch.retry = Retry(epoch.retry.letter, stage.name, event)
        self._recall_verdicts(epoch)
        try:
            outcome = chain.run(epoch, careful=self._pacer.careful or epoch.retry is not None)
        except Cut as cut:
            chain.discard()
            if cut.index:
                self._run(epoch.cut(cut.index, []), on_epoch)
            if self.stopped is None:  # a later task may stop it at an earlier event
                self.stopped = stop_error(
                    cut.task, epoch.first + cut.index, cut.event, cut.error, to_mend=False
                )
            return
        for (task, table), delta in outcome.deltas.items():
            cells = next(stage for stage in chain.stages if stage.name == task).tables[table]
            cells.update(delta.changed)
            for key in delta.gone:
                cells.pop(key, None)
        chain.apply(outcome)
        self.standing.set_aside(outcome.letters)
        on_epoch(epoch, outcome)

    def _recall_verdicts(self, epoch: Epoch) -> None:
        """What was decided about events of this epoch."""
        if not self.replay.verdicts:
            return
        by_name = {stage.name: stage for stage in self._chain.stages}
        for (position, task, path), verdict in self.replay.verdicts.items():
            if task in by_name and epoch.first <= position < epoch.first + epoch.count:
                by_name[task].verdicts[position, path] = verdict

    @aside()
    def _new_chain(self) -> Chain:
        twin = copy.copy(self._app)
        twin.tasks = tuple(self.standing.tasks())
        self._held = Held(twin.tasks)
        self._crew = self._new_crew(twin)
        stages: list[Stage] = []
        for number, link in enumerate(self.standing.links):
            elsewhere = link.stopped or (self._crew is not None and never_inline(link.task))
            try:
                stages.append(
                    Stage(
                        link.task,
                        link.cells,
                        link.values,
                        elsewhere=elsewhere,
                        number=number,
                        stopped=link.stopped,
                    )
                )
            except SecondpassError:
                raise
            except Exception as error:
                raise SetupFailed(
                    f"task {link.name}: setup() failed: {error_text(error)}", task=link.name
                ) from error
        return Chain(stages, self._crew, dict.fromkeys([*self._app.sinks, *self._app.streams], ()))

    def _new_crew(self, app: App) -> Crew | None:
        asked = self._workers if self._workers is not None else app.workers
        size = cores() if asked is None else asked
        if (
            not app.tasks
            or size == 0
            or (asked is None and size == 1 and not any(map(needs_workers, app.tasks)))
        ):
            return None
        try:
            recipe = recipe_for(app)
        except NotPortable:
            if self._workers is not None:
                raise
            return None

        def start() -> Executor:
            from secondpass.engine.workers import (
                LocalProcesses,  # only a run that sends something out needs it
            )

            return LocalProcesses(recipe, size)

        return Crew(size, start, self.verdicts.append, self._held)

    def _note_busy(self) -> None:
        for stage in self._chain.stages:
            self.busy_s[stage.name] = max(self.busy_s.get(stage.name, 0.0), stage.busy_s)
