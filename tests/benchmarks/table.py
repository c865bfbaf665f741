"""The tables: from the cells of the JSON to Markdown. Medians over the repeats, in brackets smallest and largest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Cell = dict[str, Any]

PLAIN, BOUND = "plain, asyncio", "relay"
PARTS = ("edge", "worker", "redis", "bridge")
P99_MS = 20.0
"""Calls per core are counted up to this round trip."""

BUSY = 0.5
"""Load or agents that use more of a core than this may be what is slow, and not the bridge."""

CARRIED = 0.98
"""A design that gives back less of the audio than this does not carry the load."""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(
        [
            f"| {' | '.join(heads)} |",
            "|" + "---|" * len(heads),
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, with the smallest and the largest if there are several."""
    found = sorted(values)
    if not found:
        return "–"
    middle = f"{statistics.median(found):.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({found[0]:.{digits}f}–{found[-1]:.{digits}f})"


def median(cells: Iterable[Cell], value: Callable[[Cell], float]) -> float:
    return statistics.median(value(cell) for cell in cells)


def groups(cells: Iterable[Cell]) -> dict[tuple[str, int, str], list[Cell]]:
    """(load, calls, design) → its repeats, in the order of measuring."""
    found: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["load"], cell["calls"], cell["design"]), []).append(cell)
    return found


def ratios(mine: Sequence[Cell], others: Sequence[Cell]) -> list[float]:
    """CPU per call-second to that of another design in the same repeat."""
    theirs = {cell["repeat"]: cell["cluster_cpu"] for cell in others}
    return [cell["cluster_cpu"] / theirs[cell["repeat"]] for cell in mine if theirs.get(cell["repeat"])]


def parts(cells: Sequence[Cell], value: Callable[[Cell, str], float]) -> str:
    """One number for each component."""
    names = [part for part in PARTS if part in cells[0]["cpu"]]
    return " / ".join(f"{statistics.median([value(cell, name) for cell in cells]):.2f}" for name in names)


def cost(cells: Sequence[Cell], cores: int) -> str:
    """CPU, and its ratio to the plain bridge and to the lower bound."""
    by = groups(cells)
    heads = ["load", "calls", "design", "CPU ms per call-second", "edge / worker / redis", f"× {PLAIN}", f"× {BOUND}"]
    heads += ["cores busy, bridge", "load / agents", "remarks"]
    rows = []
    for (load, calls, design), found in by.items():
        rows.append(
            [
                load,
                str(calls),
                design,
                spread(cell["cluster_cpu"] for cell in found),
                parts(found, lambda c, part: c["cpu"][part]),
                spread(ratios(found, by.get((load, calls, PLAIN), []))),
                spread(ratios(found, by.get((load, calls, BOUND), []))),
                f"{median(found, bridge_cores):.2f}",
                " / ".join(f"{statistics.median([c['busy'][part] for c in found]):.2f}" for part in ("load", "agents")),
                "; ".join(remarks(found, cores)),
            ]
        )
    return markdown(heads, rows)


def bridge_cores(cell: Cell) -> float:
    """Cores that the bridge kept busy."""
    cores: float = sum(share for part, share in cell["busy"].items() if part in PARTS)
    return cores


def remarks(cells: Sequence[Cell], cores: int) -> list[str]:
    """What makes a row's figures worth less."""
    found = []
    if median(cells, lambda c: max(c["busy"]["load"], c["busy"]["agents"])) >= BUSY:
        found.append("load or agents may be the bottleneck")
    if median(cells, lambda c: sum(c["busy"].values())) >= 0.95 * cores:
        found.append("machine full")
    if any(cell["carried"] is not None and cell["carried"] < CARRIED for cell in cells):
        found.append("did not carry the load")
    return found


def delay(cells: Sequence[Cell]) -> str:
    """How long audio and set-ups take."""
    heads = ["load", "calls", "design", "heard p50 ms", "p99 ms", "max ms", "up p50 ms", "p99 ms", "max ms"]
    heads += ["set-up p50 ms", "p99 ms", "lost", "load late, ms"]
    rows = []
    for (load, calls, design), found in groups(cells).items():
        row = [load, str(calls), design]
        for what in ("heard", "up"):
            for figure in ("p50", "p99", "max"):
                row.append(spread(c[what][figure] for c in found if figure in c[what]))
        row += [spread((c["setup"][figure] for c in found), 1) for figure in ("p50", "p99")]
        row += [str(sum(c["lost"] for c in found)), f"{max(c['late_ms'] for c in found):.1f}"]
        rows.append(row)
    return markdown(heads, rows)


