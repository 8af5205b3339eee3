"""`secondpass doctor`: whether this machine can keep what secondpass promises."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from secondpass.cli import text
from secondpass.cli.apps import shown
from secondpass.cli.exits import DONE, STORE
from secondpass.cli.group import HELP
from secondpass.cli.options import debug_option, json_option, store_option, stored_app_argument
from secondpass.cli.places import FOLDER, find_store
from secondpass.cli.shapes import DoctorReport, Finding, document
from secondpass.errors import StoreError

SYNCS = 100
SYNC_BYTES = 4096
SPACE_WANTED = 1_000_000_000
FILES_WANTED = 256
SLOW_SYNC_S = 0.05
INSTANT_SYNC_S = 20e-6
"""A sync that takes less has not reached any disk."""

# On these a lock of one machine is not seen by another, or a sync is not one.
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs"})
_FLEETING = frozenset({"tmpfs", "ramfs"})


@click.command(context_settings=HELP)
@stored_app_argument
@store_option
@json_option
@debug_option
def doctor(app: str | None, store: Path | None, as_json: bool) -> int:
    """Examine this machine, and a store if one is given.

    Measures what a commit costs where stores live: in APP's directory, --store, or here.
    """
    directory = find_store(app, store) if app is not None or store is not None else None
    place = directory or (Path(FOLDER) if Path(FOLDER).is_dir() else Path())
    syncs_s = measure_syncs(place)
    p50_s, p99_s = syncs_s[len(syncs_s) // 2], syncs_s[min(len(syncs_s) - 1, int(len(syncs_s) * 0.99))]
    findings = [
        _python(),
        _sqlite(),
        _disk(place),
        _space(place),
        _syncs(p50_s, p99_s),
        _open_files(),
        _file_size(),
    ]
    if directory is not None:
        findings.append(_health(directory))
    report = DoctorReport(
        ok=all(f.ok for f in findings),
        directory=str(place.resolve()),
        fsync_p50_s=round(p50_s, 6),
        fsync_p99_s=round(p99_s, 6),
        findings=findings,
    )
    if as_json:
        text.say(document(report))
    else:
        text.say(list(_lines(report)))
    return DONE if report.ok else STORE


def _lines(report: DoctorReport) -> Iterator[str]:
    wide = max(len(f.name) for f in report.findings)
    for found in report.findings:
        mark = click.style("ok  ", fg="green") if found.ok else click.style("BAD ", fg="red", bold=True)
        yield f"{mark} {found.name:<{wide}}  {found.found}"
        if found.advice is not None:
            yield f"{' ' * (7 + wide)}{click.style(found.advice, fg='yellow')}"


def measure_syncs(directory: Path) -> list[float]:
    """Seconds that each of many small durable writes took, the shortest first."""
    took_s: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            for _ in range(SYNCS):
                began = time.perf_counter()
                os.pwrite(file.fileno(), os.urandom(SYNC_BYTES), 0)
                os.fsync(file.fileno())
                took_s.append(time.perf_counter() - began)
    except OSError as error:
        raise StoreError(
            f"cannot write in {shown(directory)}: {error.strerror or error}; stores live there: look at its rights and "
            f"its disk, or name another with --store"
        ) from error
    return sorted(took_s)


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.release()}"
    ok = sys.version_info >= (3, 11)
    return Finding(name="Python", ok=ok, found=found, advice=None if ok else "secondpass needs Python 3.11")


def _sqlite() -> Finding:
    import apsw

    from secondpass.store.database import SQLITE_MIN, require_sqlite

    found = f"{apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"
    try:
        require_sqlite()
    except StoreError as error:
        return Finding(name="SQLite", ok=False, found=found, advice=str(error))
    need = ".".join(map(str, SQLITE_MIN))
    return Finding(name="SQLite", ok=True, found=f"{found}, {need} or newer is needed", advice=None)


def file_system(directory: Path, mounts: str) -> str:
    """The kind of file system that a directory lies on, by the text of /proc/mounts; empty when unknown."""
    best, kind = "", ""
    path = str(directory.resolve())
    for line in mounts.splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        mounted = parts[1].replace("\\040", " ")
        inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, parts[2]
    return kind


def _disk(directory: Path) -> Finding:
    try:
        kind = file_system(directory, Path("/proc/mounts").read_text(errors="replace"))
    except OSError:
        kind = ""  # not Linux
    found = f"{kind or 'unknown'}, at {shown(directory.resolve())}"
    if kind in _NETWORK:
        advice = "a network file system may lose locks and syncs: keep stores on a local disk (--store DIR)"
        return Finding(name="file system", ok=False, found=found, advice=advice)
    if kind in _FLEETING:
        advice = "what is here is gone after a restart of the machine: fine for tests, not for a store"
        return Finding(name="file system", ok=True, found=found, advice=advice)
    return Finding(name="file system", ok=True, found=found, advice=None)


def _space(directory: Path) -> Finding:
    usage = shutil.disk_usage(directory)
    found = f"{text.size(usage.free)} of {text.size(usage.total)} free"
    ok = usage.free >= SPACE_WANTED
    advice = None if ok else "a full disk stops every run (nothing is lost, it goes on after space was made)"
    return Finding(name="disk space", ok=ok, found=found, advice=advice)


def _syncs(p50_s: float, p99_s: float) -> Finding:
    found = f"p50 {_precise(p50_s)}, p99 {_precise(p99_s)} ({SYNCS} writes of {SYNC_BYTES} bytes)"
    advice = None
    if p50_s < INSTANT_SYNC_S:
        advice = "too fast to be durable: this disk, or the virtual machine's, only pretends to sync"
    elif p99_s > SLOW_SYNC_S:
        advice = "slow: an output may be late by as much; epochs grow so that the rate does not suffer"
    return Finding(name="fsync", ok=True, found=found, advice=advice)


def _precise(s: float) -> str:
    return f"{s * 1000:.2f} ms" if s < 1 else text.duration(s)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    ok = unlimited or soft >= FILES_WANTED
    advice = None if ok else f"raise it: ulimit -n {FILES_WANTED * 4}"
    return Finding(
        name="open files", ok=ok, found="unlimited" if unlimited else f"up to {soft:,}", advice=advice
    )


def _file_size() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    ok = soft == resource.RLIM_INFINITY
    advice = None if ok else "a store or an output that grows beyond it stops the run: ulimit -f unlimited"
    return Finding(
        name="file size", ok=ok, found="unlimited" if ok else f"up to {text.size(soft)}", advice=advice
    )


def _health(directory: Path) -> Finding:
    """Read all of a store: every checksum, every page."""
    from secondpass.cli.reading import load_cells, reading, stated

    try:
        with reading(directory) as store:
            progress = store.progress
            letters = sum(1 for _ in store.letters())
            for _ in store.history():
                pass  # each entry is compared with its checksum as it is read
            outputs = sum(row.count for stream in progress.numbers for row in store.outputs(stream))
            cells = sum(map(len, load_cells(store, stated(store)).values()))
            database: Any = store._db  # apsw's own types are partly unknown
            pages = database.pragma("integrity_check")
    except StoreError as error:
        return Finding(name="store", ok=False, found=shown(directory), advice=str(error))
    if pages != "ok":
        advice = f"SQLite says: {pages}; restore the directory from a backup, or start over with --fresh"
        return Finding(name="store", ok=False, found=shown(directory), advice=advice)
    told = ", ".join(
        [
            text.plural(progress.position, "event"),
            text.plural(cells, "cell"),
            text.plural(outputs, "output"),
            text.plural(letters, "dead letter"),
        ]
    )
    return Finding(
        name="store", ok=True, found=f"{shown(directory)}: all checksums fit ({told})", advice=None
    )
