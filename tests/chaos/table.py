"""`python tests/chaos/table.py FILE`: what the experiments noted in FILE, as the tables of RESULTS.md."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HEAD = """# What the experiments measured

The experiments are tests of this folder; `make chaos` runs them one after the other and writes this file
(`CHAOS_REPEATS=3 make chaos` runs each three times). Times are milliseconds, taken at the simulated caller; they are
noted, not asserted. What is asserted in every row: no call dropped, no line doubled or in the wrong call or out of
order, no line lost but what the agent emitted while the fault lasted or within 250 ms before, no command carried out
twice, `session_end` once per call, and that every later agent was told what had been said.

*silence* runs from the end of what a caller said to the first sound of the answer, a caller who gets none in 8 s says
it again (`again`), and the wait goes on. *lost* are lines that the agent emitted in the fault. *0/1/2*: commands
carried out not at all, once and twice; one that was given to a dying pod may be lost, and is then reported to the
application. *ended*: calls whose `session_end` ran once.

| experiment | promise | runs | calls | dropped | silence p50 | max | again | lines | lost | doubled | 0/1/2 | ended |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""

OTHER = """
| measured | promise | runs | figures |
|---|---|---|---|
"""


def main(file: str) -> None:
    """Print the tables."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for text in Path(file).read_text().splitlines():
        line = json.loads(text)
        groups[line.pop("experiment"), line.pop("promise")].append(line)
    rows, others = [], []
    for (experiment, promise), lines in groups.items():
        if "silence_max" in lines[0]:
            rows.append(_talk(experiment, promise, lines))
        else:
            figures = "; ".join(", ".join(f"{name} {value:.0f}" for name, value in line.items()) for line in lines)
            others.append(f"| {experiment} | {promise} | {len(lines)} | {figures} |")
    print(HEAD + "\n".join(rows) + ("\n" + OTHER + "\n".join(others) if others else ""))


def _talk(experiment: str, promise: str, lines: list[dict[str, Any]]) -> str:
    def total(name: str) -> str:
        return f"{sum(line[name] for line in lines):.0f}"

    p50 = statistics.median(line["silence_p50"] for line in lines)
    longest = max(line["silence_max"] for line in lines)
    commands = "/".join(total(name) for name in ("not_commanded", "commanded", "commanded_twice"))
    cells = [experiment, promise, str(len(lines)), total("calls"), total("dropped"), f"{p50:.0f}", f"{longest:.0f}"]
    counts = [total(name) for name in ("repeated", "lines", "lost", "doubled")]
    return "| " + " | ".join([*cells, *counts, commands, total("finished_once")]) + " |"


if __name__ == "__main__":
    main(*sys.argv[1:])
