"""`python tests/chaos/table.py FILE`: what the experiments noted in FILE, as the table of RESULTS.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """# What the experiments measured

The experiments are tests of this folder; `make chaos` runs them one after the other and writes this file. Times are
milliseconds, taken at the simulated caller; they are noted, not asserted.

How to read it: *answer time* runs from the end of what the caller said to the first sound of the answer. A caller who
gets none in 8 s says it again, and then only the last try is measured: `repeated` counts those waits, so a row with
repeats is **not** the longest silence. `lines_missing` compares all lines of all calls together with what the
simulated agent emitted; it does not look at their order or to which call they belong.

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
