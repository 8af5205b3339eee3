"""Which feed a path means, and whether it is still the input that an offset was taken from."""

from __future__ import annotations

import os
from typing import Any

from secondpass.connectors.feed import WAYS_OUT, Feed, FileFeed, Mark, mark_from
from secondpass.errors import InputError


def open_feed(
    path: str, offset: dict[str, Any] | None, *, follow: bool, accept: bool
) -> tuple[Feed, Mark | None]:
    """The feed of a path, standing where `offset` says; raises `InputError` when it is another input."""
    mark = None if offset is None else mark_from(offset, path)
    if mark is not None and mark.path != path and not accept:
        raise InputError(
            f"{path}: the store says that {mark.path} was read until byte {mark.bytes}. If {path} is the same file "
            f"under a new name, say so with `secondpass run APP --accept-input`: it is compared up to that byte, and "
            f"read on. Otherwise give the app the path it had, or start over with `secondpass run APP --fresh`"
        )
    feed = FileFeed(os.path.abspath(path), path)  # noqa: PTH100 - Path.absolute keeps `..`
    if mark is not None:
        try:
            differs = feed.resume(mark)
        except BaseException:
            feed.close()
            raise
        if differs is not None:
            feed.close()
            raise InputError(
                f"{path} is not the file that was read before: {differs}. What to do: {WAYS_OUT}"
            )
    return feed, mark
