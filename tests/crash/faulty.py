"""An app whose tasks harm their process, run by the real command, and the comparison with the plain loop.

After a run, the output files, the state, the counts and the dead letters are compared with `reference.run` over the log,
with the verdicts that the store's history has in front of their events.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faulty_app
import msgspec
import psutil
from harness import HERE, nursery_of, workers_of

from secondpass import App, Event, reference
from secondpass.engine.compare import codecs_of
from secondpass.engine.outbox import decode_event_plain
from secondpass.errors import StoreError
from secondpass.record import Retry, Tick, Verdict
from secondpass.reference import Tally
from secondpass.state import live_cells
from secondpass.store.database import Store

PATIENCE_S = 30.0
"""How long a loaded machine may take for what takes a second."""


class Run:
    """A run of the real command: the hub, its nursery, its workers."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def report(self) -> dict[str, Any]:
        return json.loads(self.out)

    def wait(self, expect: int | None = 0) -> int:
        code = self.process.wait(PATIENCE_S)
        assert expect is None or code == expect, f"exit code {code}, expected {expect}:\n{self.err[-3000:]}"
        return code

    def nursery(self) -> psutil.Process | None:
        return nursery_of(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.process.pid)

    def family(self) -> list[psutil.Process]:
        """The nursery and its workers."""
        return [p for p in [self.nursery(), *self.workers()] if p is not None]


