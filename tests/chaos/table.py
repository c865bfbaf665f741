"""`python tests/chaos/table.py FILE`: what the experiments noted in FILE, as the table of RESULTS.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """# What the experiments measured

Written by `make chaos` on one machine with two cores; the experiments are the tests of this folder, each named by
the promise that it checks. Times are milliseconds, taken at the simulated caller.

| experiment | figures |
|---|---|
"""


def main(file: str) -> None:
    """Print the table."""
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    rows = []
    for line in lines:
        figures = ", ".join(f"{name} {value:.0f}" for name, value in line.items() if name != "experiment")
        rows.append(f"| {line['experiment']} | {figures} |")
    print(HEAD + "\n".join(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
