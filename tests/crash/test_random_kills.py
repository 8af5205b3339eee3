"""kill -9 from outside at random moments of running apps, again and again, until each app has come to its end.

SECONDPASS_KILLS says how many kills there are in all (200 normally; `make crash` asks for 5,000). They are
shared out over the tests of this file; a test goes on with new apps until it has made its share. In more than a third
of the shares tasks run on workers, which are killed as well as the hub.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    MALFORMED,
    MIXED,
    ON_WORKERS,
    STREAMS,
    Case,
    Mismatch,
    Process,
    Server,
    Standing,
    all_gone,
    chain_commands,
    kill_a_worker,
    lines,
    nursery_of,
    until,
    workers_of,
)

from secondpass.errors import StoreError
from secondpass.store.database import Store
from secondpass.store.spool import Command

KILLS = int(os.environ.get("SECONDPASS_KILLS") or 200)
SHARES = 12
WITH_WORKERS, FOLLOWED = 4, 2  # of the shares; one of those that are followed has workers too


class Drawn:
    """Random choices of one app, to be printed when it fails."""

    def __init__(self, rng: random.Random) -> None:
        self.records = rng.randint(200, 2500)
        self.epoch_records = rng.choice((1, 7, 50, 300))
        self.commands = rng.randint(0, 3)
        self.of_chain = [c for c in chain_commands() if c.kind != "pause"]
        # Most of the time until a run ends; at times so little that even recovery is cut off.
        self.delay_s = rng.choice((0.03, 0.15, 0.3))
        self.spec = rng.choice((ON_WORKERS, ON_WORKERS, MIXED))
        self.by_time = rng.choice(("", "", "timers", "timers and timetables"))
        self.log: list[str] = []

    def __str__(self) -> str:
        return (
            f"{self.spec} {self.by_time}, {self.records} records, epochs of {self.epoch_records}, {self.commands} commands; "
            f"{'; '.join(self.log[-12:])}"
        )


def share_of(number: int) -> int:
    """How many kills the test of this number makes."""
    return KILLS // SHARES + (number < KILLS % SHARES)


def killed(process: Process, after_s: float) -> bool:
    """Kill a process after so long; whether that was before its end."""
    if process.ended(after_s):
        code = process.wait()
        assert code == 0, f"the run ended by itself with exit code {code}"
        return False
    process.kill()
    return process.wait() == -signal.SIGKILL


def ask_something(case: Case, rng: random.Random, drawn: Drawn) -> None:
    """Now and then change the weights, or leave a command for a dead letter in the spool."""
    if rng.random() < 0.3:
        case.weigh()
    if drawn.commands == 0 or rng.random() < 0.5 or not (case.store / "store.db").exists():
        return
    try:
        found = case.letters()
    except Exception:  # noqa: BLE001 - killed while the store was made: there is nothing to read yet
        return
    if not found:
        return
    drawn.commands -= 1
    if rng.random() < 0.5:
        for command in rng.sample(drawn.of_chain, rng.randint(1, 3)):
            case.ask(command)
        return
    number, task = rng.choice(found)
    event = (
        rng.choice(({"value": 50.0}, None))
        if task != MALFORMED
        else {"n": 1, "cid": 2, "time": 3.0, "value": 4.0}
    )
    case.ask(rng.choice((Command("retry", number, event), Command("drop", number))))


def by_time(case: Case, drawn: Drawn) -> None:
    """Let the app have timers, and timetables, where that was drawn."""
    if drawn.by_time == "timers":
        case.timed()
    elif drawn.by_time:
        case.clocked()


def kill_until_it_ends(case: Case, rng: random.Random, drawn: Drawn, wanted: int) -> int:
    """Start and kill the app until a run comes to its end; gives the number of kills."""
    case.epoch_records = drawn.epoch_records
    by_time(case, drawn)
    kills = 0
    while kills < wanted:
        delay_s = rng.uniform(0, drawn.delay_s)
        process = case.start()
        if not killed(process, delay_s):
            break
        kills += 1
        # The state of every tenth kill is compared at once; a mistake in it shows at the end in any case.
        standing = case.check_after_kill(state=rng.random() < 0.1)
        drawn.log.append(
            f"killed after {delay_s * 1e3:.1f} ms at {standing.position if standing else 'nothing'}"
        )
        ask_something(case, rng, drawn)
        if kills % 10 == 0:
            drawn.delay_s *= 2  # so that the app comes to its end
    case.run()
    case.check()
    return kills


def kill_workers_until_it_ends(case: Case, rng: random.Random, drawn: Drawn, wanted: int) -> int:
    """As above with tasks on workers: some workers are killed, then the hub; gives the number of kills."""
    case.on_workers(drawn.spec)
    case.epoch_records = max(
        7, drawn.epoch_records
    )  # a commit for each record, and nobody is ever killed at work
    kills = 0
    while kills < wanted:
        process = case.start()
        killed_workers = 0
        for _ in range(min(rng.randrange(4), wanted - kills - 1)):
            until(lambda hub=process: bool(workers_of(hub.pid)) or hub.ended(0.0))
            if process.ended(rng.uniform(0, drawn.delay_s)):
                break
            killed_workers += kill_a_worker(process.pid, rng)
        kills += killed_workers
        delay_s = rng.uniform(0, 2 * drawn.delay_s)
        ended = process.ended(delay_s)
        family = [] if ended else [p for p in (nursery_of(process.pid), *workers_of(process.pid)) if p]
        if not killed(process, 0.0):
            break
        kills += 1
        all_gone(family, 2.0)
        standing = case.check_after_kill(state=rng.random() < 0.3)
        drawn.log.append(
            f"killed {killed_workers} workers, then the hub {delay_s * 1e3:.1f} ms later "
            f"at {standing.position if standing else 'nothing'}"
        )
        ask_something(case, rng, drawn)
        if kills % 10 == 0:
            drawn.delay_s *= 2
    case.run()
    case.check()
    return kills


@pytest.mark.slow
@pytest.mark.timeout(400)  # thousands of commits to a slow disk
@pytest.mark.parametrize("number", range(WITH_WORKERS))
def test_kills_of_workers_and_of_their_hub_lose_and_repeat_nothing(
    number: int, server: Server, tmp_path: Path, rng: random.Random, seed: int, record_property: Any
) -> None:
    make_share(number, server, tmp_path, rng, seed, record_property, kill_workers_until_it_ends)


@pytest.mark.slow
@pytest.mark.timeout(400)  # thousands of commits to a slow disk
@pytest.mark.parametrize("number", range(WITH_WORKERS, SHARES - FOLLOWED))
def test_kills_at_random_moments_lose_and_repeat_nothing(
    number: int, server: Server, tmp_path: Path, rng: random.Random, seed: int, record_property: Any
) -> None:
    make_share(number, server, tmp_path, rng, seed, record_property, kill_until_it_ends)


def make_share(
    number: int,
    server: Server,
    tmp_path: Path,
    rng: random.Random,
    seed: int,
    record_property: Any,
    kill: Callable[[Case, random.Random, Drawn, int], int],
) -> None:
    """Kill one app after the other until this test has made its share."""
    made, apps = 0, 0
    record_property("kills", share_of(number))
    while made < share_of(number):
        drawn = Drawn(rng)
        case = Case.make(tmp_path / str(apps), server, lines(rng, drawn.records))
        try:
            made += kill(case, rng, drawn, share_of(number) - made)
        except BaseException as error:
            error.add_note(f"SEED={seed}, app {apps}, kill {made}: {drawn}")
            raise
        case.remove()
        apps += 1


class Reader:
    """Someone who follows an output file and never sees anything but whole outputs growing in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = b""

    def look(self) -> None:
        found = self._path.read_bytes() if self._path.exists() else b""
        assert len(found) >= len(self.seen), (
            f"{self._path} shrank from {len(self.seen)} to {len(found)} bytes"
        )
        assert found.startswith(self.seen), f"{self._path} changed what a reader had seen"
        self.seen = found