class Faulty:
    """An app of `faulty_app.py` in a directory, with its input, outputs and store."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.attribute = name
        self.app: App = getattr(faulty_app, name)
        self.store = directory / ".secondpass" / self.app.name
        self.entry: tuple[str, ...] = ("-m", "secondpass")
        self.enter: Callable[[], None] | None = None
        """What a process does before it begins."""
        self.items: list[Event] = []
        self.runs: list[Run] = []
        directory.mkdir(exist_ok=True)
        shutil.copy(HERE / "faulty_app.py", directory)

    def add(self, items: Sequence[Event]) -> None:
        self.items += items
        with (self.directory / "in.jsonl").open("ab") as file:
            file.write(b"".join(msgspec.json.encode(item) + b"\n" for item in items))

    def command(self, *arguments: str, **env: str) -> Run:
        number = len(self.runs)
        out, err = self.directory / f"out-{number}.txt", self.directory / f"err-{number}.txt"
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("SECONDPASS_", "PYTEST_"))}
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [sys.executable, *self.entry, *arguments],
                cwd=self.directory,
                env={**clean, "FAULTY": "1", "SECONDPASS_EPOCH_RECORDS": "64", **env},
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                start_new_session=True,
                preexec_fn=self.enter,  # noqa: PLW1509 - there are no threads here
            )
        self.runs.append(Run(process, out, err))
        return self.runs[-1]

    def start(self, *options: str, workers: int = 2, **env: str) -> Run:
        spec = f"faulty_app.py:{self.attribute}"
        return self.command("run", spec, "--workers", str(workers), "--json", *options, **env)

    def run(self, *options: str, expect: int | None = 0, workers: int = 2, **env: str) -> Run:
        run = self.start(*options, workers=workers, **env)
        run.wait(expect)
        return run

    def end(self) -> None:
        """Leave no process behind, however the test ended."""
        for run in self.runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()

    # ---- what is there

    def size(self, name: str) -> int:
        """How often `note(name)` was called."""
        path = self.directory / name
        return path.stat().st_size if path.exists() else 0

    def calls(self, n: int) -> int:
        return self.size(f"calls-{n}")

    def setups(self) -> int:
        """In how many processes `setup` was called."""
        return len(list(self.directory.glob("setup-*")))

    @contextlib.contextmanager
    def opened(self) -> Generator[Store]:
        store = Store.open_to_read(self.store)
        try:
            yield store
        finally:
            store.close()

    def verdicts(self) -> list[Verdict]:
        with self.opened() as store:
            found: list[dict[str, Any]] = [d for _, kind, d in store.history() if kind == "verdict"]
        return [Verdict(**d)._replace(path=tuple(d["path"])) for d in found]

    def convicted(self) -> list[int]:
        """The positions of all verdicts; none while the store is being made."""
        try:
            return sorted(verdict.position for verdict in self.verdicts())
        except StoreError:
            return []

    def letters(self) -> list[tuple[int, str, str]]:
        with self.opened() as store:
            return [(letter.position, letter.error, letter.traceback) for _, _, letter in store.letters()]

    # ---- the comparison

    def log(self, store: Store, mended: Mapping[int, dict[str, Any]] | None = None) -> list[Any]:
        """The records up to the store's position: verdicts in front of their events, retries in their places.

        `mended` holds the new fields of dead letters that were mended before they were sent again.
        """
        verdicts: dict[int, list[Verdict]] = {}
        for verdict in self.verdicts():
            verdicts.setdefault(verdict.position, []).append(verdict)
        retries: dict[int, int] = {d["position"]: d["letter"] for _, d in self._retries(store)}
        ticks: dict[int, float] = {
            d["position"]: d["time"] for _, kind, d in store.history() if kind == "tick"
        }
        log: list[Any] = []
        rest = iter(self.items)
        for position in range(store.progress.position):
            log += verdicts.get(position, ())
            if position in ticks:
                log.append(Tick(ticks[position]))
            elif position in retries:
                letter = reference.run(self.app.tasks, log).dead_letters[retries[position]]
                event = letter.event.replace(**(mended or {}).get(retries[position], {}))
                log.append(Retry(retries[position], letter.task, event))
            else:
                log.append(next(rest))
        return log

    @staticmethod
    def _retries(store: Store) -> list[tuple[str, dict[str, Any]]]:
        return [(kind, {**d, "position": at}) for at, kind, d in store.history() if kind == "retry"]

    def check(
        self,
        *,
        complete: bool = True,
        delivered: bool = True,
        mended: Mapping[int, dict[str, Any]] | None = None,
    ) -> reference.Result:
        """Compare with the plain loop at the store's position; gives what that says."""
        with self.opened() as store:
            progress = store.progress
            if complete:
                assert progress.position == len(self.items) + len(self._retries(store))
            wanted = reference.run(self.app.tasks, self.log(store, mended))
            assert wanted.stopped is None
            for stream, events in wanted.streams.items():
                name = self.app.name if stream == "main" else f"{self.app.name}-{stream}"
                path = self.directory / f"{name}.jsonl"
                found = path.read_bytes() if path.exists() else b""
                whole = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
                assert found == whole if delivered else whole.startswith(found), (
                    f"{name}: {_first(found, whole)}"
                )
            found_letters = [
                (letter.position, letter.task, letter.error, decode_event_plain(letter.event))
                for _, _, letter in store.letters()
            ]
            wanted_letters = [
                (letter.position, letter.task, letter.error, msgspec.to_builtins(letter.event))
                for letter in wanted.dead_letters
            ]
            assert found_letters == wanted_letters
            assert self._state(store, progress.now) == wanted.state
            tallies = {n: asdict(msgspec.convert(t, Tally)) for n, t in progress.tallies.items()}
            if progress.position:
                assert tallies == {n: asdict(t) for n, t in wanted.tallies.items()}
        return wanted

    def _state(self, store: Store, now: float) -> dict[str, dict[str, Any]]:
        tasks = self.app.tasks
        cells = store.load(codecs_of(tasks))
        found: dict[str, dict[str, Any]] = {}
        for task in tasks:
            shape = type(task)._shape
            mine = found[task.name] = {
                n: live_cells(s, cells[task.name, n], s.ttl_of(task), now) for n, s in shape.tables.items()
            }
            for name, spec in shape.values.items():
                rest = cells[task.name, name]
                mine[name] = spec.codec.decode(rest[None] if rest else spec.initial)
        return found


def _first(found: bytes, wanted: bytes) -> str:
    pairs = zip(found.splitlines(), wanted.splitlines(), strict=False)
    different = next(((i, a, b) for i, (a, b) in enumerate(pairs) if a != b), "no line differs")
    return f"{len(found)} bytes for {len(wanted)}, first difference {different}"
