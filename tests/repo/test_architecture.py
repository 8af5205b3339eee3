"""ARCHITECTURE.md shows the house as it stands: the loop's steps word for word, every module in its place."""

import ast
import re
import textwrap
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "ARCHITECTURE.md").read_text("utf-8")


@pytest.fixture(scope="module")
def package(root: Path) -> Path:
    return root / "src" / "secondpass"


def steps_of(source: str) -> str:
    """The second paragraph of a module's docstring."""
    paragraphs = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")
    return textwrap.dedent(paragraphs[1]) if len(paragraphs) > 1 else ""


def named(page: str) -> set[str]:
    """The modules and folders that a page names, as paths in the package."""
    return set(re.findall(r"`((?:\w+/)*(?:\w+\.py|\w+/))`", page))


def missing(names: set[str], package: Path) -> list[str]:
    """Modules of the package that have no name here, neither their own nor their folder's."""
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    return sorted(
        module
        for module in modules
        if module not in names
        and not any(f"{parent.as_posix()}/" in names for parent in Path(module).parents)
        and not (Path(module).name == "__init__.py" and len(Path(module).parts) > 1)
    )


def test_the_steps_of_the_loop_stand_there_word_for_word(page: str, package: Path) -> None:
    steps = steps_of((package / "engine" / "loop.py").read_text("utf-8"))
    assert len(steps.splitlines()) == 4, f"the loop has four steps, its docstring shows:\n{steps}"
    assert f"```text\n{steps}\n```" in page, f"ARCHITECTURE.md shows other steps than the loop:\n{steps}"


def test_every_module_named_there_exists(page: str, package: Path, root: Path) -> None:
    gone = sorted(n for n in named(page) if not (package / n).exists() and not (root / n).exists())
    assert not gone, f"ARCHITECTURE.md names what is not there: {gone}"


def test_every_module_is_named_there_or_its_folder_is(page: str, package: Path) -> None:
    absent = missing(named(page), package)
    assert not absent, f"ARCHITECTURE.md does not say what these are for: {absent}"


# ---------------------------------------------------------------- the checks themselves find what is wrong


def test_a_module_without_a_name_is_found(tmp_path: Path) -> None:
    for module in (
        "__init__.py",
        "app.py",
        "engine/__init__.py",
        "engine/loop.py",
        "cli/run.py",
        "cli/deep/x.py",
    ):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text("")
    assert missing({"__init__.py", "cli/"}, tmp_path) == ["app.py", "engine/loop.py"]


def test_names_are_read_as_they_are_written() -> None:
    page = "`engine/loop.py`, `cli/`, `app.py` (`_define`), `App`, `python -m x.py`, loop.py"
    assert named(page) == {"engine/loop.py", "cli/", "app.py"}
