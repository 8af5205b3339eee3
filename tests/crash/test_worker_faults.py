"""Workers that are killed, stopped, exhausted, or ended by what they run: the answer stays that of the plain loop.

Every run is the real command, and `faulty.py` compares what it leaves.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty_app
import psutil
import pytest
from faulty import Faulty, Run
from faulty_app import Item, Tagged
from harness import all_gone, gone, until

from secondpass import reference
from secondpass.store.spool import Command, Spool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

INTERRUPTED, TASK = 130, 3


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Callable[..., Faulty]]:
    """Makes an app with its input."""
    made: list[Faulty] = []

    def make(name: str, items: list[Item] | None = None) -> Faulty:
        made.append(Faulty(tmp_path / f"{len(made)}", name))
        if items is not None:
            made[-1].add(items)
        return made[-1]

    yield make
    for case in made:
        case.end()


New = Callable[..., Faulty]


def items(count: int, faults: dict[int, str] | None = None, first: int = 0, default: str = "") -> list[Item]:
    """Neighbours everywhere: twenty cameras, in an order that lets some events wait and others not."""
    given = faults or {}
    return [
        Item(n=n, cid=n * 7 % 20, time=float(n), fault=given.get(n, default))
        for n in range(first, first + count)
    ]


def strewn(rng: random.Random, count: int, faults: list[str]) -> dict[int, str]:
    """Each fault at a place of its own."""
    return dict(zip(rng.sample(range(count), len(faults)), faults, strict=True))


# ---------------------------------------------------------------- workers that end, and events that are innocent

MEANT = ["unpicklable", "exit-like"]
"""Errors of the task: dead letters, in the plain loop too."""
ONCE = ["once:segv", "once:exit", "once:abort", "once:thread-exit", *MEANT]
CHAINS = ["keyed", "barrier", "stateless", "batch", "serial", "everything"]


@pytest.mark.parametrize("name", CHAINS)
def test_an_event_that_ends_its_worker_once_is_acquitted(name: str, new: New, rng: random.Random) -> None:
    faults = strewn(rng, 400, ONCE)
    case = new(name, items(400, faults))
    report = case.run().report()
    wanted = case.check()
    assert case.verdicts() == []
    assert len(wanted.dead_letters) == len(MEANT)
    assert report["convicted"] == 0
    # In a batch nobody can tell which event it was; they run one by one then, and nobody is suspect.
    assert report["acquitted"] > 0 or name == "batch"


def test_an_endless_loop_ends_at_its_limit_and_the_event_is_tried_alone(new: New, rng: random.Random) -> None:
    case = new("bounded", items(200, strewn(rng, 200, ["once:loop", "once:segv", "unpicklable"])))
    case.run()
    case.check()
    assert case.verdicts() == []


def test_only_the_bundles_in_hand_run_again_when_a_worker_dies(new: New, rng: random.Random) -> None:
    at = rng.randrange(1000)
    case = new("stateless", items(1000, {at: "once:exit"}))
    case.run()
    case.check()
    calls = [case.calls(n) for n in range(1000)]
    assert min(calls) == 1
    assert calls[at] == 2
    # Epochs of 64 records on two workers make bundles of at most 16, and each worker has two.
    assert sum(calls) <= 1000 + 2 * 16
    assert max(calls) == 2


def test_a_task_that_prints_much_disturbs_nothing(new: New, rng: random.Random) -> None:
    case = new("keyed", items(100, strewn(rng, 100, ["once:print"])))
    run = case.run()
    case.check()
    assert "x" not in re.sub(r'"[^"]*"', "", run.out)  # standard output holds the report alone
    assert run._err.stat().st_size >= 100 << 20


def test_a_worker_that_runs_out_of_memory_after_some_events_is_replaced(new: New) -> None:
    case = new("leaking", items(60))
    report = case.run().report()
    case.check()
    assert case.verdicts() == []
    assert report["acquitted"] > 0
    assert case.setups() == 0


def test_a_result_that_cannot_be_encoded_stops_the_app_as_in_the_plain_loop(
    new: New, rng: random.Random
) -> None:
    at = rng.randrange(20, 180)
    case = new("odd", items(200, {at: "odd"}))
    stopped = reference.run(case.app.tasks, case.items).stopped
    assert stopped is not None
    run = case.run(expect=TASK)
    case.check(complete=False)
    with case.opened() as store:
        assert store.progress.position == at == stopped.details["position"]
    assert "a lock cannot be encoded" in run.err
    assert case.verdicts() == []
    # Once to find it, and once more among those that precede it.
    assert case.calls(at) <= 2


# ---------------------------------------------------------------- from outside


def kill_often(run: Run, rng: random.Random, pause_s: float, most: int) -> int:
    """kill -9 workers of a run at random moments until it ends; gives how many."""
    killed = 0
    while run.process.poll() is None and killed < most:
        deadline = time.monotonic() + rng.uniform(0, pause_s)
        while time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.001)
        found = run.workers()
        if found:
            with contextlib.suppress(psutil.Error):
                rng.choice(found).kill()
                killed += 1
    return killed


@pytest.mark.parametrize("name", CHAINS)
def test_workers_killed_at_random_moments_change_nothing(name: str, new: New, rng: random.Random) -> None:
    case = new(name, items(300, strewn(rng, 300, ["unpicklable", "once:segv"]), default="nap"))
    run = case.start()
    killed = kill_often(run, rng, 0.06, 15)
    run.wait()
    case.check()
    assert case.verdicts() == []
    assert killed >= 3, "the run was over too soon: the test shows too little"


def test_poison_events_are_found_while_workers_are_killed_from_outside(new: New, rng: random.Random) -> None:
    poison = rng.sample(range(300), 4)
    case = new("keyed", items(300, dict.fromkeys(poison, "segv"), default="nap"))
    run = case.start()
    kill_often(run, rng, 0.06, 15)
    run.wait()
    case.check()
    assert case.convicted() == sorted(poison)


def test_a_nursery_that_is_killed_is_replaced(new: New, rng: random.Random) -> None:
    case = new("keyed", items(300, default="nap"))
    run = case.start()
    for _ in range(3):
        until(lambda: len(run.workers()) == 2 or run.process.poll() is not None)
        nursery = run.nursery()
        if nursery is not None:
            with contextlib.suppress(psutil.Error):
                nursery.kill()
            until(lambda gone=nursery: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE)
    run.wait()
    case.check()
    assert case.verdicts() == []


def test_a_stopped_worker_is_replaced(new: New) -> None:
    case = new("keyed", items(300, default="nap"))
    run = case.start()
    until(lambda: bool(run.workers()))
    run.workers()[0].suspend()
    run.wait()
    case.check()
    assert case.verdicts() == []


def kill_whoever_runs(case: Faulty, run: Run, n: int, times: int) -> None:
    """kill -9 each worker that runs a slow event, so many times."""
    seen: set[str] = set()

    def others() -> list[Path]:
        return [path for path in case.directory.glob(f"slow-{n}-*") if path.name not in seen]

    for _ in range(times):
        until(lambda: bool(others()) or run.process.poll() is not None)
        if run.process.poll() is not None:
            return
        path = others()[0]
        seen.add(path.name)
        pid = int(path.name.rpartition("-")[2])
        for worker in run.workers():
            if worker.pid == pid:
                worker.kill()


@pytest.mark.parametrize("fault", ["slow", "once:exit slow"])
def test_kills_from_outside_never_convict(fault: str, new: New) -> None:
    case = new("keyed", items(100, {57: fault}))
    run = case.start()
    kill_whoever_runs(case, run, 57, 8)
    run.wait()
    case.check()
    assert case.verdicts() == []
    assert case.calls(57) >= 9


def test_an_event_that_is_never_left_alone_stops_the_app_and_is_the_next_one(new: New) -> None:
    case = new("keyed", items(100, {57: "once:exit slow"}))
    run = case.start()
    kill_whoever_runs(case, run, 57, 40)
    run.wait(TASK)
    assert "ended from outside" in run.err
    assert "position 57" in run.err
    assert case.verdicts() == []
    case.check(complete=False)
    case.run()
    case.check()
    assert case.verdicts() == []


# ---------------------------------------------------------------- poison

HOW = {
    "segv": "killed by SIGSEGV",
    "abort": "killed by SIGABRT",
    "exit": "ended with exit code 3",
    "loop": f"ran longer than limit_s={faulty_app.LIMIT_S:g}",
    "memory": "out of memory",
    "thread-exit": "ended with exit code 3",
}


def check_convicted(case: Faulty, faults: dict[int, str]) -> None:
    """Exactly these events were set aside, each for its reason and with the stack where there is one."""
    case.check()
    assert case.convicted() == sorted(faults)
    found = {position: (error, stack) for position, error, stack in case.letters()}
    for position, fault in faults.items():
        assert HOW[fault] in found[position][0]
        if fault in ("segv", "abort", "loop"):
            assert "in harm" in found[position][1]


@pytest.mark.parametrize("name", CHAINS)
def test_a_poison_event_is_set_aside_after_three_trials(name: str, new: New, rng: random.Random) -> None:
    faults = strewn(rng, 300, ["segv", "exit", "abort", "thread-exit"])
    case = new(name, items(300, faults))
    run = case.run()
    check_convicted(case, faults)
    assert run.report()["convicted"] == len(faults)
    # Once among others, three times alone; again with those of a bundle or batch that another one ended.
    assert all(4 <= case.calls(n) <= 12 for n in faults)
    # Another run, and one without workers, ask for none of them again.
    before = {n: case.calls(n) for n in faults}
    case.add(items(50, {310: "segv"}, first=300))
    case.run()
    check_convicted(case, {**faults, 310: "segv"})
    assert {n: case.calls(n) for n in faults} == before


def test_an_event_that_always_takes_too_long_is_set_aside(new: New, rng: random.Random) -> None:
    (at,) = rng.sample(range(200), 1)
    case = new("bounded", items(200, {at: "loop"}))
    case.run()
    check_convicted(case, {at: "loop"})


def test_an_event_that_no_memory_is_enough_for_is_set_aside(new: New, rng: random.Random) -> None:
    (at,) = rng.sample(range(200), 1)
    case = new("limited", items(200, {at: "memory"}))
    case.run()
    check_convicted(case, {at: "memory"})


@pytest.mark.parametrize("at", [0, 150])
def test_an_event_that_ends_its_worker_as_it_is_decoded_is_set_aside(at: int, new: New) -> None:
    case = new("trapped", items(200, {at: "decode"}))
    run = case.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(5)
    assert case.calls(at) <= 12, "it is tried again and again"
    run.wait()
    assert case.convicted() == [at]
    assert case.letters()[0][0] == at


def test_ten_poison_events_in_a_row_are_set_aside(new: New, rng: random.Random) -> None:
    first = rng.randrange(150)
    faults = {n: rng.choice(("segv", "exit")) for n in range(first, first + 10)}
    case = new("everything", items(200, faults))
    case.run()
    check_convicted(case, faults)


def test_one_poison_event_in_every_thousand_is_set_aside(new: New, rng: random.Random) -> None:
    faults = {n * 1000 + rng.randrange(1000): rng.choice(("segv", "exit")) for n in range(5)}
    case = new("keyed", items(5000, faults))
    case.run(SECONDPASS_EPOCH_RECORDS="100000")
    check_convicted(case, faults)


def killed_after_the_verdict(case: Faulty, poison: int, looping: int, **env: str) -> None:
    """Run to the poison event's verdict and kill -9 the hub, while an event that waited for it still runs."""
    run = case.start(workers=2, **env)
    until(
        lambda: (
            run.process.poll() is not None
            or (case.convicted() == [poison] and case.size(f"looping-{looping}") > 0)
        )
    )
    assert run.process.poll() is None, run.err
    run.process.kill()
    run.process.wait()
    with case.opened() as store:
        assert store.progress.position <= poison


