"""Amounts as people write them: "90s", "7d", "10GB"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from secondpass.errors import DefinitionError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _amount(text: str, units: dict[str, float] | dict[str, int]) -> float | None:
    number = text.strip().rstrip("BGKMTdhkms").rstrip()
    unit = units.get(text.strip()[len(number) :].strip())
    known = unit is not None and number.replace(".", "", 1).isdecimal() and number.isascii()
    return float(number) * unit if known and unit is not None else None


def seconds_of(text: str) -> float | None:
    """A time in seconds; None for what is none.

    >>> seconds_of("1.5h"), seconds_of("250ms"), seconds_of("* * * * *")
    (5400.0, 0.25, None)
    """
    return _amount(text, _SECONDS)


def bytes_of(text: str) -> int | None:
    """A size in bytes; None for what is none.

    >>> bytes_of("10GB"), bytes_of("7d")
    (10000000000, None)
    """
    found = _amount(text, _BYTES)
    return None if found is None else int(found)


class Keep(NamedTuple):
    """What of a log, or of snapshots, stays: so old, and so much of it, at most."""

    age_s: float | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, given: str | Sequence[str], option: str = "keep_log") -> Keep:
        """What `App(keep_log=...)` and its like mean; raises `DefinitionError` for what means nothing.

        >>> Keep.of(["7d", "10GB"])
        Keep(age_s=604800.0, bytes=10000000000)
        """
        age_s: float | None = None
        size: int | None = None
        for text in [given] if isinstance(given, str) else given:
            age, bytes_ = seconds_of(text), bytes_of(text)
            if age is None and bytes_ is None:
                raise DefinitionError(
                    f"{option}={given!r}: write an age (ms, s, m, h, d), a size (kB, MB, GB, TB), or both: "
                    f'{option}=("7d", "10GB")'
                )
            age_s, size = age if age is not None else age_s, bytes_ if bytes_ is not None else size
        return cls(age_s, size)
