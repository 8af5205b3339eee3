"""Which feed a path means, and whether it is still the input that an offset was taken from."""

from __future__ import annotations

import os
from typing import Any

from secondpass.connectors.feed import WAYS_OUT, Feed, FileFeed, Mark, mark_from
from secondpass.errors import InputError, SettingsError


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
    if path == "-":
        from secondpass.connectors.stdin import StandardInput, refuse_again

        refuse_again(mark)
        return StandardInput(), mark
    target = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`
    if path.endswith(".gz"):
        if follow:
            raise cannot_follow(path)
        from secondpass.connectors.compressed import GzipFeed

        feed = GzipFeed(target, path)
        resume = feed.resume
    elif follow:
        from secondpass.connectors.rotation import FollowFeed

        feed = FollowFeed(target, path)

        def resume(mark: Mark) -> str | None:
            return feed.resume(mark, accept=accept)
    else:
        feed = FileFeed(target, path)
        resume = feed.resume
    if mark is not None:
        try:
            differs = resume(mark)
            if differs is not None:
                raise InputError(
                    f"{path} is not the file that was read before: {differs}. What to do: {WAYS_OUT}"
                )
        except BaseException:
            feed.close()
            raise
    return feed, mark


def cannot_follow(path: str) -> SettingsError:
    """A compressed file has no place where whole lines end for good."""
    return SettingsError(
        f"{path}: a compressed file cannot be followed; follow the plain log that is compressed later "
        f"(its .gz is found when it was rotated), or read {path} without follow"
    )