def test_a_verdict_is_obeyed_by_a_run_after_kill_9_of_the_hub(new: New) -> None:
    case = new("keyed", items(100, {12: "segv", 15: "once:loop"}))
    killed_after_the_verdict(case, 12, 15)
    calls = case.calls(12)
    case.check(complete=False, delivered=False)
    case.run()
    check_convicted(case, {12: "segv"})
    assert case.calls(12) == calls


def test_a_verdict_is_obeyed_by_a_run_without_workers(new: New) -> None:
    case = new("keyed", items(100, {12: "segv", 15: "once:loop"}))
    killed_after_the_verdict(case, 12, 15)
    calls = case.calls(12)
    case.run(workers=0)
    check_convicted(case, {12: "segv"})
    assert case.calls(12) == calls


def test_a_verdict_is_obeyed_whatever_the_order_of_a_set_in_its_event(new: New) -> None:
    case = new("tagged")
    tags = frozenset({"north", "south", "east", "west", "lane", "ramp"})
    case.add(
        [Tagged(n=i.n, cid=i.cid, time=i.time, fault=i.fault, tags=tags) for i in items(20, {12: "segv"})]
    )
    case.add([Tagged(n=20, cid=0, time=60.0, fault="once:loop")])
    killed_after_the_verdict(case, 12, 20, PYTHONHASHSEED="1", SECONDPASS_EPOCH_RECORDS="100")
    calls = case.calls(12)
    case.run(PYTHONHASHSEED="2")
    assert case.calls(12) == calls
    assert case.convicted() == [12]
    assert [position for position, _, _ in case.letters()] == [12]


