"""Functions as sources: what `@app.source` notes, and the times at which one is called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from secondpass.amounts import seconds_of
from secondpass.errors import DefinitionError

if TYPE_CHECKING:
    import datetime

PERIOD_S_MIN = 0.001
_LOOK_AGAIN_S = 30.0
"""A clock may be set while one waits for a time of day."""


class Every(NamedTuple):
    """The times at which a function is called: every so many seconds, or those of a cron line."""

    period_s: float = 0.0
    cron: str = ""
    zone: str = "UTC"
    after_s: float = 0.0
    """The first call of a period comes so much later: it goes on where it was left."""

    @classmethod
    def of(cls, text: str, zone: str | None) -> Every:
        """What `every=` means; raises `DefinitionError` for what means nothing."""
        period_s = seconds_of(text)
        if period_s is None:
            found = cls(cron=text, zone=zone or "UTC")
            found._following(time.time())
            return found
        if zone is not None:
            raise DefinitionError(
                f"every={text!r}, tz={zone!r}: only the times of a cron line have a time zone"
            )
        if period_s < PERIOD_S_MIN:
            raise DefinitionError(f"every={text!r}: at most once in {PERIOD_S_MIN} seconds")
        return cls(period_s)

    def waits(self) -> Callable[[], float]:
        """A function that gives how long it is to the next call, 0 when it is due: a time that was missed is left out.

        The first call of a period is at once.
        """
        return self._until_period() if self.period_s else self._until_time()

    def _until_period(self) -> Callable[[], float]:
        due = time.monotonic() + self.after_s

        def wait_s() -> float:
            nonlocal due
            now = time.monotonic()
            if now < due:
                return due - now
            due += self.period_s * (1 + (now - due) // self.period_s)
            return 0.0

        return wait_s

    def _until_time(self) -> Callable[[], float]:
        looked_at = time.time()
        due = self._following(looked_at)

        def wait_s() -> float:
            nonlocal due, looked_at
            now = time.time()
            if now < looked_at:  # the clock was set back
                due = self._following(now)
            looked_at = now
            if now < due:
                return min(due - now, _LOOK_AGAIN_S)
            due = self._following(now)
            return 0.0

        return wait_s

    def _following(self, now: float) -> float:
        """The next of the cron line's times after that."""
        import datetime

        import cronsim

        zone = _zone(self.zone)
        try:
            if len(self.cron.split()) != 5:
                raise cronsim.CronSimError("Wrong number of fields")
            line = cronsim.CronSim(self.cron, datetime.datetime.fromtimestamp(now // 1, zone))
            # In a doubled hour cronsim begins again with the first of the two.
            return next(at for at in (found.timestamp() for found in line) if at > now)
        except (cronsim.CronSimError, StopIteration) as error:
            raise DefinitionError(
                f"every={self.cron!r}: {error or 'never'}; write a period (every='1s') or a cron line "
                f"(every='*/5 * * * *')"
            ) from None


def _zone(name: str) -> datetime.tzinfo:
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise DefinitionError(f"tz={name!r}: no such time zone; write one like 'Europe/Berlin'") from None


class Feeder(NamedTuple):
    """A function that is a source of its app."""

    name: str
    function: Callable[..., Any]
    every: Every | None
    process: bool | Literal["auto"]
    """Whether it has a process of its own; `auto`: once it is found to compute all the time."""
    batch: int
    takes_last: bool

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None,
        every: str | None,
        tz: str | None,
        process: bool | Literal["auto"],
        batch: int,
    ) -> Feeder:
        """What `@app.source` notes of a function; raises `DefinitionError` for what cannot be called."""
        import inspect  # only an app with such functions needs it

        shown = getattr(function, "__qualname__", repr(function))
        if not callable(function):
            raise DefinitionError(f"@app.source stands above a function, not a {type(function).__name__}")
        named = name if name is not None else getattr(function, "__name__", "")
        if not named or named == "<lambda>":
            raise DefinitionError("@app.source(name='...'): this function has no name; give it one")
        for parameter in inspect.signature(function).parameters.values():
            if (
                parameter.default is parameter.empty
                and parameter.kind
                in (
                    parameter.POSITIONAL_ONLY,
                    parameter.POSITIONAL_OR_KEYWORD,
                    parameter.KEYWORD_ONLY,
                )
                and parameter.name != "last"
            ):
                raise DefinitionError(
                    f"@app.source {shown}: it is called with nothing, or with last=...; what is {parameter.name!r}?"
                )
        if type(batch) is not int or batch < 1:
            raise DefinitionError(f"@app.source(batch={batch!r}): a number of events, from 1 on")
        if tz is not None and every is None:
            raise DefinitionError(f"@app.source(tz={tz!r}): it is the time zone of every='<a cron line>'")
        if every is not None and not isinstance(every, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users' input
            raise DefinitionError(f"@app.source(every={every!r}): write a text: every='1s'")
        takes_last = "last" in inspect.signature(function).parameters
        if process not in (True, False, "auto"):
            raise DefinitionError(f"@app.source(process={process!r}): True, False, or 'auto'")
        if process == "auto" and every is None and not takes_last:
            raise DefinitionError(
                f"@app.source(process='auto') {shown}: it cannot be moved while it runs; let it ask for `last`, from which it "
                f"goes on in another process, or say process=True"
            )
        return cls(
            named, function, None if every is None else Every.of(every, tz), process, batch, takes_last
        )
