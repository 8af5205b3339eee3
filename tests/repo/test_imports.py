"""Imports run one way: down the floors of the package, and never in a circle.

The floors are those of ARCHITECTURE.md. Every import statement counts, wherever it stands: one inside
a function is as much a dependency as one at the top. Only imports for the type checker (under
`if TYPE_CHECKING:`) do not.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "secondpass"

# Lowest first. A module may import from its own floor, as long as no circle arises, and from below.
# `*` stands for any modules of the folder, `secondpass` for the package's own __init__.
FLOORS: list[tuple[str, ...]] = [
    ("errors", "failpoints", "amounts", "garbage", "aside", "unheard"),
    ("codec", "event", "state", "lookups", "timers", "due", "definition", "calls"),
    ("binding", "task", "description", "tasklog", "record", "step", "change"),
    ("timetable", "app", "loading", "reference", "feeder"),
    ("connectors", "connectors.*", "store", "store.*"),
    ("engine", "engine.*"),
    ("secondpass", "control", "testing", "tasks", "tasks.*", "demo", "demo.*"),
    ("cli", "cli.*", "web", "web.*", "__main__"),
]

# Steps up that are allowed, each inside a function only, with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("app", "engine.eventlog"): "app.log is where a user's script appends; an app at rest needs none",
    ("app", "engine.run"): "App.run is where a user's script enters the engine; an app at rest needs none",
    ("app", "control"): "App.control likewise",
    ("app", "engine.explain"): "App.explain likewise",
}


@dataclass(frozen=True)
class Import:
    """Module `importer` imports module `imported` (both without the package's name)."""

    importer: str
    imported: str
    place: str  # file:line
    nested: bool  # inside a function


def floor_of(module: str) -> int | None:
    """The number of the module's floor, or None when the table above does not know it."""
    for number, patterns in enumerate(FLOORS):
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            return number
    return None


def modules_in(package: Path) -> dict[str, Path]:
    """All modules of the package, by their name without the package's (its __init__ by the package's)."""
    found: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts) or PACKAGE] = path
    return found