def test_a_verdict_stays_with_its_event_when_a_command_is_done_first(new: New) -> None:
    case = new("keyed", items(100, {3: "unpicklable", 22: "segv", 26: "once:loop"}))
    case.run("--limit", "20")
    killed_after_the_verdict(case, 22, 26)
    case.command("dead-letters", "retry", "faulty_app.py:keyed", "0").wait()
    case.run()
    wanted = case.check()
    set_aside = [letter.event.n for letter in wanted.dead_letters if "killed its worker" in letter.error]
    assert set_aside == [22]


def test_a_poison_event_sent_again_is_set_aside_again(new: New) -> None:
    case = new("keyed", items(100, {22: "segv", 60: "exit"}))
    case.run()
    for letter in ("0", "1"):
        case.command("dead-letters", "retry", "faulty_app.py:keyed", letter).wait()
    case.run()
    case.check()
    assert case.convicted() == [22, 60, 100, 101]
    case.add(items(50, first=100))
    case.run()
    case.check()


def test_poison_events_pass_where_the_task_says_so(new: New, rng: random.Random) -> None:
    faults = strewn(rng, 200, ["segv", "exit", "loop", "unpicklable"])
    case = new("passing", items(200, faults))
    case.run()
    wanted = case.check()
    assert wanted.dead_letters == []
    assert case.convicted() == sorted(n for n, fault in faults.items() if fault in HOW)


