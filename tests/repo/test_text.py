"""What no tracked file may contain, whoever writes it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Spelt so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|farm)" + "/")
MARK = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|X" + "XX|NotImplemented" + r"Error)\b")
ADDRESS = re.compile(r"\w+://")


@pytest.fixture(scope="module")
def tracked(root: Path) -> dict[str, str]:
    """The text of every tracked file, by its path; binary files are left out."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    texts: dict[str, str] = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                texts[name] = content.decode("utf-8")
    assert texts, "git lists no files"
    return texts


def hits(pattern: re.Pattern[str], texts: dict[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                yield f"{name}:{number}: {line.strip()[:120]}"


def test_no_file_names_a_path_of_one_machine(tracked: dict[str, str]) -> None:
    found = list(hits(MACHINE_PATH, tracked))
    assert not found, "paths that exist on one machine only:\n  " + "\n  ".join(found)


def test_constraints_name_no_registry(tracked: dict[str, str]) -> None:
    constraints = {name: text for name, text in tracked.items() if name.startswith("constraints/")}
    assert constraints, "no constraints are tracked"
    found = list(hits(ADDRESS, constraints)) + list(hits(re.compile(r"^\s*-(?!-hash=)"), constraints))
    assert not found, "addresses or options in constraints:\n  " + "\n  ".join(found)


def test_every_constraint_has_a_version_and_hashes(tracked: dict[str, str]) -> None:
    for name, text in tracked.items():
        if name.startswith("constraints/"):
            for entry in re.split(r"\n(?=\S)", text.strip()):
                assert re.match(r"[\w.-]+==[\w.]+", entry), f"{name}: no exact version: {entry[:80]}"
                assert "--hash=sha256:" in entry, f"{name}: no hash: {entry[:80]}"


def test_the_demo_and_the_tests_run_with_the_same_versions(root: Path) -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(
            re.findall(r"^([\w.-]+)==([\w.]+)", (root / "constraints" / name).read_text(), re.MULTILINE)
        )

    run, dev = pins("run.txt"), pins("dev.txt")
    assert run.items() <= dev.items(), f"they differ in {sorted(run.items() - dev.items())}"


def test_the_source_holds_no_unfinished_marks(tracked: dict[str, str]) -> None:
    source = {name: text for name, text in tracked.items() if name.startswith("src/")}
    found = list(hits(MARK, source))
    assert not found, "unfinished:\n  " + "\n  ".join(found)


def test_python_files_are_indented_with_spaces(tracked: dict[str, str]) -> None:
    python = {name: text for name, text in tracked.items() if name.endswith((".py", ".pyi"))}
    found = list(hits(re.compile(r"\t"), python))
    assert not found, "tabs:\n  " + "\n  ".join(found)


@pytest.mark.parametrize("line", ["see /ho" + "me/ann/x", '"/wo' + 'rk/main"', "path=/ro" + "ot/.cache"])
def test_the_check_finds_a_machine_path(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["https://example.org/ho" + "me/x", "docs/wo" + "rk/x", "~/wo" + "rk/x"])
def test_the_check_leaves_other_paths_alone(line: str) -> None:
    assert not MACHINE_PATH.search(line)
