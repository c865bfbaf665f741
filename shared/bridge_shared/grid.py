"""Timers of many calls, so that they fire together: one wake-up of the loop serves all that is due in it, and what they
send shares entries and writes."""

from __future__ import annotations

import math

GRID_SECONDS = 0.01
"""No call notices when a chunk, a report or an acknowledgement goes so much later: VAIC has the lead in hand."""

GRAIN_SECONDS = 0.0005
"""uvloop rounds to milliseconds, and a timer that fires early would fire again at once."""


def on_grid(moment: float) -> float:
    """The next moment, at or behind this one, at which the timers of all calls of a loop fire."""
    return math.ceil(moment / GRID_SECONDS) * GRID_SECONDS + GRAIN_SECONDS
