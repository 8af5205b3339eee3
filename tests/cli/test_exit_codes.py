"""How real processes end: their exit codes, what they say, and what is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass.cli.exits import MEANINGS
from secondpass.store.lock import StoreLock

FOLLOWING = """
class Ready(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        if event.cid == 99:
            self.log.warning("handled the last one")
        return event


app = App("ready", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Ready()], sink=JsonLines(HERE / "out.jsonl"))
"""


def wait_until_handled(process: subprocess.Popen[str]) -> None:
    """Until the process says on standard error that it has committed the last event."""
    assert process.stderr is not None
    for line in process.stderr:
        if "handled the last one" in line:
            return
    pytest.fail("the run ended before it had handled its input")


def test_a_finite_input_ends_with_0_and_a_summary_on_standard_output(first) -> None:
    done = first.run("run", "first.py")
    assert (done.code, done.err) == (0, "")
    assert "first: 6 events in" in done.out
    assert "to the end of the input" in done.out
    assert "out.jsonl" in done.out
    assert [e["cid"] for e in first.output()] == [1, 2, 3]


def test_running_again_says_that_nothing_is_new_and_how_to_repeat(first) -> None:
    first.run("run", "first.py")
    done = first.run("run", "first.py")
    assert done.code == 0
    assert "nothing new" in done.out
    assert "secondpass run first.py --fresh" in done.out
    assert len(first.output()) == 3


def test_ctrl_c_ends_a_run_after_the_epoch_with_130_and_a_summary(project) -> None:
    project.write("ready.py", FOLLOWING)
    project.seen(1, 2, 99)
    with project.start("run", "ready.py", "--follow") as process:
        wait_until_handled(process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "3 events in" in out
    assert "then it was stopped" in out
    assert [e["cid"] for e in project.output()] == [1, 2, 99]


def test_sigterm_ends_a_run_the_same_way_with_0(project) -> None:
    project.write("ready.py", FOLLOWING)
    project.seen(1, 99)
    with project.start("run", "ready.py", "--follow") as process:
        wait_until_handled(process)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "then it was stopped" in out


def test_what_was_stopped_goes_on_as_if_it_never_had_been(project) -> None:
    project.write("ready.py", FOLLOWING)
    project.seen(1, 2, 99)
    with project.start("run", "ready.py", "--follow") as process:
        wait_until_handled(process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    project.seen(1, 2, 99, 4, 5)
    done = project.run("run", "ready.py")
    assert done.code == 0
    assert "2 events in" in done.out
    assert [e["cid"] for e in project.output()] == [1, 2, 99, 4, 5]


def test_a_task_that_stops_the_app_ends_it_with_3_and_shows_the_users_frames(project) -> None:
    project.write(
        "stops.py",
        """
        def refuse(event: Seen) -> Seen:
            if event.cid == 3:
                raise ValueError("camera 3 is broken")
            return event


        class Refuse(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                return refuse(event)


        app = App("stops", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Refuse().options(on_error="stop")],
                  sink=JsonLines(HERE / "out.jsonl"))
        """,
    )
    project.seen(1, 2, 3, 4)
    done = project.run("run", "stops.py")
    assert done.code == 3
    assert "in refuse" in done.err
    assert f"secondpass{os.sep}engine" not in done.err
    error = done.err[done.err.index("error: ") :]
    assert "camera 3 is broken" in error
    assert "task Refuse, position 2" in error
    assert [e["cid"] for e in project.output()] == [1, 2], (
        "what precedes the event is committed and delivered"
    )


def test_a_broken_rule_ends_with_3_and_says_what_to_write_and_that_the_rest_is_kept(project) -> None:
    project.write(
        "wrong.py",
        """
        class Wrong(Task[Seen]):
            last = table(int, float)

            def handle(self, event: Seen) -> Seen:
                self.last[event.cid] = 0 if event.cid == 3 else 0.0
                return event


        app = App("wrong", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Wrong()])
        """,
    )
    project.seen(1, 2, 3, 4)
    done = project.run("run", "wrong.py")
    assert done.code == 3
    assert "self.last[event.cid] = 0" in done.err
    assert "write 0.0" in done.err
    assert "what precedes is committed, the event is next" in done.err
    assert project.run("outputs", "wrong.py").out.splitlines() == [
        '{"cid":1,"time":0.0}',
        '{"cid":2,"time":1.0}',
    ]


def test_a_missing_input_ends_with_4(first) -> None:
    (first.folder / "in.jsonl").unlink()
    done = first.run("run", "first.py")
    assert done.code == 4
    assert done.err.startswith("error: ")
    assert "no such file" in done.err
    assert "Traceback" not in done.err


def test_an_input_that_is_another_ends_with_4(first) -> None:
    first.run("run", "first.py")
    first.seen(7, 7, 7, 7, 7, 7, 7)
    done = first.run("run", "first.py")
    assert done.code == 4
    assert "not the file that was read before" in done.err
    assert "--fresh" in done.err


def test_an_output_that_cannot_be_written_ends_with_5(first) -> None:
    (first.folder / "out.jsonl").mkdir()
    done = first.run("run", "first.py")
    assert done.code == 5
    assert "out.jsonl" in done.err


def test_a_store_that_another_process_holds_ends_with_6_and_names_it(first) -> None:
    store = first.folder / ".secondpass" / "first"
    store.mkdir(parents=True)
    lock = StoreLock(store)
    lock.acquire()
    try:
        done = first.run("run", "first.py")
    finally:
        lock.release()
    assert done.code == 6
    assert f"process {os.getpid()}" in done.err
    assert "--take-over" in done.err


def test_a_damaged_store_ends_with_6(first) -> None:
    first.run("run", "first.py")
    path = first.folder / ".secondpass" / "first" / "store.db"
    path.write_bytes(b"no database" * 1000)
    done = first.run("run", "first.py")
    assert done.code == 6
    assert "--fresh" in done.err


def test_an_error_in_the_apps_file_ends_with_2_and_shows_the_users_frames_only(project) -> None:
    project.write("broken.py", "def fail() -> None:\n    raise LookupError('no configuration')\n\n\nfail()\n")
    done = project.run("run", "broken.py")
    assert done.code == 2
    assert "in fail" in done.err
    assert "LookupError: no configuration" in done.err
    assert "importlib" not in done.err
    assert f"secondpass{os.sep}" not in done.err.replace(str(project.folder), "")
    assert "error: broken.py cannot be imported" in done.err


def test_a_syntax_error_shows_its_line(project) -> None:
    project.write("broken.py", "x = [\n")
    done = project.run("run", "broken.py")
    assert done.code == 2
    assert "x = [" in done.err
    assert "SyntaxError" in done.err


def test_a_class_that_cannot_work_ends_with_2_and_names_its_line_and_the_way_out(project) -> None:
    project.write("broken.py", "class Bad(Task[Seen]):\n    memory = {}\n")
    done = project.run("run", "broken.py")
    assert done.code == 2
    assert "class Bad" in done.err
    assert done.err.count("is a mutable dict") == 1
    assert "table(K, V)" in done.err


def test_debug_shows_the_whole_traceback(first) -> None:
    (first.folder / "in.jsonl").unlink()
    done = first.run("run", "first.py", "--debug")
    assert done.code == 4
    assert "Traceback" in done.err
    assert f"secondpass{os.sep}engine" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "did you mean run?"),
        (["first.py"], "secondpass run first.py"),
        (["run"], "missing argument 'APP'"),
        (["run", "first.py", "--limit", "0"], "--limit"),
        (["run", "first.py", "--rename", "A"], "Old=New"),
        (["run", "nothing.py"], "no file nothing.py"),
        (["run", ""], "'' names no file"),
        (["run", ":app"], "':app' names no file; give the file that holds the app"),
        (["run", "."], ". is a directory; give the file that holds the app"),
        (["run", ".."], ".. is a directory"),
        (["run", "./"], "./ is a directory"),
        (["run", "folder"], "folder is a directory"),
        (["run", "in.jsonl"], "in.jsonl is no Python file; an app's file ends in .py"),
        (["run", "./in.jsonl"], "./in.jsonl is no Python file"),
        (["run", ".in.jsonl"], "no file .in.jsonl"),
        (["run", "first.py:other"], "other is missing"),
        (["status", "--store", "nowhere"], "no store in nowhere"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_what_is_right(first, arguments: list[str], said: str) -> None:
    (first.folder / "folder").mkdir()
    done = first.run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err


@pytest.mark.parametrize("name", ["json", "asyncio"])
def test_an_app_that_hides_a_module_of_python_is_told_to_take_another_name(first, name: str) -> None:
    app = (first.folder / "first.py").read_text()
    uses = f"import {name}\n{name}.run\n" if name == "asyncio" else ""
    (first.folder / f"{name}.py").write_text(uses + app)
    done = first.run("run", f"{name}.py")
    assert (done.code, done.out) == (2, "")
    assert f"{name}.py hides Python's own module {name}; give the file another name" in done.err


def test_an_app_may_have_the_name_of_a_module_of_python_that_nobody_uses(first) -> None:
    (first.folder / "first.py").rename(first.folder / "code.py")
    assert first.run("run", "code.py").code == 0


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly_with_0(project) -> None:
    project.write("pass_on.py", 'app = App("all", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[])\n')
    project.seen(*range(30_000))  # more than a pipe holds
    project.run("run", "pass_on.py", "--quiet")
    with project.start("outputs", "pass_on.py") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '{"cid":0,"time":0.0}\n'
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_python_m_secondpass_is_secondpass() -> None:
    program = Path(sys.executable).with_name("secondpass")
    if not program.exists():
        pytest.skip("secondpass is not installed as a program")
    for arguments in (["--version"], ["run", "--help"]):
        one = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
        other = subprocess.run(
            [sys.executable, "-m", "secondpass", *arguments], capture_output=True, text=True, check=True
        )
        assert one.stdout == other.stdout


def test_help_lists_every_exit_code(first) -> None:
    said = first.run("--help").out
    for code, meaning in MEANINGS.items():
        assert f"{code:<5}{meaning}" in said


def test_a_second_ctrl_c_ends_a_task_that_never_returns(project) -> None:
    project.write(
        "stuck.py",
        """
        import sys
        import time


        class Stuck(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                print("stuck", file=sys.stderr, flush=True)
                while True:
                    time.sleep(0.01)


        app = App("stuck", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Stuck()])
        """,
    )
    project.seen(1)
    with project.start("run", "stuck.py") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "stuck\n"
        while process.poll() is None:  # two signals that arrive at once are one
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        err = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "0 open" not in project.run("status").out
    assert project.run("status", "--json").code == 0, "the store is whole"


def test_results_that_cannot_be_written_end_with_5(first) -> None:
    first.run("run", "first.py", "-q")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "secondpass", "outputs", "first.py"],
            cwd=first.folder,
            env=first.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 5
    assert done.stderr.startswith("error: standard output cannot be written: No space left")


def test_an_output_without_room_for_our_letters_gets_them_spelled(project) -> None:
    project.write("pass_on.py", 'app = App("all", source=JsonLines(HERE / "in.jsonl"), tasks=[])\n')
    project.events([{"name": "жук"}])
    done = subprocess.run(
        [sys.executable, "-m", "secondpass", "try", "pass_on.py", "--show", "1"],
        cwd=project.folder,
        env=project.environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"name": "жук"}


def test_an_error_cannot_move_the_readers_cursor(project) -> None:
    project.write(
        "rude.py",
        """
        class Rude(Task[Seen]):
            def handle(self, event: Seen) -> Seen:
                raise ValueError("\\x1b]0;gone\\x07")


        app = App("rude", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[Rude().options(on_error="stop")])
        """,
    )
    project.seen(1)
    for arguments in (["run", "rude.py"], ["try", "rude.py"]):
        done = project.run(*arguments)
        assert done.code == 3
        assert "gone" in done.err
        assert not {"\x1b", "\x07"} & set(done.err)