def test_a_poison_event_stops_the_app_where_the_task_says_so(new: New, rng: random.Random) -> None:
    at = rng.randrange(200)
    case = new("stopping", items(200, {at: "segv"}))
    calls = 0
    for _ in range(2):
        run = case.run(expect=TASK)
        assert f"position {at}" in run.err
        assert "killed by SIGSEGV" in run.err
        with case.opened() as store:
            assert store.progress.position == at
        case.check(complete=False)
        # What was decided is not tried again.
        assert calls in (0, case.calls(at))
        calls = case.calls(at)
    assert case.convicted() == [at]


# ---------------------------------------------------------------- chains with timers, which run in the hub

ENDS = {"segv": -signal.SIGSEGV, "abort": -signal.SIGABRT, "exit": 3}


def run_to_the_end(case: Faulty, deaths: int, *, workers: int = 2, **env: str) -> list[int]:
    """Run until all is done: where the hub had got to at each of its deaths, of which there are so many at most."""
    reached: list[int] = []
    while case.run(expect=None, workers=workers, **env).process.returncode in ENDS.values():
        with case.opened() as store:
            reached.append(store.progress.position)
        assert len(reached) <= deaths, case.runs[-1].err[-3000:]
    assert case.runs[-1].process.returncode == 0, case.runs[-1].err[-3000:]
    assert not (case.store / "tried").exists()
    return reached


