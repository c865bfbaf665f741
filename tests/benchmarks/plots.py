"""Two plots for each load, as PNG: delay against calls and CPU against calls. They need the extra `bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import table

CELLS = Sequence[table.Cell]


def draw(cells: CELLS, folder: Path) -> list[Path]:
    """Write the plots; their files. Raises ImportError if matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    made = []
    for load in dict.fromkeys(cell["load"] for cell in cells):
        mine = [cell for cell in cells if cell["load"] == load]
        made.append(_plot(mine, folder / f"{load}-cpu.png", f"{load}: CPU", "CPU ms per call-second", _cpu))
        made.append(_plot(mine, folder / f"{load}-delay.png", f"{load}: delay p99", "ms (logarithmic)", _p99, log=True))
    return made


def _cpu(cell: table.Cell) -> float | None:
    cpu: float = cell["cluster_cpu"]
    return cpu


def _p99(cell: table.Cell) -> float | None:
    p99: float | None = cell["heard"].get("p99")
    return p99


def _plot(
    cells: CELLS, file: Path, title: str, label: str, value: Callable[[table.Cell], float | None], log: bool = False
) -> Path:
    """One line for each design through the medians, with bars from the smallest to the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    by = table.groups(cells)
    for design in dict.fromkeys(cell["design"] for cell in cells):
        calls, middle, below, above = [], [], [], []
        for (_, n, name), found in sorted(by.items(), key=lambda item: item[0][1]):
            values = sorted(v for v in map(value, found) if v is not None)
            if name != design or not values:
                continue
            centre = statistics.median(values)
            calls.append(n)
            middle.append(centre)
            below.append(centre - values[0])
            above.append(values[-1] - centre)
        if calls:
            axes.errorbar(calls, middle, yerr=[below, above], marker="o", markersize=3, capsize=3, label=design)
    axes.set(title=title, xlabel="calls", ylabel=label)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return file
