"""Workers as real processes: however one of them ends, the hub learns what happened, and nobody stays behind."""

import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from secondpass import loading
from secondpass.engine.executor import BETWEEN, SETTING_UP, Death, Done, Lost, Parcel
from secondpass.engine.recipe import Recipe, recipe_for
from secondpass.engine.workers import LocalProcesses, WorkersFailed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

PATIENCE_S = 30.0
"""How long a loaded machine may take for what takes milliseconds."""

# A bundle is code: it may leave an answer, and it may do its worker any harm.
PROBE = """
import os, signal, sys, time
from secondpass.engine.executor import Parcel
LOADED_IN = os.getpid()
class Probe:
    def __init__(self, tasks, mark):
        self.scope = {"mark": mark, "tasks": tasks, "os": os, "sys": sys, "signal": signal, "time": time}
        self.scope["LOADED_IN"] = LOADED_IN
    def answer(self, bundle):
        self.scope["answer"] = "done"
        exec(bytes(bundle.body), self.scope)
        answer = self.scope["answer"]
        return Parcel(answer if isinstance(answer, bytes) else str(answer).encode())
"""

Start = Callable[..., LocalProcesses]


def kin() -> list[psutil.Process]:
    """The nursery and the workers of this process; what other tests have started does not count."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if any("secondpass.engine.nursery" in part for part in p.cmdline())]


@pytest.fixture
def probed(tmp_path: Path) -> Callable[[Recipe], Recipe]:
    """Lets the workers of a recipe be probes."""
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "worker_probe.py").write_text(PROBE)

    def with_probe(recipe: Recipe) -> Recipe:
        path = [str(tmp_path / "probe"), *recipe.path]
        return msgspec.structs.replace(recipe, path=path, worker="worker_probe:Probe")

    return with_probe


@pytest.fixture
def start(probed: Callable[[Recipe], Recipe], tmp_path: Path) -> Iterator[Start]:
    """Workers that run code; with `at_import`, that is what loading the tasks does."""
    made: list[LocalProcesses] = []

    def start_some(size: int = 1, at_import: str = "") -> LocalProcesses:
        recipe = Recipe(list(sys.path), [], str(tmp_path), tasks=pickle.dumps(()))
        if at_import:
            (tmp_path / "tasks_here.py").write_text(at_import)
            recipe = msgspec.structs.replace(
                recipe, path=[str(tmp_path), *sys.path], tasks=b"ctasks_here\ntasks\n."
            )
        made.append(LocalProcesses(probed(recipe), size))
        return made[-1]

    yield start_some
    for processes in made:
        processes.close()


def events(processes: LocalProcesses, count: int = 1) -> list[Done | Lost]:
    """The next things that happen."""
    found: list[Done | Lost] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        found += processes.wait(1.0)
    assert len(found) == count
    return found


def told(event: Done | Lost) -> str:
    assert isinstance(event, Done), event
    return bytes(event.answer.body).decode()


def run(
    processes: LocalProcesses, code: str, worker: int = 0, number: int = 0, limit_s: float | None = None
) -> str:
    processes.submit(worker, number, Parcel(code.encode()), limit_s)
    return told(events(processes)[0])


def death(
    processes: LocalProcesses, code: str, worker: int = 0, number: int = 0, limit_s: float | None = None
) -> Death:
    processes.submit(worker, number, Parcel(code.encode()), limit_s)
    (event,) = events(processes)
    assert isinstance(event, Lost), told(event)
    return event.death


def until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def nursery_of(processes: LocalProcesses) -> int:
    assert processes._nursery is not None
    return processes._nursery.process.pid


# ---------------------------------------------------------------- work


def test_nothing_is_started_before_the_first_bundle(start: Start) -> None:
    processes = start(3)
    assert processes.wait(0) == []
    assert processes.wait(None) == []  # nobody could ever answer
    assert (processes.pids(), kin()) == ({}, [])


def test_each_worker_is_a_process_that_answers_in_order(start: Start) -> None:
    processes = start(2)
    for number in range(40):
        processes.submit(number % 2, number, Parcel(f"answer = f'{{os.getpid()}} {number}'".encode()))
    found = [(event.worker, *map(int, told(event).split())) for event in events(processes, 40)]
    for worker in (0, 1):
        own = [f for f in found if f[0] == worker]
        assert [number for _, _, number in own] == list(range(worker, 40, 2))
        assert {pid for _, pid, _ in own} == {processes.pids()[worker]}


def test_a_worker_keeps_what_it_has_from_bundle_to_bundle(start: Start) -> None:
    processes = start()
    run(processes, "kept = 5")
    assert run(processes, "answer = kept") == "5"


def test_a_worker_is_a_copy_of_a_process_that_loaded_the_tasks_once(start: Start) -> None:
    processes = start(2)
    loaded_in = {run(processes, "answer = LOADED_IN", worker) for worker in (0, 1)}
    assert loaded_in == {str(nursery_of(processes))}


def test_large_bundles_and_answers_cross_whole(start: Start) -> None:
    processes = start()
    padding = "#" * 10_000_000
    for n in range(3):
        answer = run(processes, f"answer = b'{n}' * 10_000_000\n{padding}")
        assert answer == str(n) * 10_000_000


def test_a_wait_ends_in_time_where_nothing_happens(start: Start) -> None:
    processes = start()
    run(processes, "")
    began = time.monotonic()
    assert processes.wait(0.05) == []
    assert 0.05 <= time.monotonic() - began < PATIENCE_S


def test_a_worn_worker_answers_what_it_has_and_the_next_bundle_gets_a_new_process(start: Start) -> None:
    processes = start()
    first = run(processes, "answer = os.getpid()")
    processes.submit(0, 1, Parcel(b"answer = os.getpid()"))
    processes.renew(0)
    assert told(events(processes)[0]) == first
    second = run(processes, "answer = os.getpid()")
    processes.renew(0)
    third = run(processes, "answer = os.getpid()")
    assert len({first, second, third}) == 3
    until(lambda: not alive(int(first)) and not alive(int(second)))
    assert processes.wait(0) == []


def test_printing_a_lot_disturbs_nobody(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    processes = start()
    assert run(processes, "for _ in range(100):\n    print('x' * 999_999)\nanswer = 'printed'") == "printed"
    out, err = capfd.readouterr()
    assert (out, len(err)) == ("", 100_000_000)


def test_what_is_printed_stands_there_once_and_at_once(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    processes = start(2, "print('loaded', end='')\ntasks = ()")
    for worker in (0, 1):
        run(processes, f"print('from {worker}')", worker)
    assert capfd.readouterr() == ("", "loadedfrom 0\nfrom 1\n")


def test_a_worker_has_no_standard_input(start: Start) -> None:
    assert run(start(), "answer = repr(sys.stdin.read())") == "''"


def test_a_worker_has_nothing_of_others(start: Start) -> None:
    processes = start(4)
    code = (
        "fds = [f'/proc/self/fd/{n}' for n in range(100)]\n"
        "answer = [os.readlink(fd).partition(':')[0] for fd in fds if os.path.exists(fd) or os.path.islink(fd)]"
    )
    found = [run(processes, code, worker) for worker in range(4)]
    own = [name for name in eval(found[-1]) if name == "socket" or "memfd" in name]
    assert [name == "socket" for name in own].count(True) == 1
    assert len(own) <= 3  # the socket, the desk, and the desk's map
    assert len(set(found)) == 1


# ---------------------------------------------------------------- deaths

SEGFAULT = "import ctypes\nctypes.string_at(0)"


@pytest.mark.parametrize(
    ("code", "how", "own"),
    [
        ("os._exit(3)", "ended with exit code 3", True),
        ("os._exit(0)", "ended with exit code 0", True),
        ("sys.exit(5)", "ended with exit code 5", True),
        ("sys.exit('text')", "ended with exit code 1", True),
        (SEGFAULT, "killed by SIGSEGV", True),
        ("import faulthandler\nfaulthandler._sigsegv()", "killed by SIGSEGV", True),
        ("os.abort()", "killed by SIGABRT", True),
        ("os.kill(os.getpid(), signal.SIGFPE)", "killed by SIGFPE", True),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by SIGTERM", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL", False),
        ("os.kill(os.getpid(), signal.SIGHUP)", "killed by SIGHUP", False),
        ("raise KeyboardInterrupt", "ended with exit code 1", True),
    ],
)
def test_a_death_says_how_it_came_and_where(start: Start, code: str, how: str, own: bool) -> None:
    processes = start()
    run(processes, "", number=6)
    found = death(processes, f"mark(7, 41)\n{code}", number=7)
    assert found[:4] == (how, own, 7, 41)
    assert processes.pids() == {}
    assert run(processes, "answer = 'as before'") == "as before"


def test_a_crash_brings_its_stack(start: Start) -> None:
    found = death(start(), f"def deep():\n    {SEGFAULT.replace(chr(10), '; ')}\ndeep()")
    assert found.stack.startswith("Fatal Python error: Segmentation fault")
    assert 'File "<string>", line 2 in deep' in found.stack
    assert found.stack == found.stack.rstrip()


def test_an_error_that_nobody_caught_brings_its_traceback(start: Start) -> None:
    found = death(start(), "raise RuntimeError('a bug')")
    assert found.stack.endswith("RuntimeError: a bug")


def test_a_stack_has_an_end(start: Start) -> None:
    code = "def f(n):\n    if n: f(n - 1)\n    else: raise RuntimeError('x' * 100_000)\nf(100)"
    assert 10_000 < len(death(start(), code).stack) <= 16384


@pytest.mark.parametrize(("code", "index"), [("", BETWEEN), ("mark(9, SETTING_UP)", SETTING_UP)])
def test_a_death_outside_all_events_says_so(start: Start, code: str, index: int) -> None:
    found = death(start(), f"SETTING_UP = {SETTING_UP}\n{code}\nos._exit(3)", number=9)
    assert found[2:4] == (9, index)


def test_what_was_answered_before_a_death_is_done_and_the_rest_is_lost(start: Start) -> None:
    processes = start(2)
    codes = ["", "answer = b'x' * 2_000_000", "mark(2, 5)\nos._exit(3)", "", "answer = b'x' * 2_000_000"]
    for number, code in enumerate(codes):
        processes.submit(0, number, Parcel(code.encode()))
    first, second, last = events(processes, 3)
    assert (told(first), len(told(second))) == ("done", 2_000_000)
    assert isinstance(last, Lost)
    assert last.death[:4] == ("ended with exit code 3", True, 2, 5)
    assert processes.wait(0.05) == []


def test_an_answer_that_the_hub_had_not_read_outlives_its_worker(start: Start, tmp_path: Path) -> None:
    processes = start()
    run(processes, "")
    pid = processes.pids()[0]
    for number in (1, 2):
        processes.submit(0, number, Parcel(b"answer = b'x' * 2_000_000"))
    processes.submit(0, 3, Parcel(f"open({str(tmp_path / 'there')!r}, 'w').close()\ntime.sleep(60)".encode()))
    until((tmp_path / "there").exists)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert [type(event) for event in events(processes, 3)] == [Done, Done, Lost]


def test_the_death_of_an_idle_worker_is_told(start: Start) -> None:
    processes = start()
    run(processes, "", number=4)
    os.kill(processes.pids()[0], signal.SIGKILL)
    (event,) = events(processes)
    assert event == Lost(0, Death("killed by SIGKILL", False, 4, BETWEEN, ""))


def test_a_bundle_for_a_worker_that_is_dead_already_is_lost(start: Start) -> None:
    processes = start()
    run(processes, "")
    pid = processes.pids()[0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert death(processes, "").how == "killed by SIGKILL"
    assert run(processes, "answer = 'as before'") == "as before"


def test_a_worker_that_closes_its_channel_is_ended(start: Start) -> None:
    found = death(start(), "mark(0, 3)\nos.closerange(3, 100)\ntime.sleep(60)")
    assert found[:4] == ("closed its channel to the hub", True, 0, 3)


def test_a_worker_that_writes_into_its_channel_is_ended(start: Start) -> None:
    code = (
        "mark(0, 3)\n"
        "fds = [n for n in range(3, 50) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "[os.write(n, b'hello' * 10) for n in fds if 'socket' in os.readlink(f'/proc/self/fd/{n}')]\n"
        "time.sleep(60)"
    )
    found = death(start(), code)
    assert found[:4] == ("what came through the channel is no message", True, 0, 3)


def test_a_worker_whose_child_lives_on_is_told_dead_all_the_same(start: Start) -> None:
    processes = start()
    code = "child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(0)\nanswer = child"
    child = int(run(processes, code))
    try:
        assert death(processes, "os._exit(3)").how == "ended with exit code 3"
    finally:
        os.kill(child, signal.SIGKILL)


# ---------------------------------------------------------------- limits and stops

BUSY = {"python": "while True: pass", "c": "sum(range(10 ** 12))", "asleep": "time.sleep(100)"}


@pytest.mark.parametrize("kind", BUSY)
def test_an_event_over_its_limit_ends_its_worker(start: Start, kind: str) -> None:
    processes = start()
    run(processes, "")
    began = time.monotonic()
    found = death(processes, f"mark(3, 7)\n{BUSY[kind]}", number=3, limit_s=0.3)
    assert 0.3 <= time.monotonic() - began < 5.0
    assert found[:4] == ("ran longer than limit_s=0.3", True, 3, 7)
    assert found.stack.startswith("Fatal Python error: Aborted")


def test_a_worker_that_does_not_heed_the_abort_is_killed(start: Start) -> None:
    code = "signal.signal(signal.SIGABRT, signal.SIG_IGN)\nmark(3, 7)\nwhile True: pass"
    found = death(start(), code, number=3, limit_s=0.1)
    assert found[:4] == ("ran longer than limit_s=0.1", True, 3, 7)


def test_the_limit_is_for_each_event_and_not_for_a_setup_or_what_is_between(start: Start) -> None:
    processes = start()
    code = (
        f"mark(3, {SETTING_UP})\ntime.sleep(1.2)\n"
        "for i in range(4):\n    mark(3, i)\n    time.sleep(0.3)\n"
        f"mark(3, {BETWEEN})\ntime.sleep(1.2)"
    )
    assert run(processes, code, number=3, limit_s=1.0) == "done"


def test_a_limit_holds_for_its_bundle_alone(start: Start) -> None:
    processes = start()
    assert run(processes, "mark(0, 0)", number=0, limit_s=0.2) == "done"
    assert run(processes, "mark(1, 0)\ntime.sleep(0.6)", number=1) == "done"
    assert death(processes, "mark(2, 0)\ntime.sleep(60)", number=2, limit_s=0.2).own


def test_a_limit_is_kept_for_the_bundle_behind_another(start: Start) -> None:
    processes = start()
    processes.submit(0, 0, Parcel(b"mark(0, 0)\ntime.sleep(0.5)"))
    processes.submit(0, 1, Parcel(b"mark(1, 4)\ntime.sleep(60)"), 0.2)
    done, lost = events(processes, 2)
    assert (told(done), isinstance(lost, Lost) and lost.death[1:4]) == ("done", (True, 1, 4))


def test_a_worker_that_is_stopped_is_ended_and_no_event_is_blamed(start: Start) -> None:
    processes = start()
    found = death(processes, "mark(2, 1)\nos.kill(os.getpid(), signal.SIGSTOP)", number=2)
    assert found[:4] == ("was stopped and did not go on", False, 2, 1)


def test_an_event_whose_worker_somebody_stops_is_not_over_its_limit(start: Start) -> None:
    processes = start()
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    found = death(processes, f"mark(2, 1)\n{stop}", number=2, limit_s=0.1)
    assert found[:4] == ("was stopped and did not go on", False, 2, 1)


def test_a_worker_that_is_stopped_for_a_moment_goes_on(start: Start) -> None:
    processes = start()
    run(processes, "")
    pid = processes.pids()[0]
    os.kill(pid, signal.SIGSTOP)
    processes.submit(0, 1, Parcel(b"answer = os.getpid()"))
    assert processes.wait(1.2) == []
    os.kill(pid, signal.SIGCONT)
    assert told(events(processes)[0]) == str(pid)


def test_a_stopped_worker_with_a_full_channel_makes_nobody_wait(start: Start) -> None:
    processes = start(2)
    run(processes, "")
    run(processes, "", worker=1)
    pid = processes.pids()[0]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    began = time.monotonic()
    for number in range(60):
        processes.submit(0, number, Parcel(b"#" * 1_000_000))
    assert run(processes, "answer = 'working'", worker=1) == "working"
    assert time.monotonic() - began < 1.0
    (event,) = events(processes)
    assert isinstance(event, Lost)
    assert event.death.own is False


# ---------------------------------------------------------------- the nursery


@pytest.mark.parametrize(
    ("at_import", "told_"),
    [
        ("1 / 0", "loading the tasks raised ZeroDivisionError: division by zero"),
        (
            "import no_such_module",
            "loading the tasks raised ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("if True print(", "loading the tasks raised SyntaxError: "),
        ("raise SystemExit(3)", "loading the tasks raised SystemExit: 3"),
        ("import os\nos._exit(4)", "the process that starts them ended with exit code 4, loading the tasks"),
        (SEGFAULT, "the process that starts them was killed by SIGSEGV, loading the tasks"),
    ],
)
def test_tasks_that_cannot_be_loaded_are_told_once(start: Start, at_import: str, told_: str) -> None:
    processes = start(2, at_import)
    processes.submit(0, 0, Parcel(b""))
    processes.submit(1, 1, Parcel(b""))
    with pytest.raises(WorkersFailed) as raised:
        events(processes)
    text = str(raised.value)
    assert text.startswith(f"there are no workers: {told_}")
    assert text.endswith("run with workers=0 to see it in this process")
    assert "tasks_here.py" in text or "_exit" in at_import
    processes.submit(0, 2, Parcel(b""))
    with pytest.raises(WorkersFailed):
        processes.wait(None)
    processes.close()
    assert kin() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_with_the_nursery_its_workers_are_lost_and_all_is_started_anew(
    start: Start, number: signal.Signals
) -> None:
    processes = start(2)
    for worker in (0, 1):
        run(processes, "", worker)
    pids = processes.pids()
    processes.submit(0, 5, Parcel(b"mark(5, 2)\ntime.sleep(60)"))
    os.kill(nursery_of(processes), number)
    lost = sorted(events(processes, 2), key=lambda event: event.worker)
    assert [(e.worker, isinstance(e, Lost) and e.death.own) for e in lost] == [(0, False), (1, False)]
    until(lambda: not any(map(alive, pids.values())), 2.0)
    assert run(processes, "answer = 'as before'") == "as before"


def test_a_nursery_that_is_always_killed_while_it_loads_is_given_up(start: Start) -> None:
    processes = start(1, "import os\nos.kill(os.getpid(), 9)")
    assert [death(processes, "").own for _ in range(2)] == [False, False]
    with pytest.raises(WorkersFailed, match="was killed by SIGKILL, loading the tasks"):
        death(processes, "")


def test_a_nursery_that_is_stopped_is_started_anew(start: Start) -> None:
    processes = start(2)
    run(processes, "")
    nursery = nursery_of(processes)
    os.kill(nursery, signal.SIGSTOP)
    until(lambda: stopped(nursery))
    processes.submit(1, 0, Parcel(b""))
    lost = events(processes, 2)
    assert [isinstance(event, Lost) and event.death.own for event in lost] == [False, False]
    assert run(processes, "answer = 'as before'", worker=1) == "as before"


def test_beside_threads_of_the_tasks_own_a_worker_loads_for_itself(start: Start) -> None:
    at_import = (
        "import os, threading, time\nLOADED_IN = os.getpid()\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ntasks = ()\n"
    )
    processes = start(2, at_import)
    code = "import tasks_here\nanswer = (os.getpid(), tasks_here.LOADED_IN, os.getppid())"
    for worker in (0, 1):
        pid, loaded_in, parent = eval(run(processes, code, worker))
        assert (pid, parent) == (loaded_in, nursery_of(processes))
    assert death(processes, "mark(0, 1)\nos._exit(3)")[:4] == ("ended with exit code 3", True, 0, 1)
    assert run(processes, "answer = 'as before'") == "as before"


def test_a_worker_that_cannot_load_for_itself_dies_setting_up(start: Start, tmp_path: Path) -> None:
    at_import = (
        "import os, threading, time\n"
        f"os.mkdir({str(tmp_path / 'once')!r})\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ntasks = ()\n"
    )
    found = death(start(1, at_import), "")
    assert found[:4] == ("ended with exit code 1", True, -1, SETTING_UP)
    assert "FileExistsError" in found.stack


def test_threads_that_a_library_ends_at_a_fork_do_not_hinder_one(start: Start) -> None:
    pytest.importorskip("numpy")
    processes = start(1, "import os, numpy\nLOADED_IN = os.getpid()\ntasks = ()\n")
    assert run(processes, "import tasks_here\nanswer = tasks_here.LOADED_IN") == str(nursery_of(processes))
    code = "import numpy\nanswer = (numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum()"
    assert float(run(processes, code)) == 300.0**3


def test_files_in_the_working_directory_hide_no_module(start: Start, tmp_path: Path) -> None:
    for name in ("msgspec", "selectors", "random", "secondpass"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong file')")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert run(start(), "answer = os.getcwd()") == str(tmp_path)
    finally:
        os.chdir(here)


# ---------------------------------------------------------------- nobody stays behind


def test_closing_ends_all_within_a_second_whatever_they_do(start: Start) -> None:
    processes = start(4)
    for worker, code in enumerate((*BUSY.values(), "")):
        run(processes, "", worker)
        processes.submit(worker, 1, Parcel(code.encode()))
    pids = [*processes.pids().values(), nursery_of(processes)]
    os.kill(pids[3], signal.SIGSTOP)
    began = time.monotonic()
    processes.close()
    until(lambda: not any(map(alive, pids)), 1.0)
    assert time.monotonic() - began < 1.0
    assert kin() == []
    processes.close()


def test_closing_ends_a_stopped_nursery_and_its_workers(start: Start) -> None:
    processes = start(2)
    for worker in (0, 1):
        run(processes, "", worker)
    pids = [*processes.pids().values(), nursery_of(processes)]
    os.kill(pids[-1], signal.SIGSTOP)
    until(lambda: stopped(pids[-1]))
    began = time.monotonic()
    processes.close()
    until(lambda: not any(map(alive, pids)), 1.0)
    assert time.monotonic() - began < 1.0


def test_closing_does_not_wait_for_tasks_that_take_long_to_load(start: Start) -> None:
    processes = start(1, "import time\ntime.sleep(100)")
    processes.submit(0, 0, Parcel(b""))
    assert processes.wait(0.3) == []
    pid = nursery_of(processes)
    processes.close()
    assert not alive(pid)


def test_closing_what_was_never_started_does_nothing(start: Start) -> None:
    processes = start()
    processes.close()
    processes.close()


def test_two_hundred_deaths_leave_no_descriptor_and_no_process(start: Start) -> None:
    def open_files(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    processes = start(2)
    for worker in (0, 1):
        run(processes, "", worker)
    nursery = nursery_of(processes)
    gc.collect()  # what other tests have left
    before = open_files(os.getpid()), open_files(nursery)
    for number in range(100):
        for worker in (0, 1):
            processes.submit(
                worker, number, Parcel(b"os._exit(3)" if number % 2 else b"answer = b'x' * 1_500_000")
            )
            processes.submit(worker, number, Parcel(b"os._exit(4)"))
        found = events(processes, 2 if number % 2 else 4)
        assert sum(isinstance(event, Lost) for event in found) == 2
        del found
    for worker in (0, 1):
        run(processes, "", worker)
    assert (open_files(os.getpid()), open_files(nursery)) == before
    assert len(kin()) == 3


# A program of its own, since it is to be killed, or to be sent what a terminal sends.
HUB = """
import pickle, os, signal, sys, time
from secondpass.engine.executor import Parcel
from secondpass.engine.recipe import Recipe
from secondpass.engine.workers import LocalProcesses
if __name__ == "__main__":
    recipe = Recipe([PROBE_PATH, *sys.path], [], ".", tasks=pickle.dumps(()), worker="worker_probe:Probe")
    processes = LocalProcesses(recipe, 3)
    for worker in range(3):
        processes.submit(worker, 0, Parcel(b""))
    found = []
    while len(found) < 3:
        found += processes.wait(1.0)
