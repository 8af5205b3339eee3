"""kill -9 at every named point and system call: at its first, a middle and its last pass, and again during recovery."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import MALFORMED, Case, Mismatch, Server, Standing, chain_commands, lines, points

from secondpass.errors import StoreDamaged
from secondpass.store.spool import Command

CALLS = {
    "db": ("write", "sync"),
    "wal": ("write", "sync"),
    "sink": ("write", "sync"),
    "lock": ("write", "sync"),
}
SYSTEM = [
    f"sys.{where}.{call}.{moment}"
    for where, calls in CALLS.items()
    for call in calls
    for moment in ("before", "torn", "after")
    if call == "write" or moment != "torn"
]
# Passed by other commands than `run`, or by other apps: test_retries.py, test_fresh.py and test_log.py kill there.
ELSEWHERE = {name for name in points() if name.startswith(("spool.put.", "fresh.", "log."))}
ON_A_WORKER = [name for name in points() if name.startswith("worker.")]
IN_THE_HUB = [name for name in points() if name not in ELSEWHERE and name not in ON_A_WORKER]
HERE = [*IN_THE_HUB, *SYSTEM]

Scenario = tuple[Case, dict[str, int]]
"""A case, and how often its hub passes each point."""


@pytest.fixture(scope="module")
def new(server: Server, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Case:
    """An app that has never run."""
    content = lines(random.Random(f"{seed} new"), 450)
    return Case.make(tmp_path_factory.mktemp("new") / "case", server, content)


@pytest.fixture(scope="module")
def later(server: Server, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Case:
    """An app that was killed before a delivery; since then its input grew, its weights changed, and commands wait."""
    rng = random.Random(f"{seed} later")
    case = Case.make(tmp_path_factory.mktemp("later") / "case", server, lines(rng, 400))
    assert case.run(expect=None, SECONDPASS_KILL_AT="deliver.before:13") == -9
    case.check_after_kill()
    case.append(lines(rng, 400, first=400))
    case.weigh()
    letters = case.letters()
    first = {task: number for number, task in reversed(letters)}
    case.ask(Command("retry", first["Recent"], {"value": 3.0}))
    case.ask(Command("drop", letters[-1][0]))
    case.ask(Command("retry", first["Split"]))
    case.ask(Command("retry", first[MALFORMED], {"n": 9002, "cid": 2, "time": 6.0, "value": 4.0}))
    case.ask(Command("retry", 10_000))
    for command in chain_commands():
        case.ask(command)
    case.steady = True
    return case


@pytest.fixture(scope="module")
def scenarios(new: Case, later: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    """Both apps, and the later one with its tasks on workers, each with how often its hub passes each point."""
    on_workers = later.copy(tmp_path_factory.mktemp("on-workers") / "case").on_workers()
    found: dict[str, Scenario] = {}
    for name, case in (("new", new), ("later", later), ("on workers", on_workers)):
        counted = case.copy(tmp_path_factory.mktemp("count") / "case")
        counts = counted.count()
        assert not set(counts) & set(ON_A_WORKER), "a worker's point was passed in the hub"
        standing = counted.check()
        assert standing.folded, "no fold happened: the test shows too little"
        assert standing.kept_from, "nothing was pruned: the test shows too little"
        found[name] = (case, counts)
    return found


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Case], Case]:
    made = iter(range(1_000_000))
    return lambda case: case.copy(tmp_path / str(next(made)))


def passes(point: str, scenario: Scenario) -> list[int]:
    """The first, a middle and the last pass; on workers, where runs take longer, the middle one."""
    case, counts = scenario
    if point not in counts:
        return []
    last = surely(point, counts[point])
    middle = (last + 1) // 2
    return [middle] if case.options else sorted({1, middle, last})


def surely(point: str, count: int) -> int:
    """So many passes there are in every run: how many pages SQLite writes, and slices a fold, varies a little."""
    return max(1, count * 9 // 10) if point.startswith(("sys.wal.write", "sys.db.write", "fold.")) else count


def kill_at(case: Case, point: str, number: int, **env: str) -> Standing | None:
    """Run until the point's pass; the process must have been killed there, and nothing may be wrong."""
    code = case.run(expect=None, SECONDPASS_KILL_AT=f"{point}:{number}", **env)
    assert code == -9, f"pass {number} of {point} was not reached: exit code {code}\n{case.log()}"
    return case.check_after_kill()


