"""Every code block of README.md and docs/ runs and prints what the page shows; every link leads somewhere.

How a page is run, and what a fence may say, is told in page.py beside this file.
"""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.is_file()
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def run_page(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # What a page shows must not hang on the terminal that runs it.
        "COLUMNS": "100",
        "LINES": "40",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.run(
        [sys.executable, str(HERE / "page.py"), page],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str) -> None:
    done = run_page(page, ROOT)
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    path = ROOT / page
    prose = re.sub(
        r"^([ >]*)(`{3,}|~{3,}).*?^\1\2\s*$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    broken = []
    for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", prose)):
        target, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (path.parent / target) if target else path
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"{target}#{anchor}: no such heading")
    assert not broken, f"{page} has links to nowhere:\n  " + "\n  ".join(broken)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------- the runner itself finds what is wrong


@pytest.fixture
def page(tmp_path: Path):
    def run(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "page.md").write_text(textwrap.dedent(text).lstrip("\n"))
        return run_page("page.md", tmp_path)

    return run


def test_blocks_run_in_order_in_one_namespace_and_one_folder(page) -> None:
    done = page("""
        # A page

        ```python
        import inspect
        from pathlib import Path
        x = 1
        ```

        ```python file=inner/told.py
        print("told")
        ```

        ```json file=numbers.json
        [1, 2, 3]
        ```

        - in a list:

          ```console
          $ python inner/told.py && export KEPT=yes
          told
          $ cat numbers.json; mkdir deep; cd deep
          [1, 2, 3]
          $ echo "$KEPT $(basename "$PWD")"
          yes deep
          ```

        ```sh
        test "$KEPT" = yes
        touch made
        ```

        ```python
        class Late:
            y = x

        assert Late.y == 1 and Path("deep/made").exists()
        assert "y = x" in inspect.getsource(Late)
        ```

        ```text
        $ not run
        ```

        ~~~~console status=3
        $ exit 3
        ~~~~
        """)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shown", "right"),
    [
        ("took 1.25 s, 3 kept\ndone", True),
        ("took ... s, 3 kept\ndone", True),
        ("...\ndone", True),
        ("took ...\n...", True),
        ("took ... s, 4 kept\ndone", False),
        ("took ... s, 3 kept", False),
        ("took ... s, 3 kept\ndone\nmore", False),
        ("", False),
    ],
)
def test_what_a_command_prints_must_be_what_is_shown(page, shown: str, right: bool) -> None:
    done = page(f"""```console\n$ echo 'took 1.25 s, 3 kept'; echo done\n{shown}\n```\n""")
    assert (done.returncode == 0) is right, done.stderr
    if not right:
        assert "page.md:2: $ echo" in done.stderr
        assert "took 1.25 s, 3 kept" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\n\n```python\nx = 1\n1 / 0\n```\n", "page.md:5: ZeroDivisionError"),
        ("```python\nx = (\n```\n", "page.md:2: SyntaxError"),
        ("```python\nraise SystemExit(2)\n```\n", "page.md:2: SystemExit"),
        ("```console\n$ true\n$ false\n```\n", "page.md:3: $ false\nended with status 1, not 0"),
        ("```console status=1\n$ true\n```\n", "page.md:2: $ true\nended with status 0, not 1"),
        ("```console\nfalse\n```\n", "page.md:2: a console block begins with"),
        ("```sh\nfalse\ntrue\n```\n", "page.md:2: the block ended with status 1"),
        ("```\nx\n```\n", "page.md:1: a block must say what it is"),
        ("```pyhton\nx\n```\n", "page.md:1: a block must say what it is"),
        ("```python title=x\nx\n```\n", "page.md:1: unknown option"),
        ("```python\nx = 1\n", "page.md:1: this block is never closed"),
        ("```text file=../x\nx\n```\n", "page.md:1: file=../x leaves"),
    ],
)
def test_a_failure_names_page_and_line(page, text: str, said: str) -> None:
    done = page(text)
    assert done.returncode == 1
    assert done.stderr.startswith(said)


def ended(pid: int, within_s: float) -> bool:
    """Whether a process is gone, or only waits for its parent to notice, before so long."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_a_command_in_the_background_ends_with_the_page(page, tmp_path: Path) -> None:
    done = page(f"""
        ```console
        $ sleep 300 & echo $! >{tmp_path}/pid
        ```
        """)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int((tmp_path / "pid").read_text())
    assert ended(pid, within_s=10.0)  # it was killed: a busy machine may take a moment to end it
