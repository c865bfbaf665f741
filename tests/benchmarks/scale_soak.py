"""Memory over a long time: calls come and go in rounds, and what each process holds is looked at after each."""

from __future__ import annotations

import statistics
import sys
import time

from cell import agents, callers
from designs import product
from measure import rss_mib

TALK_SECONDS = 10.0
WARM = 0.2
"""This part of the rounds comes before the first figure: modules, pools and caches fill."""

KEPT_SECONDS = 60
"""Transcripts of ended calls are kept for so long here, so that Redis comes to rest too."""


def soak(minutes: float, calls: int) -> tuple[list[str], list[list[str]]]:
    """Rounds of so many calls for so many minutes; growth from the first figures after the warm part to the last."""
    found: dict[str, list[float]] = {}
    rounds = 0
    with (
        agents("talk") as (_, agent_url),
        product(agent_url, variables={"BRIDGE_TRANSCRIPT_TTL": str(KEPT_SECONDS)}) as design,
    ):
        until = time.monotonic() + minutes * 60
        while time.monotonic() < until:
            with callers(design, "talk", calls):
                time.sleep(TALK_SECONDS)
                for part in design.parts:
                    found.setdefault(part.name, []).append(rss_mib(part.pid))
            rounds += 1
            figures = ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items())
            print(f"soak: {rounds} rounds, MiB: {figures}", file=sys.stderr, flush=True)
    heads = ["process", "rounds", "calls in all", "MiB after warming", "MiB at the end", "growth %"]
    rows = []
    for name, values in found.items():
        settled = values[int(len(values) * WARM) :]
        tenth = max(1, len(settled) // 10)
        first, last = (statistics.median(part) for part in (settled[:tenth], settled[-tenth:]))
        growth = f"{(last / first - 1) * 100:+.1f}"
        rows.append([name, str(rounds), str(rounds * calls), f"{first:.1f}", f"{last:.1f}", growth])
    return heads, rows