def imports_of(module: str, path: Path, modules: dict[str, Path], root: Path) -> Iterator[Import]:
    """Every import of one of the package's own modules by this module."""
    package_parts = [PACKAGE] if module == PACKAGE else [PACKAGE, *module.split(".")]
    if path.name != "__init__.py":
        package_parts = package_parts[:-1]

    def resolve(name: str) -> str | None:
        if name == PACKAGE:
            return PACKAGE
        return name.removeprefix(PACKAGE + ".") if name.startswith(PACKAGE + ".") else None

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_parts[: len(package_parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from secondpass.store import sqlite` imports the module sqlite
                inner = resolve(f"{source}.{alias.name}")
                yield f"{source}.{alias.name}" if inner in modules else source
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value

    def walk(node: ast.AST, nested: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child, nested)
            return
        for name in names(node):
            imported = resolve(name)
            if imported is not None and imported != module:
                place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
                yield Import(module, imported, place, nested)
        nested = nested or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, nested)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)


def excepted(step: Import) -> bool:
    return step.nested and (step.importer, step.imported) in EXCEPTIONS


def all_imports(package: Path) -> list[Import]:
    modules = modules_in(package)
    return [
        step
        for module, path in modules.items()
        for step in imports_of(module, path, modules, package.parent.parent)
        if not excepted(step)
    ]


def unknown_modules(package: Path) -> list[str]:
    return [f"{path}: {name}" for name, path in modules_in(package).items() if floor_of(name) is None]


def steps_up(package: Path) -> list[str]:
    def up(step: Import) -> bool:
        here, there = floor_of(step.importer), floor_of(step.imported)
        return here is not None and there is not None and there > here

    return [
        f"{step.place}: {step.importer} (floor {floor_of(step.importer)}) imports {step.imported} "
        f"(floor {floor_of(step.imported)})"
        for step in all_imports(package)
        if up(step)
    ]


def circle(package: Path) -> list[Import]:
    """The imports of one circle, or none."""
    edges: dict[str, list[Import]] = {}
    for step in all_imports(package):
        edges.setdefault(step.importer, []).append(step)
    done: set[str] = set()

    def visit(module: str, path: list[Import]) -> list[Import]:
        for index, step in enumerate(path):
            if step.importer == module:
                return path[index:]
        if module in done:
            return []
        for step in edges.get(module, []):
            if found := visit(step.imported, [*path, step]):
                return found
        done.add(module)
        return []

    for module in list(edges):
        if found := visit(module, []):
            return found
    return []


@pytest.fixture
def package(root: Path) -> Path:
    return root / "src" / PACKAGE


def test_every_module_has_a_floor(package: Path) -> None:
    unknown = unknown_modules(package)
    assert not unknown, (
        "no floor is known for:\n  "
        + "\n  ".join(unknown)
        + f"\ndecide where they stand and add them to FLOORS in {Path(__file__).name} and to ARCHITECTURE.md"
    )


def test_no_module_imports_from_a_floor_above(package: Path) -> None:
    found = steps_up(package)
    assert not found, (
        "imports that step up:\n  "
        + "\n  ".join(found)
        + "\nmove what is shared to the lower floor, or hand it down as an argument"
    )


def test_no_imports_run_in_a_circle(package: Path) -> None:
    found = circle(package)
    assert not found, "imports that run in a circle:\n  " + "\n  ".join(
        f"{step.place}: {step.importer} imports {step.imported}" for step in found
    )


# ------------------------------------------------------------- the checks themselves find what is wrong


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package that keeps the floors."""
    package = tmp_path / "src" / PACKAGE
    for name, text in {
        "__init__.py": "from secondpass.app import App as App\n",
        "errors.py": "",
        "event.py": "from secondpass.errors import SecondpassError\n",
        "app.py": "def run():\n    from secondpass.engine import run\n    run.run()\n",
        "engine/__init__.py": "",
        "engine/run.py": "from secondpass.app import App\nimport secondpass.event\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_a_house_in_order_passes_with_its_lazy_exception(house: Path) -> None:
    assert (unknown_modules(house), steps_up(house), circle(house)) == ([], [], [])


def test_the_exception_holds_inside_a_function_only(house: Path) -> None:
    (house / "app.py").write_text("from secondpass.engine import run\n")
    assert [line.split(":")[1] for line in steps_up(house)] == ["1"]


@pytest.mark.parametrize(
    "text",
    [
        "from secondpass.event import Event",
        "from secondpass import event",
        "from . import event",
        "from .event import Event",
        "import secondpass.event as e",
        "def late():\n    from secondpass.event import Event",
        "class A:\n    import secondpass.event",
        "import importlib\nimportlib.import_module('secondpass.event')",
        "try:\n    import secondpass.event\nexcept ImportError:\n    pass",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import secondpass.event",
    ],
)
def test_a_step_up_is_found_in_every_form(house: Path, text: str) -> None:
    (house / "errors.py").write_text(text + "\n")
    assert any("errors (floor 0) imports event (floor 1)" in line for line in steps_up(house))


def test_an_import_for_the_type_checker_is_no_step(house: Path) -> None:
    (house / "errors.py").write_text("if TYPE_CHECKING:\n    from secondpass.event import Event\n")
    assert (steps_up(house), circle(house)) == ([], [])


def test_a_circle_within_a_floor_is_found(house: Path) -> None:
    (house / "state.py").write_text("from secondpass.task import Task\n")
    (house / "task.py").write_text("def late():\n    from secondpass import state\n")
    assert {step.importer for step in circle(house)} == {"state", "task"}


def test_a_module_without_a_floor_is_found(house: Path) -> None:
    (house / "helpers.py").write_text("")
    assert [line.split(": ")[1] for line in unknown_modules(house)] == ["helpers"]