@pytest.mark.parametrize("fault", ENDS)
@pytest.mark.parametrize("task", ["First", "Clocked", "Timer", "Last"])
def test_a_poison_event_ends_a_hub_with_timers_once(task: str, fault: str, new: New) -> None:
    case = new("clocked", items(40, {9: f"{fault}@{task}"}))
    assert run_to_the_end(case, 1) == [0]
    case.check()
    # Passed on by `handle`, and sent on by the timer: each is a call of its own.
    assert len(case.verdicts()) == (2 if task == "Last" else 1)
    assert all(HOW[fault] in verdict.error for verdict in case.verdicts())
    if fault != "exit":
        assert all("in harm" in verdict.traceback for verdict in case.verdicts())
    assert "it is set aside" in case.runs[-1].err
    calls = case.calls(9)
    case.add(items(40, first=40))
    case.run()
    case.check()
    assert case.calls(9) == calls


@pytest.mark.parametrize("workers", [0, 2])
def test_all_poison_events_of_an_epoch_end_a_hub_with_timers_once(workers: int, new: New) -> None:
    faults = {0: "segv@Clocked", 1: "exit@Timer", 2: "segv@First", 8: "abort@Last", 9: "exit@Clocked"}
    case = new("clocked", items(80, {**faults, 10: "segv@Timer", 11: "unpicklable@Timer", 20: "segv@Last"}))
    assert run_to_the_end(case, 1, workers=workers) == [0]
    case.check()
    # Events 8 and 20 leave `handle` twice, and come once more of their timers.
    assert len(case.verdicts()) == 5 + 3 + 3
    assert len(case.letters()) == 5 + 3 + 3 + 1


def test_poison_events_anywhere_end_a_hub_with_timers_once_for_each_epoch(
    new: New, rng: random.Random
) -> None:
    what = [f"{how}@{task}" for how in ENDS for task in ("First", "Clocked", "Timer", "Last")]
    case = new("clocked", items(150, strewn(rng, 150, [*what, "once:segv@Clocked", "once:exit@Timer"])))
    reached = run_to_the_end(case, 25, SECONDPASS_EPOCH_RECORDS=str(rng.choice([1, 7, 64])))
    assert sorted(set(reached)) == reached, "it ended twice in the same place"
    case.check()
    assert len(case.verdicts()) >= 12


def test_an_event_that_ends_a_hub_with_timers_once_is_acquitted(new: New) -> None:
    case = new("clocked", items(40, {9: "once:segv@Clocked", 12: "once:exit@Timer"}))
    assert run_to_the_end(case, 2) == [0]
    case.check()
    assert case.verdicts() == []


@pytest.mark.parametrize("task", ["Clocked", "Timer"])
@pytest.mark.parametrize("name", ["clocked_passing", "clocked_stopping"])
def test_a_convicted_call_of_a_hub_with_timers_is_treated_as_its_task_says(
    name: str, task: str, new: New
) -> None:
    case = new(name, items(40, {9: f"segv@{task}"}))
    assert case.run(expect=None).process.returncode == -signal.SIGSEGV
    if name == "clocked_passing":
        case.run()
        assert case.check().dead_letters == []
        return
    calls = 0
    for _ in range(2):
        run = case.run(expect=TASK)
        assert "killed by SIGSEGV" in run.err
        case.check(complete=False)
        assert calls in (0, case.calls(9))
        calls = case.calls(9)
    assert len(case.verdicts()) == 1


@pytest.mark.parametrize("point", ["commit.before", "commit.after", "take.after"])
def test_a_hub_with_timers_that_is_killed_while_others_try_its_records_goes_on_so(
    point: str, new: New
) -> None:
    case = new("clocked", items(60, {9: "segv@Clocked", 10: "exit@Timer", 20: "segv@Clocked"}))
    assert case.run(expect=None).process.returncode == -signal.SIGSEGV
    for turn in (1, 1, 2):
        killed = case.run(expect=None, SECONDPASS_KILL_AT=f"{point}:{turn}")
        assert killed.process.returncode == -signal.SIGKILL
        case.check(complete=False, delivered=False)
    case.run()
    case.check()
    assert len(case.verdicts()) == 3


