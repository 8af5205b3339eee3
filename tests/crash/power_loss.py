"""A disk that loses power: what a store writes is recorded, and the disks it may leave behind are rebuilt.

The model is harsher than a real disk. At the moment of the loss

- what was written to a file before its last sync is there;
- every later write of it is there, is gone, or is torn: each 512-byte sector for itself, in any subset, so
  writes are reordered too; where the file had to grow for a lost one there may be zeros;
- every later truncation is there or gone;
- names made and removed since the last sync of the directory are there or gone, each for itself. The first
  sync of a new journal or WAL syncs the directory, as SQLite does; so does the store, after opening.

Shared memory (`-shm`) is not on the disk and not rebuilt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512

Op = tuple[Any, ...]
"""`("write", file, offset, data)`, `("truncate", file, size)`, `("sync", file)`, `("create", name, file)`,
`("delete", name)`, `("sync names",)`; a file is a number, whatever names it has."""


class Disk:
    """The files of one directory, all durable, and what was done to them since."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.ops: list[Op] = []
        self._first = {name: (number, body) for number, (name, body) in enumerate((files or {}).items())}
        self._names = {name: number for name, (number, _) in self._first.items()}
        self._files = len(self._names)

    # Recording.

    def file(self, name: str) -> int:
        """The number of the file of that name, which is made when there is none."""
        if name not in self._names:
            self._names[name] = self._files
            self._files += 1
            self.ops.append(("create", name, self._names[name]))
        return self._names[name]

    def delete(self, name: str) -> None:
        if self._names.pop(name, None) is not None:
            self.ops.append(("delete", name))

    def rename(self, name: str, to: str) -> None:
        """Two steps here, each of which may be lost: harsher than what a file system does."""
        self.ops.append(("create", to, self._names[name]))
        self._names[to] = self._names[name]
        self.delete(name)

    def sync_names(self) -> None:
        self.ops.append(("sync names",))

    # Losing power.

    def images(self, count: int, rng: random.Random) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Some of the disks that a loss of power could leave: how many operations were made, and the files."""
        moments = self._moments(count, rng)
        files = {number: bytearray(body) for number, body in self._first.values()}
        names = {name: number for name, (number, _) in self._first.items()}
        pending: dict[int, list[Op]] = {number: [] for number in files}
        renamed: list[Op] = []
        for done, op in enumerate(self.ops, 1):
            kind = op[0]
            if kind == "sync":
                for old in pending[op[1]]:
                    _apply(files[op[1]], old)
                pending[op[1]].clear()
            elif kind == "sync names":
                for old in renamed:
                    _rename(names, old)
                renamed.clear()
            elif kind in ("create", "delete"):
                renamed.append(op)
                if kind == "create" and op[2] not in files:
                    files[op[2]], pending[op[2]] = bytearray(), []
            else:
                pending[op[1]].append(op)
            for _ in range(moments[done - 1]):
                yield done, _lose_power(files, names, pending, renamed, rng)

    def _moments(self, count: int, rng: random.Random) -> list[int]:
        """How many images to take after each operation; after a sync there is little to lose."""
        weights = [0.1 if op[0].startswith("sync") else 1.0 for op in self.ops]
        moments = [0] * len(self.ops)
        for at in rng.choices(range(len(self.ops)), weights, k=count):
            moments[at] += 1
        return moments


def _lose_power(
    files: dict[int, bytearray],
    names: dict[str, int],
    pending: dict[int, list[Op]],
    renamed: list[Op],
    rng: random.Random,
) -> dict[str, bytes]:
    kept = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    torn = rng.choice((0.0, 0.0, 0.2, 1.0))
    left = dict(names)
    for op in renamed:
        if rng.random() < kept:
            _rename(left, op)
    image: dict[str, bytes] = {}
    for name, number in left.items():
        if not pending[number]:
            image[name] = bytes(files[number])
            continue
        body = bytearray(files[number])
        grown = rng.random() < 0.3
        for op in pending[number]:
            if rng.random() < torn and op[0] == "write":
                _tear(body, op, rng)
            elif rng.random() < kept:
                _apply(body, op)
            elif grown and op[0] == "write":
                _grow(body, op[2] + len(op[3]))
        image[name] = bytes(body)
    return image


def _rename(names: dict[str, int], op: Op) -> None:
    if op[0] == "create":
        names[op[1]] = op[2]
    else:
        names.pop(op[1], None)


def _grow(body: bytearray, size: int) -> None:
    if len(body) < size:
        body.extend(bytes(size - len(body)))


def _apply(body: bytearray, op: Op) -> None:
    if op[0] == "truncate":
        del body[op[2] :]
        _grow(body, op[2])
    else:
        _, _, offset, data = op
        _grow(body, offset)
        body[offset : offset + len(data)] = data


def _tear(body: bytearray, op: Op, rng: random.Random) -> None:
    """Some sectors of a write; a sector is old or new as a whole."""
    _, _, offset, data = op
    end = offset + len(data)
    sectors = range(offset // SECTOR, (end - 1) // SECTOR + 1)
    some = rng.getrandbits(len(sectors))
    for i, sector in enumerate(sectors):
        if some >> i & 1:
            start = max(offset, sector * SECTOR)
            stop = min(end, (sector + 1) * SECTOR)
            _grow(body, start)
            body[start:stop] = data[start - offset : stop - offset]


# ---------------------------------------------------------------- recording what SQLite does


class RecordingVFS(apsw.VFS):
    """The operating system's files, with everything that SQLite does to them recorded on a `Disk`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, base="")
        self.name = name
        self.disk = Disk()

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if name is None:
            return apsw.VFSFile("", name, flags)  # a temporary file; nothing in it outlives the process
        return RecordedFile(self.disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.disk.delete(Path(filename).name)
        if syncdir:
            self.disk.sync_names()


class RecordedFile(apsw.VFSFile):
    """An open file of a `RecordingVFS`."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        path = Path(name if isinstance(name, str) else name.filename())
        self._new_journal = not path.exists() and not flags[0] & apsw.SQLITE_OPEN_MAIN_DB
        super().__init__("", name, flags)
        self._disk = disk
        self._file = disk.file(path.name)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._disk.ops.append(("write", self._file, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._disk.ops.append(("truncate", self._file, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._disk.ops.append(("sync", self._file))
        if self._new_journal:
            self._disk.sync_names()
            self._new_journal = False


class Image:
    """A directory that holds one image after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, files: dict[str, bytes]) -> None:
        for old in self.directory.iterdir():
            old.unlink()
        for name, body in files.items():
            (self.directory / name).write_bytes(body)


def recording(vfs: RecordingVFS, sync_directory: Callable[[Path], None]) -> Callable[[Path], None]:
    """The store's own sync of its directory, recorded."""

    def sync(path: Path) -> None:
        sync_directory(path)
        vfs.disk.sync_names()

    return sync
