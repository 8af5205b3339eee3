"""The bytes of a compressed file: places in it count decompressed bytes.

What lies before a place cannot be looked at without decompressing it, so an offset is resumed by reading
up to it; before a commit the compressed bytes are compared instead.
"""

from __future__ import annotations

import zlib

from secondpass.connectors.feed import WAYS_OUT, Feed, FileFeed, Mark, fingerprint
from secondpass.errors import InputError

_CHUNK = 256 << 10
_SKIP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


class GzipFeed(Feed):
    """A gzip file of any number of members."""

    def __init__(self, path: str, shown: str, *, watch_path: bool = True) -> None:
        super().__init__(shown)
        self.path = path
        self._file = FileFeed(path, shown, watch_path=watch_path)
        self._input = b""
        self._inflate: zlib._Decompress | None = None
        self._full = False
        """Whether zlib may hold more output than was taken."""
        self._members = 0
        self._buffer = bytearray()
        self._ended = False
        self._damage: InputError | None = None

    def identity(self) -> tuple[int, int]:
        return self._file.identity()

    def modified_ns(self) -> int:
        """When the file was written last."""
        return self._file.modified_ns()

    def peek(self, size: int) -> bytes:
        while len(self._buffer) < size and not self._ended:
            self._fill(size - len(self._buffer))
        data = bytes(self._buffer[:size])
        # After damage nothing is last: what a broken file ends with is no line.
        self.last = len(data) < size and self._damage is None
        return data

    def advance(self, data: bytes, used: int) -> None:
        super().advance(data, used)
        del self._buffer[:used]

    def wait(self) -> None:
        if self._damage is not None:
            raise self._damage

    def _fill(self, wanted: int) -> None:
        if not self._input and not self._full:
            self._input = self._file.peek(_CHUNK)
            self._file.advance(self._input, len(self._input))
            if not self._input:
                self._ended = True
                if self._inflate is not None:
                    self._damage = self._damaged(
                        "it ends in the middle; copy it again, or wait until it is complete"
                    )
                return
        if self._inflate is None:
            if self._members:
                self._input = self._input.lstrip(b"\0")  # padding, as tapes leave it
                if not self._input:
                    return
            self._inflate = zlib.decompressobj(_GZIP)
        try:
            out = self._inflate.decompress(self._input, wanted)
        except zlib.error as error:
            self._ended = True
            what = "it is no gzip file" if not self._members and not self.position else str(error)
            self._damage = self._damaged(f"{what}; restore it")
            return
        self._buffer += out
        self._full = len(out) == wanted and not self._inflate.eof
        if self._inflate.eof:
            self._input, self._inflate = self._inflate.unused_data, None
            self._members += 1
        else:
            self._input = self._inflate.unconsumed_tail

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"{self.shown} cannot be decompressed beyond byte {self._file.position}: {what}, and run again. "
            f"What was read before stands"
        )

    def resume(self, mark: Mark) -> str | None:
        """Go to a stored place; says what differs from what was read before, None when nothing does."""
        while self.position < mark.bytes:
            data = self.peek(min(_SKIP, mark.bytes - self.position))
            if not data:
                self.wait()
                return f"{mark.bytes} decompressed bytes of it had been read, and it has {self.position}"
            self.advance(data, len(data))
        if fingerprint(self.head) != mark.head:
            return f"its first {mark.head[0]} decompressed bytes are not those that were read"
        if fingerprint(self.tail) != mark.tail:
            return f"the decompressed bytes before byte {mark.bytes} are not those that were read"
        return None

    def holds_exactly(self, mark: Mark) -> bool:
        """Whether this is what was read until `mark`, and nothing more."""
        try:
            return self.resume(mark) is None and not self.peek(1) and self._damage is None
        except InputError:
            return False

    def verify(self) -> None:
        try:
            self._file.verify()
        except InputError as error:
            raise InputError(f"{error} (places in {self.shown} are those of its compressed bytes)") from None

    def progress(self) -> tuple[int, int]:
        return self._file.progress()

    def close(self) -> None:
        self._file.close()


def refuse_compression(path: str, shown: str) -> InputError:
    """A rotated file that only another program can decompress."""
    return InputError(
        f"{shown}: {path} comes next, and its compression is not read here; decompress it beside the others, "
        f"keeping its modification time, and run again. Or: {WAYS_OUT}"
    )
