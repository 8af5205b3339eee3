"""What `import secondpass` costs beyond a bare Python: wall time of whole processes, in turn, medians.

python benchmarks/import_time.py [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def took(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    bare, ours, msgspec = [], [], []
    for _ in range(rounds):
        bare.append(took("pass"))
        msgspec.append(took("import msgspec"))
        ours.append(took("import secondpass"))
    base = statistics.median(bare)
    print("| | beyond bare Python |\n|-|-|")
    print(f"| `import secondpass` | {statistics.median(ours) - base:.0f} ms |")
    print(f"| of which `import msgspec` | {statistics.median(msgspec) - base:.0f} ms |")
    print(f"\nbare Python {base:.0f} ms; medians of {rounds} rounds")


if __name__ == "__main__":
    main()
