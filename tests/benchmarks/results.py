"""Writes `RESULTS.md` and its plots from the JSON of `run.py` and `scale.py`.

python tests/benchmarks/results.py FILE.json [--out tests/benchmarks/RESULTS.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import about
import plots
import table

HERE = Path(__file__).parent


def compare(cells: list[table.Cell], cores: int) -> str:
    """Everything that `make bench` has to say."""
    blocks = [
        "### CPU\n\nMilliseconds of CPU per call and second of call. Each ratio is taken within one repeat, where the "
        "designs ran one after the other.",
        table.cost(cells, cores),
        f"### Calls per core\n\nAt the largest number of calls whose p99 is at most {table.P99_MS:.0f} ms.",
        table.capacity(cells),
        "### Delay\n\n*Heard*: under `echo` each frame's way to the agent and back, under `talk` the first piece of "
        "each answer from agent to caller. *Up*: each frame from caller to agent.",
        table.delay(cells),
        "### Memory and Redis\n\nMemory per call is what was added since rest, so at few calls it is mostly what is "
        "loaded at the first use.",
        table.memory(cells),
    ]
    if ratios := table.validity(cells):
        blocks += [
            "### Is the plain bridge a fair one?\n\nA good one costs about 2.9 times the relay under `echo` at 100 "
            "calls; one that is slower would flatter the product.",
            "\n".join(ratios),
        ]
    return "\n\n".join(blocks)


def write(data: dict[str, Any], out: Path, *, drawn: bool) -> None:
    """RESULTS.md, and beside it, if they are to be drawn, the folder `plots`."""
    blocks = [
        "# Results of the benchmarks",
        "Written by `make bench` and `make bench-scale`; what the words mean stands in [README.md](README.md). Medians "
        "over the repeats, in brackets the smallest and the largest. Compare only figures of one run.",
    ]
    cells = data.get("cells", [])
    if cells:
        blocks += ["## Beside the plain bridge", "\n".join(about.lines(data["about"]))]
        blocks.append(compare(cells, data["about"]["cores"]))
        if drawn:
            blocks += _plots(cells, out)
    for part in data.get("scale", {}).values():
        blocks += [f"## {part['title']}", "\n".join(about.lines(part["about"])), part["text"]]
        blocks.append(table.markdown(part["heads"], part["rows"]))
    out.write_text("\n\n".join(blocks) + "\n")


def _plots(cells: list[table.Cell], out: Path) -> list[str]:
    try:
        made = plots.draw(cells, out.parent / "plots")
    except ImportError as error:
        print(f"no plots: {error.name} is not installed (the extra `bench` has it)", file=sys.stderr)
        return []
    return ["### Plots", *(f"![{file.stem}](plots/{file.name})" for file in made)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--no-plots", action="store_true")
    given = parser.parse_args()
    write(json.loads(given.json.read_text()), given.out, drawn=not given.no_plots)
    print(f"written: {given.out.name} and what it shows", file=sys.stderr)


if __name__ == "__main__":
    main()