def finish(case: Case, point: str) -> Standing:
    """Run to the end; all must be there."""
    try:
        case.run()
        return case.check()
    except AssertionError as error:
        error.add_note(f"after kill -9 at {point}")
        raise


@pytest.mark.parametrize("point", HERE)
def test_a_run_killed_at_a_point_goes_on_as_if_it_had_not_been(
    point: str, scenarios: dict[str, Scenario], copies: Callable[[Case], Case]
) -> None:
    kills = [(name, n) for name, scenario in scenarios.items() for n in passes(point, scenario)]
    assert kills, f"no run passes {point}: a scenario for it is missing"
    for name, number in kills:
        killed = copies(scenarios[name][0])
        kill_at(killed, point, number)
        finish(killed, f"pass {number} of {point}, {name}")
        killed.remove()


@pytest.mark.parametrize("point", ON_A_WORKER)
def test_workers_that_are_all_killed_at_a_point_change_nothing(
    point: str,
    scenarios: dict[str, Scenario],
    copies: Callable[[Case], Case],
    rng: random.Random,
) -> None:
    case = copies(scenarios["on workers"][0])
    # Each process counts for itself: all workers end at this pass, one after the other.
    case.run(SECONDPASS_KILL_AT=f"{point}:{rng.randint(3, 8)}")
    case.check()


@pytest.mark.parametrize("point", ON_A_WORKER)
def test_a_hub_killed_while_its_workers_are_loses_nothing(
    point: str,
    scenarios: dict[str, Scenario],
    copies: Callable[[Case], Case],
    rng: random.Random,
) -> None:
    case, counts = scenarios["on workers"]
    killed, number = copies(case), rng.randint(1, counts["commit.after"])
    code = killed.run(expect=None, SECONDPASS_KILL_AT=f"commit.after:{number},{point}:3")
    assert code == -9, f"exit code {code}\n{killed.log()}"
    killed.check_after_kill()
    finish(killed, f"pass {number} of commit.after, workers at pass 3 of {point}")


FIRST_FAULTS = (
    "commit.sync.before",
    "commit.after",
    "deliver.before",
    "sys.sink.write.torn",
    "sys.wal.write.torn",
    "sys.wal.sync.before",
    "sink.sync.after",
    "fold.slice.after",
    "fold.end.after",
    "prune.after",
    "spool.remove.before",
    "finish.before",
)


@pytest.mark.parametrize("first", FIRST_FAULTS)
def test_a_recovery_killed_at_any_point_loses_nothing(
    first: str,
    scenarios: dict[str, Scenario],
    copies: Callable[[Case], Case],
    rng: random.Random,
) -> None:
    case, counts = scenarios["later"]
    broken = copies(case)
    number = rng.randint(1, surely(first, counts[first]))
    kill_at(broken, first, number)
    reached = copies(broken).count()
    # The points of a recovery, and some of what follows it: all firsts together cover every point.
    early = [p for p in reached if p.startswith(("store.", "start.", "recover.", "lock.", "spool."))]
    for second in [*early, *rng.sample(sorted(set(reached) - set(early)), 4)]:
        twice = copies(broken)
        kill_at(twice, second, 1)
        finish(twice, f"pass {number} of {first}, then pass 1 of {second}")
        twice.remove()


def test_every_point_in_the_source_is_killed_at_by_some_test() -> None:
    assert {p.partition(".")[0] for p in ELSEWHERE} <= {"spool", "fresh", "log"}
    assert len(HERE) >= 40


MUTANTS = {
    "deliver_before_commit": ("commit.sync.before", 5),
    "no_transaction": ("commit.write.after", 5),
    "sink_starts_over": ("deliver.after", 5),
    "forget_a_cell": ("commit.after", 6),
}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_comparison_notices_a_mistake_in_the_engine(
    mistake: str, new: Case, copies: Callable[[Case], Case]
) -> None:
    point, number = MUTANTS[mistake]
    case = copies(new)
    # It may show at the kill, at the next start or at the end.
    with pytest.raises((Mismatch, AssertionError, StoreDamaged)) as found:  # noqa: PT012
        kill_at(case, point, number, SECONDPASS_TEST_MUTATE=mistake)
        case.run(SECONDPASS_TEST_MUTATE=mistake)
        case.check()
    assert "was not reached" not in str(found.value)
