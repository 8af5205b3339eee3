"""What all commands have in common, and the small ones: help, start, init, demo, progress, the reference page."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from secondpass.cli import reference
from secondpass.cli.group import COMMANDS, cli
from secondpass.cli.shapes import DOCUMENTS, InitReport


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found.update({f"{name} {inner}": c for inner, c in command.commands.items()})
    return found


def test_the_short_description_of_every_command_is_the_first_line_of_its_help() -> None:
    for name, (_, description) in COMMANDS.items():
        command = commands()[name]
        assert command.help is not None
        assert command.help.splitlines()[0] == description


def test_no_short_description_of_a_command_is_cut(command) -> None:
    for group in ("task", "state", "dead-letters"):
        assert not re.findall(r".*[a-z]\.\.\.$", command(group, "--help").out, re.MULTILINE)


def test_every_command_takes_debug_and_json_and_its_document_is_described() -> None:
    for name, command in commands().items():
        if isinstance(command, click.Group):
            continue
        options = {o for p in command.params for o in p.opts}
        assert {"--debug", "--json"} <= options, name
        assert name in DOCUMENTS or name == "demo"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["status", "--help"]])
def test_help_imports_neither_the_store_nor_rich(arguments: list[str]) -> None:
    code = (
        "import sys; from secondpass.cli import main; main(sys.argv[1:]);"
        "heavy = {'apsw', 'rich', 'psutil', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_reference_page_is_what_the_commands_say(root: Path) -> None:
    page = root / "docs" / "reference" / "cli.md"
    assert page.read_text() == reference.page(), (
        "the page is out of date: python -m secondpass.cli.reference > docs/reference/cli.md"
    )


def test_colours_are_for_terminals_and_no_color_takes_them_from_there(first, monkeypatch) -> None:
    def on_terminal(**environment: str) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "secondpass", "status"],
            cwd=first.folder,
            env=first.environment() | {"TERM": "xterm"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        said = read_all(ours)
        process.wait()
        return said

    assert "\x1b[" not in first.run("run", "first.py").out
    assert "\x1b[" in on_terminal()
    assert "\x1b[" not in on_terminal(NO_COLOR="1")


def read_all(descriptor: int) -> str:
    """Everything written to a terminal until its last writer has gone."""
    parts: list[bytes] = []
    with open(descriptor, "rb", buffering=0) as file:
        while True:
            try:
                part = file.read(65536)
            except OSError:  # how Linux says that the other end was closed
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts).decode()


def test_a_terminal_shows_a_bar_and_keeps_results_apart(first) -> None:
    first.seen(*range(400_000))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "secondpass", "run", "first.py"],
        cwd=first.folder,
        env=first.environment() | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        bar = read_all(ours)
        assert process.stdout is not None
        out = process.stdout.read()
    assert "%" in bar
    assert "events" in bar
    assert "first: 400,000 events" in out
    assert "\x1b[" not in out


def test_where_there_is_no_terminal_a_long_run_tells_its_progress_in_lines(first, monkeypatch, capfd) -> None:
    from secondpass.cli.progress import LogLines

    class Hub:
        limit = None

        class summary:
            events_in, dead_letters = 1500, 2

        class intake:
            @staticmethod
            def progress() -> tuple[int, int]:
                return 1, 4

        class store:
            class progress:
                paused = False

    clock = [100.0]
    monkeypatch.setattr("secondpass.cli.progress.time.monotonic", lambda: clock[0])
    lines = LogLines()
    lines.epoch(Hub)  # type: ignore[arg-type]
    assert capfd.readouterr().err == ""
    clock[0] += 6.0
    lines.epoch(Hub)  # type: ignore[arg-type]
    assert capfd.readouterr().err == "6.0 s: 1,500 events, 250/s, 25%, 2 dead letters\n"


# ---------------------------------------------------------------- init


def test_the_app_that_init_writes_runs_and_its_test_passes(project, root: Path) -> None:
    done = project.run("init", "hot-spots")
    assert done.code == 0
    assert "secondpass try hot_spots.py" in done.out
    folder = project.folder / "hot-spots"
    inner = type(project)(folder)
    assert len(inner.run("try", "hot_spots.py").out.splitlines()) == 3
    assert inner.run("run", "hot_spots.py", "-q").code == 0
    assert [e["sensor"] for e in inner.output("alerts.jsonl")] == ["pump", "boiler", "boiler"]
    assert "same in all" in inner.run("check", "hot_spots.py").out
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_what_init_writes_passes_the_strict_type_check_and_ruff(project, root: Path) -> None:
    project.run("init", "hot")
    folder = project.folder / "hot"
    programs = Path(sys.executable).parent
    if not (programs / "basedpyright").exists():
        pytest.skip("basedpyright is not installed")
    settings = {
        "include": [str(folder)],
        "typeCheckingMode": "strict",
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
        "enableExperimentalFeatures": True,
        "extraPaths": [str(root / "src")],
    }
    (folder / "pyrightconfig.json").write_bytes(msgspec.json.encode(settings))
    for check in (
        ["basedpyright", "-p", str(folder)],
        ["ruff", "check", "--isolated", "--select", "E,F,I,N,B,UP,RUF,SIM,ANN", "."],
        ["ruff", "format", "--isolated", "--check", "."],
    ):
        done = subprocess.run(
            [programs / check[0], *check[1:]], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_init_leaves_alone_what_is_there(project, command) -> None:
    assert "pytest test_hot.py        # needs `pip install pytest`" in command("init", "hot").out
    (project.folder / "hot" / "hot.py").write_text("mine")
    done = command("init", "hot")
    assert done.code == 2
    assert "hot.py" in done.err
    assert (project.folder / "hot" / "hot.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("1st.app", "app_1st_app.py"),
        ("class", "app_class.py"),
        ("json", "app_json.py"),
        ("types", "app_types.py"),
        ("a/b", "b.py"),
    ],
)
def test_init_makes_a_module_of_any_name(project, command, name: str, file: str) -> None:
    report = command("init", name, "--json").document(InitReport)
    assert file in report.files
    assert command("try", f"{name}/{file}", "--quiet").code == 0


def test_init_refuses_what_is_no_name(project, command) -> None:
    done = command("init", "häuser")
    assert done.code == 2
    assert "letters, digits" in done.err


# ---------------------------------------------------------------- demo


def test_the_demo_runs_and_shows_what_it_found(project, command) -> None:
    done = command("demo", "motorway", "--hours", "0.2")
    assert done.code == 0
    assert "A simulated motorway" in done.out
    assert "running the app" in done.err
    found = command("demo", "motorway", "--hours", "0.2", "--json")
    assert (found.code, found.err) == (0, "")
    assert msgspec.json.decode(found.out)["hours"] == 0.2