@pytest.mark.slow
@pytest.mark.timeout(400)  # thousands of commits to a slow disk
@pytest.mark.parametrize("number", range(SHARES - FOLLOWED, SHARES))
def test_a_followed_input_survives_kills_while_it_is_written(
    number: int, server: Server, tmp_path: Path, rng: random.Random, seed: int, record_property: Any
) -> None:
    made, apps = 0, 0
    record_property("kills", share_of(number))
    while made < share_of(number):
        drawn = Drawn(rng)
        case = Case.make(tmp_path / str(apps), server, [])
        if number % 2:
            case.on_workers(drawn.spec)
        else:
            by_time(case, drawn)
        readers = [Reader(case.directory / name) for name in ("out.jsonl", "pages.jsonl")]
        try:
            made += _follow(case, rng, drawn, readers, min(15, share_of(number) - made))
        except BaseException as error:
            error.add_note(f"SEED={seed}, app {apps}, kill {made}: {drawn}")
            raise
        case.remove()
        apps += 1


def _follow(case: Case, rng: random.Random, drawn: Drawn, readers: list[Reader], kills: int) -> int:
    case.epoch_records = drawn.epoch_records
    written = 0
    data = b"".join(lines(rng, drawn.records))
    with (case.directory / "in.jsonl").open("ab", buffering=0) as file:
        for _ in range(kills):
            process = case.start("--follow")
            until_s = time.monotonic() + rng.uniform(0.02, 0.25)
            while time.monotonic() < until_s:
                # Cut anywhere, so that the app meets half lines.
                written += file.write(data[written : written + rng.randint(0, 2000)])
                for reader in readers:
                    reader.look()
                time.sleep(0.001)
            assert killed(process, 0.0), "a followed input has no end"
            for reader in readers:
                reader.look()
            standing = case.check_after_kill(state=rng.random() < 0.3)
            drawn.log.append(
                f"killed at {standing.position if standing else 'nothing'} with {written} bytes written"
            )
            ask_something(case, rng, drawn)
        file.write(data[written:])
    process = case.start("--follow")
    until(lambda: _caught_up(case, len(data)))
    process.kill(signal.SIGINT)
    process.wait()
    case.check()
    for reader in readers:
        reader.look()
    return kills


def _caught_up(case: Case, size: int) -> bool:
    try:
        store = Store.open_to_read(case.store)
    except StoreError:
        return False  # all kills came before it was made
    try:
        progress = store.progress
        read = bool(progress.sources) and progress.sources[0]["offset"]["bytes"] == size
        done = set(progress.commands) >= set(case.wants)
        paths = {s: case.directory / name for s, name in STREAMS.items()}
        sizes = {s: path.stat().st_size for s, path in paths.items() if path.exists()}
        return (
            read
            and done
            and len(sizes) == len(paths)
            and all(progress.totals.get(s, 0) == n for s, n in sizes.items())
        )
    finally:
        store.close()


def test_the_random_kills_notice_a_mistake(
    new_case: Callable[[list[bytes]], Case], rng: random.Random
) -> None:
    def once() -> Standing | None:
        case = new_case(lines(rng, 1500))
        case.epoch_records = 20
        for _ in range(20):
            if not killed(case.start(SECONDPASS_TEST_MUTATE="sink_starts_over"), rng.uniform(0.05, 0.2)):
                break
            case.check_after_kill()
        return case.check()

    with pytest.raises((Mismatch, AssertionError)):  # noqa: PT012 - a mistake may hide from one app's kills
        for _ in range(10):
            once()
