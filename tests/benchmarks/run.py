"""`make bench`: the product beside a plain bridge, in one run and by turns; the table goes to standard output.

python tests/benchmarks/run.py --calls 50 100 --repeats 5 --seconds 5 [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from cell import Cell, measure
from check_relay import check
from designs import DESIGNS


def middle(cells: list[Cell], value: Callable[[Cell], float]) -> str:
    """Median, with the smallest and the largest."""
    values = sorted(value(cell) for cell in cells)
    return f"{statistics.median(values):.2f} ({values[0]:.2f}–{values[-1]:.2f})"


def row(cells: list[Cell], plain: list[Cell]) -> str:
    first = cells[0]
    ratios = [mine.cluster_cpu / theirs.cluster_cpu for mine, theirs in zip(cells, plain, strict=True)]
    parts = [name for name in ("edge", "worker", "redis", "bridge") if name in first.cpu]
    return " | ".join(
        [
            f"| {first.load}",
            str(first.calls),
            first.design,
            middle(cells, lambda c: c.cluster_cpu),
            " / ".join(f"{statistics.median(c.cpu[part] for c in cells):.2f}" for part in parts),
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            middle(cells, lambda c: c.heard.get("p50", 0.0)),
            middle(cells, lambda c: c.heard.get("p99", 0.0)),
            middle(cells, lambda c: c.setup.get("p50", 0.0)),
            f"{statistics.median(max(c.busy['load'], c.busy['agents']) for c in cells):.2f}",
            f"{sum(c.lost for c in cells)} |",
        ]
    )


def validity(plain: list[Cell], relay: list[Cell]) -> str:
    """Whether the plain bridge is as quick as one should be: about 2.9 times the relay, for `echo` and 100 calls."""
    ratios = [mine.cluster_cpu / bound.cluster_cpu for mine, bound in zip(plain, relay, strict=True)]
    found = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"plain asyncio / relay, {plain[0].load}, {plain[0].calls} calls: {found}; about 2.9 for echo and 100 calls"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 10, 50, 100, 200])
    parser.add_argument("--loads", nargs="+", default=["talk", "echo"], choices=["talk", "echo"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    asyncio.run(check())
    cells: list[Cell] = []
    heads = "load, calls, design, CPU ms per call-second, edge / worker / redis, × plain asyncio, p50 ms, p99 ms"
    print("| " + " | ".join(f"{heads}, set-up p50 ms, load or agents (cores), lost".split(", ")) + " |")
    print("|" + "---|" * 11)
    for load in given.loads:
        for calls in given.calls:
            found: dict[str, list[Cell]] = {name: [] for name in DESIGNS}
            for repeat in range(given.repeats):
                for name, make in DESIGNS.items():
                    print(f"{load} {calls} {repeat + 1}/{given.repeats} {name}", file=sys.stderr, flush=True)
                    found[name].append(measure(name, make, load, calls, given.seconds))
            for name in DESIGNS:
                print(row(found[name], found["plain, asyncio"]), flush=True)
                cells += found[name]
            print(validity(found["plain, asyncio"], found["relay"]), file=sys.stderr, flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps([cell.json() for cell in cells], indent=1))


if __name__ == "__main__":
    main()
