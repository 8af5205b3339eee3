"""Run every benchmark and write what it prints into docs/explanation/performance.md.

    python benchmarks/run.py [--quick] [--only NAME]

`--quick` takes small inputs, to see that everything runs; its results are printed and not written. `--only` leaves the
others' results as they are.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- results: begin", "<!-- results: end -->"

# name (the script, and behind a colon what else tells it), title, arguments, arguments of a quick run
ALL = [
    ("cheap_chains", "Cheap chains, file to file", ["--rounds", "3"], ["--events", "50000", "--rounds", "1"]),
    ("by_hand", "The usual hand-made design", ["--events", "50000", "--rounds", "1"],
     ["--events", "2000", "--rounds", "1"]),
    ("every_core", "Tasks on every core", ["--events", "16000"],
     ["--events", "1000", "--cheap-events", "50000", "--rounds", "1"]),
    ("every_core:long", "Tasks on every core, in a longer run", ["--events", "32000", "--rounds", "4", "--only", "no state"],
     ["--events", "1000", "--rounds", "1", "--only", "no state"]),
    ("shipping", "An event's way to a worker and back", [], ["--events", "4000", "--rounds", "1"]),
    ("simulate_workers", "Many workers, simulated", [], ["--quick"]),
    ("commands", "Commands to a running chain", [], ["--cells", "10000", "--each", "3"]),
    ("errors", "Failing events", ["--events", "500000", "--rounds", "3"], ["--events", "20000", "--rounds", "1"]),
    ("trickle", "A stream that trickles", [], ["--events", "100"]),
    ("timers", "Timers", [], ["--cells", "20000", "--events", "20000", "--rounds", "1"]),
    ("lookups", "Lookups", [], ["--events", "50000", "--rows", "2000", "--rounds", "1"]),
    ("pushed", "Pushed events", [], ["--events", "20000", "--single", "400", "--rounds", "1"]),
    ("memory", "Memory over a long stream", [], ["--events", "200000"]),
    ("reopen", "Reopening a store", [], ["--cells", "10000", "--rounds", "1"]),
    ("many_cells", "Many cells", [], ["--cells", "1000,100000", "--epochs", "50"]),
    ("explain", "Explaining and rehearsing", ["--events", "500000", "--rounds", "7"], ["--events", "30000", "--rounds", "1"]),
    ("import_time", "Importing", [], ["--rounds", "3"]),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=[name for name, *_ in ALL])
    given = parser.parse_args()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    parts: list[str] = []
    for name, title, full, quick in ALL:
        if given.only and name not in given.only:
            continue
        arguments = quick if given.quick else full
        script = f"{name.partition(':')[0]}.py"
        command = f"python benchmarks/{shlex.join([script, *arguments])}"
        print(f"$ {command}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        parts.append(f"### {title}\n\n`{command}`, {today}\n\n{done.stdout.strip()}\n")
        print(parts[-1], flush=True)
    if given.quick:
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    first, _, after = rest.partition(END)
    head, _, old = first.partition("\n")
    kept = {section.partition("\n")[0]: f"### {section.strip()}\n" for section in old.split("### ")[1:]}
    kept |= {part.removeprefix("### ").partition("\n")[0]: part for part in parts}
    found = [kept[title] for _, title, *_ in ALL if title in kept]
    PAGE.write_text(f"{before}{BEGIN}{head}\n\n" + "\n".join(found) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