@pytest.mark.parametrize("task", ["Clocked", "Timer"])
def test_a_dead_letter_that_ends_a_hub_with_timers_is_sent_again_and_set_aside_again(
    task: str, new: New
) -> None:
    case = new("clocked", items(40, {9: f"segv@{task}"}))
    run_to_the_end(case, 1)
    case.command("dead-letters", "retry", "faulty_app.py:clocked", "0").wait()
    assert run_to_the_end(case, 0) == []
    case.check()
    assert [verdict.position for verdict in case.verdicts()][1:] == [40]


def test_a_dead_letter_that_ends_a_hub_with_timers_for_the_first_time_does_so_once(new: New) -> None:
    case = new("clocked", items(40, {9: "unpicklable@Clocked segv@Clocked"}))
    case.run()
    spool = Spool(case.store)
    mended = {"fault": "segv@Clocked"}
    spool.put(Command("retry", 0, mended))
    assert run_to_the_end(case, 1) == [40]
    case.check(mended={0: mended})
    assert [verdict.position for verdict in case.verdicts()] == [40]


def test_a_timer_that_ends_the_hub_on_an_idle_stream_does_so_once(new: New) -> None:
    case = new("clocked", items(2, {0: "segv@Timer"}))
    first = case.start("--follow")
    assert first.wait(expect=None) == -signal.SIGSEGV
    run = case.start("--follow")
    until(lambda: bool(case.letters()) or run.process.poll() is not None)
    run.process.terminate()
    run.wait(expect=None)
    case.check(complete=False)
    (verdict,) = case.verdicts()
    assert (verdict.position, verdict.path) == (2, (-1,))
    assert "in harm" in verdict.traceback


def test_kills_from_outside_convict_nothing_that_a_hub_with_timers_runs(new: New) -> None:
    case = new("clocked", items(40, {9: "once:segv slow@Clocked"}))
    assert case.run(expect=None).process.returncode == -signal.SIGSEGV
    run = case.start()
    kill_whoever_runs(case, run, 9, 6)
    run.wait()
    case.check()
    assert case.verdicts() == []


def test_a_hub_with_timers_whose_event_is_never_left_alone_stops_before_it(new: New) -> None:
    case = new("clocked", items(40, {9: "once:segv slow@Clocked"}))
    assert case.run(expect=None).process.returncode == -signal.SIGSEGV
    run = case.start()
    kill_whoever_runs(case, run, 9, 40)
    run.wait(TASK)
    assert "ended from outside" in run.err
    assert "position 9" in run.err
    case.check(complete=False)
    case.run()
    case.check()
    assert case.verdicts() == []


# ---------------------------------------------------------------- copies, and workers that cannot start


@pytest.mark.parametrize("name", ["alone", "alone_keyed"])
def test_a_task_with_one_copy_is_set_up_in_one_process(name: str, new: New) -> None:
    case = new(name, items(500))
    case.run()
    case.check()
    assert case.setups() == 1


def test_a_task_with_one_copy_is_set_up_again_only_after_a_death(new: New) -> None:
    case = new("alone", items(200, {30: "once:exit", 100: "segv"}))
    case.run()
    check_convicted(case, {100: "segv"})
    # At first, after each of five deaths, and for a trial: a trial begins in a new process.
    assert 5 <= case.setups() <= 8


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "RuntimeError: no such model"),
        ("segv", "killed by SIGSEGV"),
        ("exit", "ended with exit code 5"),
    ],
)
def test_a_setup_that_fails_on_workers_stops_the_app_at_once(how: str, said: str, new: New) -> None:
    case = new(f"unready_{how}", items(100))
    case.run(FAULTY="")
    case.add(items(100, first=100))
    run = case.run(expect=TASK)
    assert len(re.findall("^error:", run.err, re.MULTILINE)) == 1
    assert "Unready: setup()" in run.err
    assert said in run.err
    assert 1 <= case.setups() <= 2
    with case.opened() as store:
        assert store.progress.position == 100
    case.check(complete=False)
    case.run(FAULTY="")
    case.check()