def memory(cells: Sequence[Cell]) -> str:
    """Resident memory, and what Redis does."""
    heads = ["load", "calls", "design", "RSS at rest MiB", "RSS per call MiB", "by component", "XADD/s"]
    heads += ["Redis commands/s", "Redis KiB/s in", "KiB/s out", "Redis KiB per call"]
    rows = []
    for (load, calls, design), found in groups(cells).items():
        row = [load, str(calls), design]
        row.append(parts(found, lambda c, part: c["rest_mib"][part]))
        row.append(spread(rss_per_call(c) for c in found))
        row.append(parts(found, grown))
        if found[0]["redis"]:
            row += [spread((c["redis"][name] for c in found), 0) for name in ("xadd", "commands")]
            row += [spread((c["redis"][name] / 1024 for c in found), 1) for name in ("bytes_in", "bytes_out")]
            row.append(spread((redis_memory(c) * 1024 for c in found), 1))
        else:
            row += ["–"] * 5
        rows.append(row)
    return markdown(heads, rows)


def grown(cell: Cell, part: str) -> float:
    """MiB that a component holds more than at rest, per call."""
    more: float = (cell["rss_mib"][part] - cell["rest_mib"][part]) / cell["calls"]
    return more


def rss_per_call(cell: Cell) -> float:
    """Of edge and worker together (Redis counts its own memory); MiB."""
    return sum(grown(cell, part) for part in cell["rss_mib"] if part != "redis")


def redis_memory(cell: Cell) -> float:
    """MiB that Redis holds more than at rest, per call."""
    more: float = (cell["redis"]["memory_mib"] - cell["redis"]["rest_memory_mib"]) / cell["calls"]
    return more


def capacity(cells: Sequence[Cell]) -> str:
    """Calls per core, at the largest number of calls whose p99 stays within `P99_MS`."""
    heads = ["load", "design", "calls", "heard p99 ms", "calls per core"]
    best: dict[tuple[str, str], list[str]] = {}
    for (load, calls, design), found in sorted(groups(cells).items(), key=lambda item: item[0][1]):
        p99 = [c["heard"]["p99"] for c in found if "p99" in c["heard"]]
        if p99 and statistics.median(p99) <= P99_MS:
            per_core = spread((1000 / c["cluster_cpu"] for c in found), 0)
            best[load, design] = [load, design, str(calls), spread(p99), per_core]
        else:
            best.setdefault((load, design), [load, design, "none", spread(p99), "–"])
    return markdown(heads, (best[key] for key in sorted(best, key=lambda key: key[0])))


def validity(cells: Sequence[Cell]) -> list[str]:
    """Whether the plain bridge is as quick as one should be."""
    by = groups(cells)
    found = []
    for (load, calls, design), mine in by.items():
        if design == PLAIN and (bound := by.get((load, calls, BOUND))):
            found.append(f"- {load}, {calls} calls: {PLAIN} / {BOUND} = {spread(ratios(mine, bound))}")
    return found


def costs(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """What `deploy/sizing.py` computes with: the product under `talk`, at the most calls within `P99_MS`."""
    fit = [
        (calls, found)
        for (load, calls, design), found in groups(cells).items()
        if load == "talk"
        and design == "product"
        and statistics.median(c["heard"].get("p99", float("inf")) for c in found) <= P99_MS
    ]
    if not fit:
        return None
    calls, found = max(fit, key=lambda item: item[0])
    return {
        "calls_measured": calls,
        "edge_cpu_ms": round(median(found, lambda c: c["cpu"]["edge"]), 4),
        "worker_cpu_ms": round(median(found, lambda c: c["cpu"]["worker"]), 4),
        "redis_cpu_ms": round(median(found, lambda c: c["cpu"]["redis"]), 4),
        "redis_in_bytes": round(median(found, lambda c: c["redis"]["bytes_in"]) / calls, 1),
        "redis_out_bytes": round(median(found, lambda c: c["redis"]["bytes_out"]) / calls, 1),
        "redis_memory_kib": round(max(0.0, median(found, redis_memory)) * 1024, 2),
        "edge_rss_mib": round(max(0.0, median(found, lambda c: grown(c, "edge"))), 4),
        "worker_rss_mib": round(max(0.0, median(found, lambda c: grown(c, "worker"))), 4),
        "edge_rest_mib": round(median(found, lambda c: c["rest_mib"]["edge"]), 1),
        "worker_rest_mib": round(median(found, lambda c: c["rest_mib"]["worker"]), 1),
    }
