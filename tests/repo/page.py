"""Run the code of one Markdown page, top to bottom, as a reader who follows it would.

    python page.py PAGE.md

A page starts in an empty folder and in a fresh Python. What a fence says decides what happens:

    ```python               is executed; all python blocks of a page share one namespace
    ```console              each line `$ command` is run by sh, and what it prints must be what is
                            shown up to the next one; `...` stands for any text within a line and, on
                            a line of its own, for any lines. `status=N` says that the block's last
                            command ends with N
    ```sh                   is run by sh as a whole and must succeed
    ```LANGUAGE file=NAME   is written to the file NAME, whatever the language, and not executed
    ```text                 is not executed, nor are data (json, toml, ...)

Commands find this Python's programs first on the PATH, see the variables and the folder that earlier
ones set, and end with the page when they run in the background. A block inside an HTML comment is run
as well: that is the place for a preparation that the reader need not see.
"""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN = {"python", "console", "sh"}
SHOWN = {
    "text",
    "csv",
    "diff",
    "dockerfile",
    "html",
    "http",
    "ini",
    "json",
    "jsonl",
    "mermaid",
    "sql",
    "toml",
    "yaml",
}
OPTIONS = {"python": {"file"}, "console": {"status"}}
SECONDS_PER_COMMAND = 60

# Each command has a shell of its own, which begins where the last one ended.
SCRIPT = """\
keep() {{ status=$?; export -p >{exports}; exit "$status"; }}
. {exports}
cd "$PWD"
trap keep EXIT
{command}
"""


class PageError(Exception):
    """The page does not hold what it says; the message names page and line."""


@dataclass(frozen=True)
class Block:
    """One fenced block: where its first line of content stands, what its fence says, its text."""

    page: str
    line: int
    language: str
    options: dict[str, str]
    text: str

    def error(self, line: int, message: str) -> PageError:
        return PageError(f"{self.page}:{line}: {message}")


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opening = re.match(r"^([ >]*)(`{3,}|~{3,})\s*(.*)$", lines[at])
        at += 1
        if opening is None:
            continue
        indent, fence, said = opening.groups()
        start, content = at, []
        closing = re.compile(rf"^[ >]*{re.escape(fence[0])}{{{len(fence)},}}\s*$")
        while at < len(lines) and not closing.match(lines[at]):
            line = lines[at]
            content.append(line[len(indent) :] if line.startswith(indent) else line.lstrip(" >"))
            at += 1
        if at == len(lines):
            raise PageError(f"{page}:{start}: this block is never closed")
        at += 1
        language, *options = shlex.split(said) or [""]
        block = Block(page, start + 1, language, {}, "\n".join(content) + "\n")
        if language not in RUN | SHOWN:
            wanted = ", ".join(sorted(RUN)) + " run; " + ", ".join(sorted(SHOWN)) + " do not"
            raise block.error(start, f"a block must say what it is, not {language!r}: {wanted}")
        for option in options:
            name, equals, value = option.partition("=")
            if not equals or name not in OPTIONS.get(language, set()) | {"file"}:
                raise block.error(start, f"unknown option {option!r} of a {language} block")
            block.options[name] = value
        yield block


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines are the shown ones, with `...` for any text or any lines."""
    pattern = ""
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*"
        else:
            parts = [re.escape(part) for part in line.rstrip().split("...")]
            pattern += "[^\n]*".join(parts) + "\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in printed)) is not None


def tidy(text: str) -> list[str]:
    """Lines without colours, trailing spaces and blank lines at either end."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rstrip() for line in plain.strip("\n").splitlines()]


