"""Records that ended the hub in a chain that runs there as a whole: another process runs them first.

    send out    a process with the whole chain (`scout.Scout`) runs the records that are at hand
    it lives    the hub runs them, and the same process goes on with the next
    it dies     those before the one at which it died may run in the hub; that one is then run alone, in new processes,
                until it runs through or three have died in the same call, which is convicted (`quarantine.Quarantine`)

A convicted call is left out by the process that tries the record next, as it will be by the hub; so each of a
record's calls is found, one after the other.
"""

from __future__ import annotations

from pathlib import Path

from secondpass.engine.bundle import encode_events, parcel
from secondpass.engine.crew import Crew, setup_ended, setup_failed
from secondpass.engine.epoch import Epoch
from secondpass.engine.executor import SETTING_UP, Death, Lost
from secondpass.engine.quarantine import Place, never_left_alone
from secondpass.engine.scout import Call, decode_answer, noted
from secondpass.engine.stage import Cut, Passed, Stage
from secondpass.record import Verdict


class Scouting:
    """A look ahead at the records of an epoch."""

    def __init__(self, crew: Crew, stages: list[Stage], directory: Path) -> None:
        self._crew = crew
        self._stages = stages
        self._directory = directory

    def passes(self, epoch: Epoch) -> int:
        """How many of the epoch's first records end no process, one at least.

        Raises `Cut` where that cannot be found out, since somebody else ends each process that tries.
        """
        quarantine, part, alone = self._crew.quarantine, epoch, False
        suspects: set[Place] = set()
        while (died := self._died(part)) is not None:
            call, death = died
            if call is None:
                self._crew.unexplained(death)
                continue
            if call.position > epoch.first:
                return call.position - epoch.first
            place = (call.position, call.task, call.path)
            if not alone:
                # From here on in new processes: the one that died had run others before.
                alone = death.own or quarantine.killed_at(place)
                if alone and epoch.count > 1:
                    part = epoch.cut(1, [])
                continue
            suspects.add(place)
            quarantine.suspect(place)
            verdict = quarantine.died(place, death)
            if verdict is not None:
                suspects.discard(place)
                self._convict(verdict._replace(crc=call.crc))
            elif quarantine.hopeless(place):
                event = epoch.events[0] if epoch.events else None
                raise Cut(0, self._stage(call.task).given, event, never_left_alone(death), Passed(set()))
        for place in suspects:
            quarantine.survived(place)
        return part.count

    def _died(self, epoch: Epoch) -> tuple[Call | None, Death] | None:
        """Let the process run some records; the call in which it died and how, None where it did not."""
        number = self._crew.next_number()
        found = self._crew.ask_scout(number, parcel(self._errand(epoch, number)))
        if not isinstance(found, Lost):
            failed = decode_answer(found.answer.body)
            if failed is not None:
                raise setup_failed(failed.task, failed.text, failed.trace)
            return None
        death = found.death
        if death.bundle != number or (death.event < 0 and death.event != SETTING_UP):
            return None, death
        call = noted(self._directory)
        if death.event == SETTING_UP:
            if death.own or self._crew.setups_lost(call.task):
                raise setup_ended(call.task, death)
            return None, death
        return call, death

    def _errand(self, epoch: Epoch, number: int) -> tuple[object, ...]:
        """As `scout.Errand` has it."""
        return (
            number,
            str(self._directory),
            [(stage.number, stage.stopped) for stage in self._stages],
            epoch.first,
            epoch.count,
            epoch.now,
            encode_events(epoch.events),
            list(epoch.origin),
            epoch.times,
            list(epoch.refused),
            epoch.tick,
            None if epoch.retry is None else epoch.retry.task,
            [verdict for stage in self._stages for verdict in stage.verdicts.values()],
        )

    def _convict(self, verdict: Verdict) -> None:
        self._crew.record(verdict)
        self._stage(verdict.task).verdicts[verdict.position, verdict.path] = verdict

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self._stages if stage.name == name)
