"""Standard error, and what workers print, where whoever read it may have gone: what is told then is lost, and nothing else."""

from __future__ import annotations

import errno
import io
from typing import TextIO


class _Unheard(io.FileIO):
    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(data).nbytes  # type: ignore[arg-type]


def unheard(stream: TextIO) -> TextIO:
    """A stream to the same file, line by line, that does not fail where nobody reads it any more."""
    stream.flush()
    raw = _Unheard(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
