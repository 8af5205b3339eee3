"""The fuzzers run, and find nothing within five seconds; `make fuzz` gives them longer."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: it has no wheel for this system",
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_fuzzing_for_five_seconds_finds_nothing(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SECONDPASS_FUZZ_SECONDS": "5", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