"""


@pytest.fixture
def hub(probed: object, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program with three workers, in a session of its own."""
    made: list[subprocess.Popen[str]] = []

    def start_hub(*lines: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        text = HUB.replace("PROBE_PATH", repr(str(tmp_path / "probe")))
        (tmp_path / "hub.py").write_text(text + "".join(f"    {line}\n" for line in lines))
        made.append(
            subprocess.Popen(
                [sys.executable, *options, "hub.py"],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return made[-1]

    yield start_hub
    for process in made:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_the_hub(hub: Callable[..., subprocess.Popen[str]], number: signal.Signals) -> None:
    process = hub(
        *(f"processes.submit({n}, 1, Parcel({code.encode()!r}))" for n, code in enumerate(BUSY.values())),
        "print(processes._nursery.process.pid, *processes.pids().values(), flush=True)",
        "processes.wait(None)",
    )
    pids = [*map(int, line_of(process).split())]
    assert len(pids) == 4
    assert all(map(alive, pids))
    process.send_signal(number)
    process.wait()
    until(lambda: not any(map(alive, pids)), 2.0)


def test_nobody_outlives_a_hub_that_dies_while_the_tasks_are_loaded(
    hub: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = hub()
    (tmp_path / "probe" / "worker_probe.py").write_text(
        "import os\nprint('here', flush=True)\nwhile True: pass"
    )
    until(lambda: bool(psutil.Process(process.pid).children()))
    (nursery,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    until(lambda: not alive(nursery.pid), 2.0)


def test_ctrl_c_is_the_hubs_alone(hub: Callable[..., subprocess.Popen[str]]) -> None:
    process = hub(
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))",
        "processes.submit(0, 1, Parcel(b'time.sleep(0.5)\\nanswer = \"undisturbed\"'))",
        "print('ready', flush=True)",
        "print(bytes(processes.wait(30.0)[0].answer.body).decode(), flush=True)",
        "processes.submit(1, 1, Parcel(b''))",
        "print(len(processes.wait(30.0)), flush=True)",
        "processes.close()",
    )
    assert line_of(process) == "ready"
    os.killpg(process.pid, signal.SIGINT)
    assert [line_of(process) for _ in range(3)] == ["interrupted", "undisturbed", "1"]
    assert process.wait() == 0


def test_the_hubs_output_is_its_own(hub: Callable[..., subprocess.Popen[str]]) -> None:
    code = "print('from a worker')\nos.write(1, b'raw')\nos.system('echo from a program')"
    process = hub(
        f"processes.submit(0, 1, Parcel({code.encode()!r}))",
        "processes.wait(30.0)",
        "print('data')",
        "processes.close()",
    )
    assert process.communicate()[0] == "data\n"


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_a_hub_without_standard_streams_has_workers(probed: object, tmp_path: Path, closed: str) -> None:
    lines = (
        "processes.submit(0, 1, Parcel(b'print(1, flush=True)'))",
        "print('data', file=open('out', 'w'))" if "1" in closed else "print('data')",
        "open('told', 'w').write(type(processes.wait(30.0)[0]).__name__)",
        "processes.close()",
    )
    text = HUB.replace("PROBE_PATH", repr(str(tmp_path / "probe")))
    (tmp_path / "hub.py").write_text(text + "".join(f"    {line}\n" for line in lines))
    redirect = "".join(f" {n}<&-" if n == "0" else f" {n}>&-" for n in closed)
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} hub.py{redirect}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ((tmp_path / "told").read_text(), done.returncode) == ("Done", 0)
    assert done.stdout == ("" if "1" in closed else "data\n")


def test_the_time_that_all_are_stopped_is_no_event_s(hub: Callable[..., subprocess.Popen[str]]) -> None:
    process = hub(
        "processes.submit(0, 1, Parcel(b'mark(1, 0)\\ntime.sleep(1.0)'), 2.0)",
        "print('ready', flush=True)",
        "print(type(processes.wait(30.0)[0]).__name__, flush=True)",
        "processes.close()",
    )
    assert line_of(process) == "ready"
    os.killpg(process.pid, signal.SIGSTOP)  # what Ctrl-Z does
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 3.5)
    os.killpg(process.pid, signal.SIGCONT)
    assert line_of(process) == "Done"


def test_flags_of_the_interpreter_hold_for_workers(hub: Callable[..., subprocess.Popen[str]]) -> None:
    code = "answer = (sys.warnoptions, sys._xoptions, sys.flags.optimize)"
    process = hub(
        f"processes.submit(0, 1, Parcel({code.encode()!r}))",
        "print(bytes(processes.wait(30.0)[0].answer.body).decode())",
        "processes.close()",
        options=("-O", "-W", "error::FutureWarning", "-X", "utf8"),
    )
    assert process.communicate()[0] == "(['error::FutureWarning'], {'utf8': True}, 1)\n"


def test_a_socket_that_hangs_up_ends_a_process_that_watches_it() -> None:
    code = (
        "import sys\nfrom secondpass.engine.nursery import end_at_hangup\n"
        "print('watching', flush=True)\nend_at_hangup(0)"
    )
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs.fileno(), stdout=subprocess.PIPE, text=True
    ) as process:
        theirs.close()
        assert line_of(process) == "watching"
        ours.send(b"what is sent is not read")
        assert process.poll() is None
        ours.close()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL


