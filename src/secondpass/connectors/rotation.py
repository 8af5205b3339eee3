"""A log that grows and is rotated by renaming: read to its end, then on with the file that came after it.

    x.log.3   x.log.2.gz   x.log.1   x.log         by modification time; the path itself is the newest
              ^ being read ^ then    ^ then

A file is left only when a later one holds something: its writer has then moved on, and an unterminated
last line is as complete as it will be. After a pause the file that was being read is found among its
siblings by its inode and content, or by its content alone when it was compressed or copied. What cannot
be found is an error: nothing is skipped in silence.

Siblings are files whose name is the log's name followed by a number or a date (`x.log.1`,
`x.log-20260131`, `x.log.2026-01-31_12`), or by `.old`, `.prev` or `.last`, compressed or not.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from secondpass.connectors.compressed import GzipFeed, refuse_compression
from secondpass.connectors.feed import Feed, FileFeed, Mark, unreadable
from secondpass.errors import InputError

_ROTATED = re.compile(r"([._-]?\d[\dTZ.:_+-]*|[._-](?:old|prev|last))(\.(?:gz|bz2|xz|zst|Z))?")


class _Sibling(NamedTuple):
    modified_ns: int
    order: tuple[int, str]
    """Between files written at the same moment: a higher number is older, a later date newer."""
    path: str
    file: tuple[int, int]
    size: int


class FollowFeed(Feed):
    """A file that is followed through its rotations."""

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(shown)
        self._path = path
        self._current: FileFeed | GzipFeed | None = None
        self._left: tuple[FileFeed | GzipFeed, int] | None = None
        """The file read before this one, and its size when it was left."""
        self._compared: dict[tuple[tuple[int, int], int, int, int], bool] = {}
        """Which compressed files hold just what was read: to find out takes decompressing them."""
        self._begin()

    # ------------------------------------------------------------ bytes

    def peek(self, size: int) -> bytes:
        if self._current is None:
            self._begin()
        if self._current is None:
            self.last = False
            return b""
        # Looked at before reading: all that was written before a later file was begun is then read.
        moved_on = bool(self._later())
        data = self._current.peek(size)
        self.last = moved_on and self._current.last
        return data

    def _begin(self) -> None:
        """Open the file, if it is there."""
        try:
            self._current = FileFeed(self._path, self.shown, watch_path=False)
        except InputError:
            if self._newest() is not None:
                raise

    def advance(self, data: bytes, used: int) -> None:
        assert self._current is not None
        self._current.advance(data, used)
        self._mirror()

    def _mirror(self) -> None:
        if self._current is not None:
            self.position, self.head, self.tail = (
                self._current.position,
                self._current.head,
                self._current.tail,
            )

    def wait(self) -> None:
        if self._current is not None:
            self._current.wait()

    def identity(self) -> tuple[int, int] | None:
        return None if self._current is None else self._current.identity()

    def verify(self) -> None:
        if self._current is not None:
            self._current.verify()
        if self._left is not None:
            left, size = self._left
            now = left.progress()[1]
            if now != size:
                raise InputError(
                    f"{self.shown}: {now - size} bytes were appended to the rotated file after {self.shown} had been "
                    f"begun anew, and they were not read. Its writer must stop writing to the old file before it "
                    f"writes to the new one; run again to go on, and feed the end of the old file from byte {size} by hand"
                )

    def progress(self) -> tuple[int, int] | None:
        return None if self._current is None else self._current.progress()

    def close(self) -> None:
        for feed in (self._current, self._left and self._left[0]):
            if feed is not None:
                feed.close()

    # ------------------------------------------------------------ from one file to the next

    def turn(self) -> bool:
        current = self._current
        assert current is not None
        while True:
            later = self._later()
            if not later:
                return False  # it was there a moment ago: being renamed
            following = later[0]
            try:
                feed = _open(following.path, self.shown)
            except InputError:
                if Path(following.path).exists():
                    raise
                continue
            if feed.identity() == following.file:
                break
            feed.close()  # renamed in between: look again
        self._refuse_copy(following, feed)
        if self._left is not None:
            self._left[0].close()
        self._left = (current, current.progress()[1])
        self._current = feed
        self._mirror()
        return True

    def _refuse_copy(self, following: _Sibling, feed: FileFeed | GzipFeed) -> None:
        """An editor that rewrites a file gives it another inode: what was read must not be read again."""
        current = self._current
        assert current is not None
        if following.path != self._path or not current.position:
            return
        if any(s.file == current.identity() for s in self._siblings()):
            return
        if feed.resume(_mark_of(current)) is None:
            feed.close()
            raise InputError(
                f"{self.shown} was replaced by a copy that begins like it while it was read (by an editor?); run again: "
                f"it goes on where it stopped"
            )

    def _later(self) -> list[_Sibling]:
        """The files that come after the current one, in order; only those that hold something."""
        current = self._current
        assert current is not None
        newest = self._newest()
        if newest is not None and newest.file == current.identity():
            return []
        found = self._siblings()
        here = next((s for s in found if s.file == current.identity()), None)
        if here is not None:
            later = [s for s in found if s > here]
        else:
            # Deleted, or compressed: then it must not be taken for a later file.
            modified = current.modified_ns()
            mark = _mark_of(current)
            later = [s for s in found if s.modified_ns >= modified and not self._is_compressed(s, mark)]
        for sibling in later:
            if sibling.path.endswith((".bz2", ".xz", ".zst", ".Z")):
                raise refuse_compression(sibling.path, self.shown)
        if newest is not None and newest.size:
            later.append(newest)
        return [s for s in later if s.size]

    def _is_compressed(self, sibling: _Sibling, mark: Mark) -> bool:
        """Whether this is the file that was read until `mark`, compressed in the meantime."""
        if not sibling.path.endswith(".gz"):
            return False
        seen = (sibling.file, sibling.modified_ns, sibling.size, mark.bytes)
        if seen not in self._compared:
            feed = GzipFeed(sibling.path, sibling.path, watch_path=False)
            try:
                self._compared[seen] = feed.holds_exactly(mark)
            finally:
                feed.close()
        return self._compared[seen]

    def _newest(self) -> _Sibling | None:
        try:
            found = Path(self._path).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.shown, error) from None
        return _Sibling(found.st_mtime_ns, (0, ""), self._path, (found.st_dev, found.st_ino), found.st_size)

    def _siblings(self) -> list[_Sibling]:
        """The rotated files, oldest first. Looked at until two looks agree: a rotation may be going on."""
        found = self._look()
        while (again := self._look()) != found:
            found = again
        return found

    def _look(self) -> list[_Sibling]:
        directory, name = os.path.split(self._path)
        found: list[_Sibling] = []
        try:
            with os.scandir(directory) as entries:
                names = [e.name for e in entries if e.name.startswith(name) and e.name != name]
        except OSError as error:
            raise unreadable(self.shown, error) from None
        for rotated in names:
            match = _ROTATED.fullmatch(rotated[len(name) :])
            # While a file is being compressed both are there, and the plain one is the whole one.
            if match is None or (match[2] and rotated.removesuffix(match[2]) in names):
                continue
            path = str(Path(directory, rotated))
            try:
                seen = Path(path).stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(seen.st_mode):
                order = _order(match[1])
                found.append(
                    _Sibling(seen.st_mtime_ns, order, path, (seen.st_dev, seen.st_ino), seen.st_size)
                )
        return sorted(found)

    # ------------------------------------------------------------ after a pause

    def resume(self, mark: Mark, *, accept: bool) -> str | None:
        """Go to a stored place, wherever its file is now; says why it cannot, None when it can."""
        if mark.file is None and not mark.bytes:
            return None  # the file was not there yet
        newest = self._newest()
        everything = [*self._siblings(), *([newest] if newest is not None else [])]
        same_file = [s for s in everything if s.file == mark.file]
        # An inode may have been given to another file since: the content decides.
        matching = [s for s in same_file if self._matches(s, mark)]
        if not matching and mark.bytes:
            matching = [s for s in everything if s not in same_file and self._matches(s, mark)]
        if not matching and accept and not mark.bytes and newest is not None:
            matching = [newest]
        if len(matching) > 1:
            names = ", ".join(s.path for s in matching)
            return f"several files begin like the one that was read, and none of them is it: {names}"
        if not matching:
            return self._missing(mark, newest)
        if self._current is not None:
            self._current.close()
        self._current = _open(matching[0].path, self.shown)
        self._current.resume(mark)
        self._mirror()
        return None

    def _matches(self, sibling: _Sibling, mark: Mark) -> bool:
        if sibling.path.endswith((".bz2", ".xz", ".zst", ".Z")):
            return False
        feed = _open(sibling.path, self.shown)
        try:
            return feed.resume(mark) is None
        except InputError:
            return False  # a damaged .gz
        finally:
            feed.close()

    def _missing(self, mark: Mark, newest: _Sibling | None) -> str:
        if newest is not None and newest.file == mark.file and newest.size < mark.bytes:
            return (
                f"{mark.bytes} bytes of it had been read, and it has {newest.size}: it was truncated "
                f"(rotating by copying and truncating loses lines; rotate by renaming)"
            )
        looked_at = ", ".join(s.path for s in self._siblings()) or "none"
        return (
            f"the file that was read until byte {mark.bytes} is neither {self._path} nor one of its rotated files "
            f"({looked_at}), and the lines after that byte would be skipped"
        )


def _order(suffix: str) -> tuple[int, str]:
    digits = suffix.lstrip("._-")
    return (-int(digits), "") if digits.isdecimal() and len(digits) < 6 else (0, digits)


def _open(path: str, shown: str) -> FileFeed | GzipFeed:
    kind = GzipFeed if path.endswith(".gz") else FileFeed
    return kind(path, shown, watch_path=False)


def _mark_of(feed: Feed) -> Mark:
    fields: dict[str, Any] = feed.mark()
    return Mark(**fields)
