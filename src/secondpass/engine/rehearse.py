"""Another chain over the recorded log, beside what was really put out.

    change      settings, code, tasks that come or go: from the app's file, from another file, by hand
    rerun       the engine itself, in memory, on every core, from the state at the place where the rehearsal begins
    compare     output by output with the store, at the same positions

The live store is read only, piece by piece. What is compared with is what ran; whether it can be repeated at all is
checked first, on the first records, with the chain as it was.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secondpass.app import App
from secondpass.engine.again import Again
from secondpass.engine.difference import Comparison, Different, Rates, StreamDifference
from secondpass.engine.epoch import Epoch, Outcome
from secondpass.engine.explain import _Compared
from secondpass.engine.recorded import Recorded
from secondpass.engine.rehearsed import Changes, Rehearsed, changes_of
from secondpass.engine.replay import Base, Replay, records_of
from secondpass.engine.rerun import Rerun
from secondpass.engine.sentagain import SentAgain
from secondpass.engine.snapshots import Kept
from secondpass.engine.standing import gone_from
from secondpass.engine.walk import Walk
from secondpass.errors import InputError, NotRepeated, SettingsError
from secondpass.reference import Tally
from secondpass.store.reader import StoreReader

CHECKED = 10_000
"""So many records are run again unchanged first, to see whether what ran can be repeated."""


@dataclass
class Rehearsal:
    """What a changed chain would have put out, beside what was put out."""

    app: str
    changes: list[str]
    begin: int
    """The first position."""
    compared_from: int
    """The first one whose outputs the store still keeps."""
    end: int
    """The position behind the last."""
    streams: list[StreamDifference]
    first: list[Different]
    explainable: set[int]
    """Positions of these whose recorded decision can be explained: the code that ran is there."""
    rates: Rates
    tallies: dict[str, Tally]
    """By task of the changed chain: what became of its events."""
    seconds: float
    stopped: str | None
    """Why a task would have stopped the app, if one would."""
    repeated: int
    """So many recorded outputs were first found to come out the same with the chain as it was."""
    notes: list[str]

    @property
    def differences(self) -> int:
        """Outputs and dead letters that are gone, new or others."""
        return sum(stream.differences for stream in self.streams)


Told = Callable[[int, int], None]
"""How far a rehearsal is: the position, and the last one."""


def rehearse(
    app: App,
    store: StoreReader,
    *,
    ran: App | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    without: Sequence[str] = (),
    begin: float | None = None,
    end: float | None = None,
    workers: int | None = None,
    told: Told = lambda _at, _end: None,
) -> Rehearsal:
    """What an app's chain, changed, would have put out over a part of its recorded log.

    `ran` is the app with the code that ran, where `app` has other code. `begin` and `end` are positions (whole numbers) or moments of the stream's time (seconds, as a float).
    """
    began = time.perf_counter()
    kept = Kept(store)
    first = _position(app, store, kept, begin, 0)
    last = _position(app, store, kept, end, store.progress.position)
    if not first < last:
        there = (
            f"it has positions 0 to {store.progress.position - 1}"
            if store.progress.position
            else "it is empty"
        )
        if first >= store.progress.position:
            raise SettingsError(f"there is nothing in the log from there on: {there}")
        what = f"from position {first} to {last - 1}" if last else "before position 0"
        raise SettingsError(f"there is nothing in the log {what}: {there}")
    changes = changes_of(app, store, settings or {}, without, first, last)
    notes: list[str] = []
    base, first = _base(app, store, kept, first, last, begin is None, notes)
    try:
        repeated = _repeats(ran or app, store, kept, changes, first, last, notes)
        streams = list(dict.fromkeys([*app.streams, *store.progress.numbers]))
        forgotten = _forgotten(store, streams, first)
        again, compared_from = _again(ran or app, store, base, first, last, forgotten, workers, notes)
    except BaseException:
        base.close()
        raise
    try:
        replay = Replay(store, app, base, last)
        standing = Rehearsed(app, base, changes, first, SentAgain(store, first))
        rerun = Rerun(app, replay, standing, workers)
        comparison = Comparison(store, streams, compared_from, again, forgotten)
    except BaseException:
        if again is not None:
            again.close()
        base.close()
        raise

    def on_epoch(epoch: Epoch, outcome: Outcome) -> None:
        comparison.epoch(epoch, outcome)
        told(epoch.first + epoch.count, last)

    try:
        if base.position < first:
            rerun.run(first, lambda _epoch, _outcome: None)
            standing.begin(first, replay.now)
            rerun.changed()
        rerun.run(compared_from, lambda _epoch, _outcome: None)
        rerun.run(last, on_epoch)
        if again is not None:
            again.check()
    finally:
        rerun.close()
        if again is not None:
            again.close()
        base.close()
    if standing.left_out:
        notes.append("recorded commands that were left out: " + "; ".join(standing.left_out))
    if standing.not_sent:
        notes.append(
            f"dead letters that were sent again, and that there would not have been: {standing.not_sent}"
        )
    if rerun.verdicts:
        notes.append(f"events that ended workers in the rehearsal: {len(rerun.verdicts)}")
    stopped = rerun.stopped
    return Rehearsal(
        app=app.name,
        changes=changes.told,
        begin=first,
        compared_from=compared_from,
        end=last if stopped is None else int(stopped.details.get("position", last)),
        streams=list(comparison.streams.values()),
        first=comparison.first,
        explainable=_explainable(ran or app, store, kept, {one.position for one in comparison.first}),
        rates=comparison.rates,
        tallies={
            name: comparison.tallies.get(name, Tally()) for name in [link.name for link in standing.links]
        },
        seconds=time.perf_counter() - began,
        stopped=None if stopped is None else str(stopped),
        repeated=repeated,
        notes=notes,
    )


def _repeats(
    app: App, store: StoreReader, kept: Kept, changes: Changes, first: int, last: int, notes: list[str]
) -> int:
    """Run the first records again with the chain as it was; how many outputs came out as recorded.

    Raises `NotRepeated` where they do not: then a difference would tell nothing about the change.
    """
    if not changes:
        return 0  # the rehearsal itself is the check
    base = kept.nearest(first)
    try:
        recorded = Recorded(store, app.streams, base.numbers, base.letters)
        walk = Walk(store, app, base, min(last, base.position + CHECKED), _Compared(set(), recorded))
        try:
            walk.run()
        finally:
            walk.close()
        return recorded.compared
    except NotRepeated as error:
        if "task" not in error.details:
            raise
        notes.append(
            f"the code that ran is not there any more, so that it can be repeated was not checked: {error}"
        )
        return 0
    finally:
        base.close()


def _explainable(app: App, store: StoreReader, kept: Kept, positions: set[int]) -> set[int]:
    """Of some positions, those that can be run again with the code that ran."""
    gone: dict[int, float] = {}
    found: set[int] = set()
    for position in positions:
        base = kept.nearest(position)
        try:
            if base.position not in gone:
                gone[base.position] = gone_from(app, store, base)
        finally:
            base.close()
        if position < gone[base.position]:
            found.add(position)
    return found


def _base(
    app: App, store: StoreReader, kept: Kept, first: int, last: int, from_beginning: bool, notes: list[str]
) -> tuple[Base, int]:
    """Where to begin: at the place asked for, or as near to the beginning as there is input."""
    base = kept.nearest(first)
    try:
        Replay(store, app, base, last).close()
    except InputError as error:
        base.close()
        if not from_beginning:
            raise _gone(app, kept, error) from error
    else:
        return base, first
    base = kept.oldest(app)
    if base.position >= last:
        base.close()
        raise InputError(
            f"the input before position {base.position} is gone, and with it all that was asked for"
        )
    notes.append(f"the input before position {base.position} is gone: it begins there")
    return base, base.position


def _gone(app: App, kept: Kept, error: InputError) -> InputError:
    """An input that is gone, with what there is."""
    try:
        base = kept.oldest(app)
    except InputError:
        return error
    base.close()
    return InputError(f"{error}; what came since can be rehearsed: --from {base.position}")


def _forgotten(store: StoreReader, streams: list[str], first: int) -> dict[str, int]:
    """By stream whose outputs are not all kept: the position since which they are."""
    found: dict[str, int] = {}
    for stream in streams:
        kept_from = store.progress.kept_from.get(stream, 0)
        row = next(iter(store.outputs(stream, after=kept_from)), None) if kept_from else None
        since = store.progress.position if kept_from and row is None else row.positions[0] if row else 0
        if since > first:
            found[stream] = since
    return found


def _again(
    app: App,
    store: StoreReader,
    base: Base,
    first: int,
    last: int,
    forgotten: dict[str, int],
    workers: int | None,
    notes: list[str],
) -> tuple[Again | None, int]:
    """What tells what was put out where it is not kept; and where the comparison begins."""
    if not forgotten:
        return None, first
    since = max(forgotten.values())
    names = " and ".join(forgotten)
    try:
        again = Again(app, store, base, first, forgotten, workers)
    except NotRepeated as error:
        if "task" not in error.details:
            raise
        if since >= last:
            raise SettingsError(
                f"the store keeps no outputs of these positions, and the code that ran is not there to run it again; give "
                f"later ones with --from ({error})"
            ) from error
        notes.append(
            f"of {names} the store keeps what was put out since position {since} (16 MB), and no more: it is compared from "
            f"there on"
        )
        return None, since
    notes.append(
        f"of {names} the store keeps what was put out since position {since} (16 MB): what was before is compared with the "
        f"chain as it was, run again"
    )
    return again, first


def _position(app: App, store: StoreReader, kept: Kept, at: float | None, otherwise: int) -> int:
    """A position from a position or a moment of the stream's time."""
    if at is None:
        return otherwise
    if isinstance(at, int):
        return max(0, min(at, store.progress.position))
    base = Base()
    for position in kept.positions():
        nearer = kept.nearest(position)
        if nearer.now >= at:
            nearer.close()
            break
        base.close()
        base = nearer
    try:
        replay = Replay(store, app, base)
    except InputError as error:
        base.close()
        raise _gone(app, kept, error) from error
    try:
        for item in replay:
            if isinstance(item, Epoch) and item.now_after >= at:
                for position, _, now in records_of(item):
                    if now >= at:
                        return position
        return store.progress.position
    finally:
        replay.close()
        base.close()


def moment(text: str) -> int | float:
    """A position or a moment of the stream's time, from what a person writes.

    >>> moment("812"), moment("812.0"), moment("2021-09-21T02:44:25Z")
    (812, 812.0, 1632192265.0)
    """
    if text.isdecimal():
        return int(text)
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if math.isfinite(seconds):
            return seconds
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"{text}: write a position (812), a moment of the stream in seconds (812.0), or a date "
            f"(2021-09-21T02:44:25Z)"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


__all__ = ["Changes", "Different", "Rehearsal", "moment", "rehearse"]
