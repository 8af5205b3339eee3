"""Power is lost while a store is written: whatever the disk holds then, no acknowledged epoch is lost or changed.

Some hundred thousand disks more: `make powerloss`. How a disk is lost is told in power_loss.py.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_loss import Disk, Image, RecordingVFS, recording
from store_model import State, Writer, open_small, small_limits

from secondpass.errors import StoreDamaged, StoreError
from secondpass.store import database
from secondpass.store.database import Store, Unreadable

IMAGES = int(os.environ.get("SECONDPASS_POWERLOSS_IMAGES") or 20_000)
PARTS = 2  # one for each process of a small machine
PER_RECORDING = 1000
TURNS = 25


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: images are written by the thousand."""
    root = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="secondpass-", dir=root if root.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


class Recording:
    """A store written over a recorded disk, and what it acknowledged when."""

    def __init__(
        self, directory: Path, rng: random.Random, synchronous: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._directory = directory
        self._rng = rng
        self._options = {"synchronous": synchronous}
        self._vfs = RecordingVFS(f"recording-{directory.name}")
        self._monkeypatch = monkeypatch
        self.states: dict[int, State] = {}
        self.acknowledged: list[tuple[int, int]] = []
        self.seen: Counter[str] = Counter()

    def record(self, files: dict[str, bytes], state: State | None) -> Disk:
        """Write on from these files, which hold this state."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        for name, body in files.items():
            (self._directory / name).write_bytes(body)
        self._vfs.disk = disk = Disk(files)
        self.acknowledged = []
        if state is not None:
            self.states = {state.turn: state}
            self.acknowledged = [(0, state.turn)]
        with self._monkeypatch.context() as patch:
            patch.setattr(database, "sync_directory", recording(self._vfs, database.sync_directory))
            while len(self.states) < TURNS:
                state = self._one_run(disk, state)
        return disk

    def _one_run(self, disk: Disk, state: State | None) -> State:
        rng = self._rng
        store = open_small(self._directory, vfs=self._vfs.name, **self._options)
        try:
            writer = Writer(store, rng, state)
            self._acknowledge(disk, writer.state)
            self._acknowledge(disk, writer.start())
            for _ in range(rng.randrange(1, 2 * TURNS)):
                self._acknowledge(disk, writer.commit())
                if len(self.states) >= TURNS:
                    break
            progress = store.progress
            self.seen["runs"] += 1
            self.seen["folded"] += any(table.generation for table in progress.tables.values())
            self.seen["pruned"] += bool(progress.kept_from)
            self.seen["checkpointed"] += ("sync", 0) in disk.ops[len(disk.ops) // 2 :]
        finally:
            store.close(checkpoint=rng.random() < 0.5)
        return writer.state

    def _acknowledge(self, disk: Disk, state: State) -> None:
        self.states[state.turn] = state
        self.acknowledged.append((len(disk.ops), state.turn))

    def last_turn(self, done: int) -> int:
        """The last turn that was acknowledged when so many operations were made."""
        return max((turn for ops, turn in self.acknowledged if ops <= done), default=0)


def look(directory: Path, states: dict[int, State], last_turn: int, *, write: bool) -> tuple[str, str]:
    """What became of an image: ("fine" | "lost" | "damaged" | "wrong", details); `write` opens it to write too."""
    try:
        if last_turn == 0:
            Store.open(directory).close()  # nothing was promised yet: there is a store or one can be made
            return "fine", ""
        store = Store.open_to_read(directory)
    except StoreError as error:
        return "damaged", str(error)
    try:
        if store.turn < last_turn:
            return "lost", f"turn {store.turn}"
        difference = states[store.turn].differs_from(store)
        if write and not difference:
            difference = _after_opening(directory, states[store.turn])
    except (StoreDamaged, Unreadable) as error:
        return "damaged", str(error)
    finally:
        store.close()
    return ("wrong", difference) if difference else ("fine", "")


def _after_opening(directory: Path, state: State) -> str:
    """How a store differs after it was opened to be written, and closed."""
    Store.open(directory).close()
    store = Store.open_to_read(directory)
    try:
        return state.differs_from(store)
    finally:
        store.close()


def lose_power(
    count: int, seed: str, synchronous: str, memory: Path, monkeypatch: pytest.MonkeyPatch, seen: Counter[str]
) -> Iterator[tuple[str, str]]:
    """What became of so many images, with a name for each; `seen` counts what the recorded stores did."""
    small_limits(monkeypatch)
    rng = random.Random(seed)
    image = Image(memory / "image")
    image.directory.mkdir()
    recording = Recording(memory / "store", rng, synchronous, monkeypatch)
    files: dict[str, bytes] = {}
    state: State | None = None
    number = 0
    while number < count:
        disk = recording.record(files, state)
        survivor = rng.randrange(PER_RECORDING)
        files, state = {}, None
        for i, (done, found) in enumerate(disk.images(min(PER_RECORDING, count - number), rng)):
            image.put(found)
            last_turn = recording.last_turn(done)
            number += 1
            outcome, details = look(image.directory, recording.states, last_turn, write=number % 40 == 0)
            where = f"image {number} of seed {seed!r}, after operation {done} of {len(disk.ops)} and turn {last_turn}"
            yield outcome, f"{where}: {outcome} {details}"
            if i == survivor and outcome == "fine" and last_turn > 0 and rng.random() < 0.7:
                # The next recording goes on from here: what one loss left behind meets the next.
                files = found
                image.put(found)
                with_state = Store.open_to_read(image.directory)
                state = recording.states[with_state.turn]
                with_state.close()
        recording.states = {}
    seen.update(recording.seen)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_acknowledged_epoch_is_lost_or_changed(
    part: int, seed: int, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    for outcome, details in lose_power(IMAGES // PARTS, f"{seed} {part}", "FULL", memory, monkeypatch, seen):
        assert outcome == "fine", details
    assert all(seen[what] for what in ("folded", "pruned", "checkpointed")), seen


def test_without_a_sync_of_each_commit_the_same_images_lose_epochs(
    seed: int, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Counter(
        outcome for outcome, _ in lose_power(2000, f"{seed}", "NORMAL", memory, monkeypatch, Counter())
    )
    assert found["lost"] > 100, found


def test_without_any_sync_the_same_images_are_damaged(
    seed: int, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Counter(
        outcome for outcome, _ in lose_power(500, f"{seed}", "OFF", memory, monkeypatch, Counter())
    )
    assert found["damaged"] > 100, found