def test_a_setup_that_is_ended_from_outside_now_and_then_stops_nothing(new: New) -> None:
    case = new("slow_setup", items(1500))
    run = case.start(workers=1, SECONDPASS_EPOCH_RECORDS="40")
    seen: set[str] = set()

    def others() -> list[str]:
        return [p.name for p in case.directory.glob("setup-*") if p.name not in seen]

    for turn in range(48):
        until(lambda: bool(others()) or run.process.poll() is not None)
        if run.process.poll() is not None:
            break
        (name,) = others()
        seen.add(name)
        pid = name.rpartition("-")[2]
        # Every second process is ended in its setup, the others when they have answered some bundles.
        if turn % 2:
            until(lambda pid=pid: case.size(f"worked-{pid}") >= 15 or run.process.poll() is not None)
        for worker in run.workers():
            if worker.pid == int(pid):
                worker.kill()
    run.wait()
    case.check()
    in_setup = [name for name in seen if not case.size(f"ready-{name.rpartition('-')[2]}")]
    assert len(in_setup) > 20
    assert case.verdicts() == []


@pytest.mark.parametrize("load", ["raise", "thread raise"])
def test_a_file_that_workers_cannot_load_stops_the_app_at_once(load: str, new: New) -> None:
    case = new("keyed", items(100))
    case.run()
    case.add(items(100, first=100))
    run = case.start(FAULTY_LOAD=load)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(5)
    assert case.size("loads") <= 3, "it is tried again and again"
    run.wait(TASK)
    assert len(re.findall("^error:", run.err, re.MULTILINE)) == 1
    assert "no such library on workers" in run.err
    case.check(complete=False)
    case.run()
    case.check()


def test_workers_that_are_always_ended_before_their_first_event_stop_the_app(new: New) -> None:
    case = new("keyed", items(100))
    run = case.start(SECONDPASS_KILL_AT="worker.bundle.before:1")
    try:
        run.process.wait(8)
    except subprocess.TimeoutExpired:
        pytest.fail("it is tried again and again")
    run.wait(TASK)
    case.run()
    case.check()
    assert case.verdicts() == []


def test_workers_that_cannot_be_forked_give_the_same_answer(new: New) -> None:
    case = new("keyed", items(200, {30: "once:exit", 100: "segv", 120: "unpicklable"}))
    case.run(FAULTY_LOAD="thread")
    case.check()
    assert case.convicted() == [100]


# ---------------------------------------------------------------- the hub's end


def test_nobody_outlives_a_hub_that_is_killed(new: New, rng: random.Random) -> None:
    case = new("keyed", items(300, {40: "once:loop"}))
    run = case.start()
    until(lambda: case.size("looping-40") > 0)
    family = run.family()
    assert len(family) >= 2
    run.process.kill()
    all_gone(family, 2.0)
    run.process.wait()
    case.check(complete=False, delivered=False)
    case.run()
    case.check()
    assert case.verdicts() == []


@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_ends_all_processes_after_the_epoch(moment: int, new: New, rng: random.Random) -> None:
    case = new(
        "everything", items(600, strewn(rng, 600, ["once:exit", "segv", "unpicklable"]), default="nap")
    )
    run = case.start()
    until(lambda: len(run.workers()) == 2)
    deadline = time.monotonic() + rng.uniform(0, 0.6)
    family: list[psutil.Process] = []
    while time.monotonic() < deadline:
        family += [p for p in run.family() if p not in family]
        time.sleep(0.005)
    os.killpg(run.process.pid, signal.SIGINT)
    run.wait(INTERRUPTED)
    assert "Traceback" not in run.err
    assert "error" not in run.err
    assert run.report()["ended"] == "stopped"
    assert gone(family)
    case.check(complete=False)
    case.run()
    case.check()


def test_a_second_ctrl_c_ends_workers_that_do_not_come_to_an_end(new: New) -> None:
    case = new("keyed", items(300, {40: "once:loop"}))
    run = case.start()
    until(lambda: case.size("looping-40") > 0)
    family = run.family()
    os.killpg(run.process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(0.3)  # the first one has been taken, and waits for the epoch
    os.killpg(run.process.pid, signal.SIGINT)
    run.wait(INTERRUPTED)
    assert "Traceback" not in run.err
    all_gone(family, 2.0)
    case.check(complete=False, delivered=False)
    case.run()
    case.check()
