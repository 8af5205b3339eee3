"""Public names are documented, and importing them is light: every worker process does it."""

import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import secondpass

# What belongs to the hub, the faces or to single tasks must not be paid for by every worker.
HEAVY = ["apsw", "asyncio", "click", "numpy", "psutil", "rich", "starlette", "uvicorn"]

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(secondpass.__path__, "secondpass.")
    if not module.name.endswith("__main__")
)


def has(module: str) -> bool:
    return module in MODULES


def test_every_public_name_exists_once() -> None:
    names = secondpass.__all__
    assert sorted(names) == sorted(set(names)), "a name stands twice in secondpass.__all__"
    missing = [name for name in names if not hasattr(secondpass, name)]
    assert not missing, f"secondpass.__all__ names what the package does not have: {missing}"


def test_every_public_name_has_a_docstring() -> None:
    def documented(name: str) -> bool:
        thing = getattr(secondpass, name)
        if isinstance(thing, str | int | float | tuple):  # __version__ and the like
            return True
        # A class's own docstring, not its base's; for an instance, its type's.
        own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else inspect.getdoc(thing)
        # dataclasses and Structs without a docstring carry their signature instead
        return bool(own and own.strip()) and not own.startswith(f"{name}(")

    missing = [name for name in secondpass.__all__ if not documented(name)]
    assert not missing, f"public names without a docstring: {missing}"


def test_the_package_and_its_metadata_name_one_version() -> None:
    version = getattr(secondpass, "__version__", None)
    if version is not None:
        assert version == importlib.metadata.version("secondpass")


def loaded_by(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["secondpass", *[m for m in ("secondpass.engine.worker", "secondpass.connectors") if has(m)]],
)
def test_what_a_worker_imports_stays_light(module: str) -> None:
    heavy = loaded_by(f"import {module}") & set(HEAVY) - loaded_by("pass")
    assert not heavy, f"import {module} also imports {sorted(heavy)}: import them where they are used"


@pytest.mark.parametrize("name", ["secondpass", *MODULES])
def test_the_examples_in_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = doctest.testmod(importlib.import_module(name), optionflags=flags).failed
    assert not failed, capsys.readouterr().out
