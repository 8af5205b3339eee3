"""Large tables lie in large pages where the kernel has them, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secondpass.store import hugepages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

LARGE = """
from pathlib import Path
from secondpass.store import hugepages
def large_pages():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))
cells = {key: key / 2 for key in range(hugepages.CELLS_MIN)}
before = large_pages()
hugepages.ask(len(cells)).join()
assert all(cells[key] == key / 2 for key in cells)
print(large_pages() - before)
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this kernel has no large pages"
)
def test_a_large_table_moves_into_large_pages_and_keeps_its_cells() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 16 * 1024  # KiB


def test_a_small_table_is_left_alone() -> None:
    assert hugepages.ask(hugepages.CELLS_MIN - 1) is None
