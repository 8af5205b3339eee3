"""What the command line's tests share: small apps in a folder of their own, and two ways to run a command."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from secondpass.cli import apart, main
from secondpass.cli.shapes import Shape

HEAD = """
from pathlib import Path

from secondpass import App, Event, Task, output, table, value
from secondpass.connectors import JsonLines

HERE = Path(__file__).parent


class Seen(Event):
    cid: int
    time: float

"""

FIRST = """
class First(Task[Seen]):
    known = table(int, float, ttl_s=100.0)

    def keys(self, event: Seen) -> tuple[int]:
        return (event.cid,)

    def handle(self, event: Seen) -> Seen | None:
        is_first = event.cid not in self.known
        self.known[event.cid] = event.time
        return event if is_first else None


app = App("first", source=JsonLines(HERE / "in.jsonl", Seen), tasks=[First()], sink=JsonLines(HERE / "out.jsonl"))
"""


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    def document(self, shape: type[Any]) -> Any:
        """The JSON document on standard output, which must be exactly of its documented shape."""
        return exactly(shape, self.out)

    def lines(self, shape: type[Any]) -> list[Any]:
        """The JSON lines on standard output."""
        return [exactly(shape, line) for line in self.out.splitlines()]


def exactly(shape: type[Shape], text: str) -> Any:
    found = msgspec.json.decode(text, type=shape)
    shown, meant = json.loads(text), msgspec.to_builtins(found)
    assert set(shown) <= set(meant), f"{set(shown) - set(meant)} are not documented"
    return found


@dataclass
class Project:
    """A folder with an app."""

    folder: Path

    def write(self, name: str, text: str, more: str = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((HEAD if name.endswith(".py") else "") + textwrap.dedent(text) + more)
        return path

    def events(self, events: list[dict[str, Any]], name: str = "in.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(e) + "\n" for e in events))

    def seen(self, *cids: int) -> None:
        """Events of these cameras, a second apart."""
        self.events([{"cid": cid, "time": float(at)} for at, cid in enumerate(cids)])

    def output(self, name: str = "out.jsonl") -> list[Any]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def environment(self) -> dict[str, str]:
        dropped = ("PYTEST_", "COV_", "SECONDPASS_", "NO_COLOR", "FORCE_COLOR", "PYTHONHASHSEED")
        return {k: v for k, v in os.environ.items() if not k.startswith(dropped)}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A real process; its pipes are text."""
        return subprocess.Popen(
            [sys.executable, "-m", "secondpass", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *arguments: str) -> Done:
        """A command in a process of its own."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        return Done(process.returncode, out, err)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def first(project: Project) -> Project:
    """An app that passes a camera's first event, and six events of three cameras."""
    project.write("first.py", FIRST)
    project.seen(1, 2, 1, 3, 2, 1)
    return project


@pytest.fixture
def command(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """A command in this process, in the project's folder; whatever it imports is forgotten."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("NO_COLOR", "SECONDPASS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(apart, "NICE", 0)  # a busy machine would keep us waiting
    modules = set(sys.modules)

    def run(*arguments: str) -> Done:
        for name in [n for n, m in sys.modules.items() if _is_below(m, project.folder)]:
            del sys.modules[name]  # an app's file may have been written anew
        capfd.readouterr()
        code = main(list(arguments))
        found = capfd.readouterr()
        return Done(code, found.out, found.err)

    yield run
    for name in set(sys.modules) - modules:
        if _is_below(sys.modules[name], project.folder):
            del sys.modules[name]


def _is_below(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(folder)