class Page:
    """Runs the blocks of one page, in the current folder."""

    def __init__(self, path: Path, aside: Path) -> None:
        self.name = str(path)
        self.text = path.read_text(encoding="utf-8")
        self.aside = aside
        self.groups: list[int] = []
        self.exports = aside / "exports.sh"
        self.exports.write_text("")
        # The page as a Python file, in which every statement keeps its line in the page: tracebacks
        # and inspect.getsource then speak of the page.
        self.source = aside / (path.stem.replace("-", "_") + ".py")
        self.source.write_text("")
        self.module = types.ModuleType("__main__")
        self.module.__file__ = str(self.source)

    def run(self) -> None:
        blocks = list(blocks_of(self.name, self.text))
        python = [block for block in blocks if block.language == "python" and "file" not in block.options]
        lines = [""] * (len(self.text.splitlines()) + 1)
        for block in python:
            content = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(content)] = content
        self.source.write_text("\n".join(lines) + "\n")
        sys.modules["__main__"] = self.module
        sys.path.insert(0, str(Path.cwd()))
        try:
            for block in blocks:
                self.block(block)
        finally:
            for group in self.groups:
                try:
                    os.killpg(group, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # the usual case: the command has left nothing behind

    def block(self, block: Block) -> None:
        if name := block.options.get("file"):
            target = Path(name)
            if target.is_absolute() or ".." in target.parts:
                raise block.error(block.line - 1, f"file={name} leaves the page's folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.python(block)
        elif block.language == "console":
            self.console(block)
        elif block.language == "sh":
            status, printed = self.shell(block, block.line, "set -e\n" + block.text)
            if status != 0:
                raise block.error(block.line, f"the block ended with status {status} and printed:\n{printed}")

    def python(self, block: Block) -> None:
        try:
            tree = ast.parse("\n" * (block.line - 1) + block.text, str(self.source))
            exec(compile(tree, str(self.source), "exec"), self.module.__dict__)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a page may raise anything; all of it is told)
            if isinstance(error, SystemExit) and not error.code:
                return
            at = block.line
            for frame in traceback.extract_tb(error.__traceback__):
                if frame.filename == str(self.source) and frame.lineno:
                    at = frame.lineno
            if isinstance(error, SyntaxError) and error.lineno:
                at = error.lineno
            trace = "".join(traceback.format_exception(error)).replace(str(self.source), self.name)
            raise block.error(at, f"{type(error).__name__}: {error}\n\n{trace}") from None
        finally:
            sys.stdout.flush()

    def console(self, block: Block) -> None:
        commands: list[tuple[int, str, list[str]]] = []
        lines = iter(enumerate(block.text.splitlines(), block.line))
        for number, line in lines:
            if line.startswith("$ "):
                command = line[2:]
                while command.endswith("\\"):
                    command += "\n" + next(lines, (0, ""))[1].removeprefix("> ")
                commands.append((number, command, []))
            elif commands:
                commands[-1][2].append(line)
            else:
                raise block.error(number, "a console block begins with `$ ` and a command")
        for index, (number, command, shown) in enumerate(commands):
            last = index == len(commands) - 1
            wanted = int(block.options.get("status", "0")) if last else 0
            status, text = self.shell(block, number, command)
            printed, shown = tidy(text), tidy("\n".join(shown))
            both = f"shown:\n{indented(shown)}\nprinted:\n{indented(printed)}"
            if status != wanted:
                raise block.error(number, f"$ {command}\nended with status {status}, not {wanted}\n{both}")
            if not matches(shown, printed):
                raise block.error(number, f"$ {command}\nprints something else than the page shows\n{both}")

    def shell(self, block: Block, line: int, command: str) -> tuple[int, str]:
        """Run a command; its exit status and what it printed."""
        # Output goes to a file: a pipe would wait for the processes left in the background too.
        output = self.aside / f"line-{line}.txt"
        script = self.aside / f"line-{line}.sh"
        script.write_text(SCRIPT.format(exports=shlex.quote(str(self.exports)), command=command))
        with output.open("wb") as out:
            process = subprocess.Popen(
                ["sh", str(script)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            self.groups.append(process.pid)
            try:
                status = process.wait(SECONDS_PER_COMMAND)
            except subprocess.TimeoutExpired:
                text = output.read_text(errors="replace")
                message = (
                    f"$ {command}\nhas not ended after {SECONDS_PER_COMMAND} seconds; it printed:\n{text}"
                )
                raise block.error(line, message) from None
        return status, output.read_text(encoding="utf-8", errors="replace")


def indented(lines: list[str]) -> str:
    return "\n".join("    " + line for line in lines) or "    (nothing)"


def main(page: str) -> int:
    path = Path(page)
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as top:
        folder, aside = Path(top, "here"), Path(top, "aside")
        folder.mkdir()
        aside.mkdir()
        runner = Page(path, aside)
        os.chdir(folder)
        try:
            runner.run()
        except PageError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            os.chdir("/")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    # Not sys.exit: a page may leave threads behind, and it is over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
