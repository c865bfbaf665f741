"""Where an experiment notes what it measured: standard output, and the file of `make chaos`."""

from __future__ import annotations

import json
import os
from pathlib import Path


def note(experiment: str, promise: str, **figures: float) -> None:
    """One line of JSON: the experiment and its promise in words, and its figures; times are milliseconds."""
    line = json.dumps({"experiment": experiment, "promise": promise, **figures})
    print(line)
    if results := os.environ.get("CHAOS_RESULTS"):
        with Path(results).open("a") as file:
            file.write(line + "\n")
