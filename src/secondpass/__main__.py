"""`python -m secondpass` is `secondpass`."""

from __future__ import annotations

import sys

from secondpass.cli import main

if __name__ == "__main__":
    sys.exit(main())
