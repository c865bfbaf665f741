"""`make bench`: the product beside a plain bridge, in one run and by turns; the tables go to standard output.

python tests/benchmarks/run.py --calls 50 100 --repeats 5 --seconds 8 [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import table
from about import about, store
from cell import measure
from check_relay import check
from designs import DESIGNS
from results import compare


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 10, 50, 100, 200])
    parser.add_argument("--loads", nargs="+", default=["talk", "echo"], choices=["talk", "echo"])
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="8 are one whole cycle of `talk`")
    parser.add_argument("--json", type=Path, help="written anew after each number of calls")
    given = parser.parse_args()
    if table.BOUND in given.designs:
        asyncio.run(check())
    where = about("bench", sys.argv[1:])
    cells: list[table.Cell] = []
    for calls in given.calls:
        for load in given.loads:
            for repeat in range(given.repeats):
                for name in given.designs:
                    print(f"{load} {calls} {repeat + 1}/{given.repeats} {name}", file=sys.stderr, flush=True)
                    cell = measure(name, DESIGNS[name], load, calls, given.seconds)
                    cell.repeat = repeat
                    cells.append(cell.json())
            cells.sort(key=lambda cell: (given.loads.index(cell["load"]), cell["calls"]))
            if given.json is not None:
                store(given.json, {"about": where, "cells": cells, "costs": table.costs(cells)})
    print(compare(cells, os.cpu_count() or 1))


if __name__ == "__main__":
    main()