# ---------------------------------------------------------------- from a script to its workers

SCRIPT = """
import sys
from secondpass import App, Event, Task

class Seen(Event):
    time: float

class Keep(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        return event

def run(self, **options):
    from secondpass.engine.recipe import recipe_for
    from secondpass.engine.workers import LocalProcesses
    from secondpass.engine.executor import Parcel
    import msgspec
    recipe = recipe_for(self)
    recipe = msgspec.structs.replace(recipe, path=[PROBE_PATH, *recipe.path], worker="worker_probe:Probe")
    processes = LocalProcesses(recipe, 1)
    processes.submit(0, 0, Parcel(b"answer = [type(t).__module__ for t in tasks]"))
    try:
        print(bytes(processes.wait(30.0)[0].answer.body).decode())
    finally:
        processes.close()

if "worker_probe" not in sys.modules and sys.argv[-1] == "hub" and App.run.__module__ == "secondpass.app":
    App.run = run
App('test', source=[], tasks=[Keep()]).run()
print("behind")
"""


def test_a_script_without_a_guard_gets_its_workers(probed: object, tmp_path: Path) -> None:
    (tmp_path / "cameras.py").write_text(SCRIPT.replace("PROBE_PATH", repr(str(tmp_path / "probe"))))
    done = subprocess.run(
        [sys.executable, "cameras.py", "hub"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "['cameras']\nbehind\n"


def test_an_app_of_a_factory_gets_its_workers(
    probed: Callable[[Recipe], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cameras_of_a_factory.py").write_text(
        "from secondpass import App, Task\ndef make():\n    class Keep(Task):\n"
        "        def handle(self, event):\n            return event\n"
        "    return App('test', source=[], tasks=[Keep(), lambda e: e])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    processes = LocalProcesses(probed(recipe_for(loading.load("cameras_of_a_factory:make()"))), 1)
    try:
        found = run(processes, "answer = [type(t).__qualname__ for t in tasks]")
    finally:
        processes.close()
        del sys.modules["cameras_of_a_factory"]
    assert found == "['make.<locals>.Keep', 'FunctionTask']"
