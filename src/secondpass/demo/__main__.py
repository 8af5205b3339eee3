"""`python -m secondpass.demo DIRECTORY`: compare the outputs there with what really happened, again."""

import sys
from pathlib import Path

from rich.console import Console

from secondpass.demo.report import render_scores
from secondpass.demo.run import score_directory
from secondpass.errors import SecondpassError


def main(arguments: list[str]) -> int:
    """Print the scores; returns the exit status."""
    if len(arguments) != 1:
        Console(stderr=True).print("usage: python -m secondpass.demo DIRECTORY", markup=False)
        return 2
    try:
        incidents, pages = score_directory(Path(arguments[0]))
    except SecondpassError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 1
    render_scores(incidents, pages, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
