"""Where an experiment notes what it measured: standard output, and the file of `make chaos`."""

from __future__ import annotations

import json
import os
from pathlib import Path


def note(experiment: str, **figures: float) -> None:
    """One line of JSON: the experiment in words, and its figures."""
    line = json.dumps({"experiment": experiment, **figures})
    print(line)
    if results := os.environ.get("CHAOS_RESULTS"):
        with Path(results).open("a") as file:
            file.write(line + "\n")
