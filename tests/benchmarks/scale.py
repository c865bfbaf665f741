"""`make bench-scale`: what grows with pods, with calls at once, and with what is kept. Each part prints one table.

python tests/benchmarks/scale.py [--parts pods burst takeover transcripts ended soak] [--json FILE]

With `--json` the tables go into that file beside what `run.py` wrote there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import scale_pods
import scale_records
import scale_soak
import table
from about import about, store

Rows = tuple[list[str], list[list[str]]]

PARTS: dict[str, tuple[str, str, Callable[[argparse.Namespace], Rows]]] = {
    "pods": (
        "More edges and workers",
        "The same load on more pods: each tick's frames spread over more inboxes, so batches get smaller.",
        lambda given: scale_pods.pods(given.calls, given.seconds, given.repeats),
    ),
    "burst": (
        "A burst of set-ups",
        "From `session.initiate` to `session.accepted`, one edge and one worker, agents that answer at once.",
        lambda given: scale_pods.burst(given.burst, given.repeats),
    ),
    "takeover": (
        "Takeover of many calls at once",
        "Milliseconds from the kill of the worker that owns all calls: until Redis names another owner, and until a "
        "call under `echo` hears its audio again. Another worker is idle until then.",
        lambda given: scale_pods.takeover(given.taken, given.repeats),
    ),
    "transcripts": (
        "Long transcripts",
        "Append and read through the library against a Redis of their own; then the owner of a call with such a "
        "transcript is killed. Milliseconds after the kill until another worker has claimed the call, and from then "
        "until audio comes back.",
        lambda given: scale_records.transcripts(given.lines),
    ),
    "ended": (
        "Ended calls in Redis",
        "Each has ten lines. Owed ones are due in an hour, as while a CRM is away.",
        lambda given: scale_records.ended(given.ended),
    ),
    "soak": (
        "Memory over a long time",
        "Calls come and go in rounds; resident memory in the middle of each. Growth is from the first tenth of the "
        "rounds after a fifth for warming to the last tenth.",
        lambda given: scale_soak.soak(given.minutes, given.soaked),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=[name for name in PARTS if name != "soak"], choices=list(PARTS))
    parser.add_argument("--calls", type=int, default=100, help="of `pods`")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of `pods`")
    parser.add_argument("--repeats", type=int, default=5, help="of `pods`, `burst`, `takeover`")
    parser.add_argument("--burst", type=int, default=200, help="set-ups in one second")
    parser.add_argument("--taken", type=int, default=100, help="calls taken over at once")
    parser.add_argument("--lines", type=int, default=10_000, help="of the longest transcript")
    parser.add_argument("--ended", type=int, default=100_000, help="ended calls")
    parser.add_argument("--minutes", type=float, default=30.0, help="of `soak`")
    parser.add_argument("--soaked", type=int, default=50, help="calls of each round of `soak`")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    for name in given.parts:
        title, text, measure = PARTS[name]
        where = about("bench-scale", sys.argv[1:])
        heads, rows = measure(given)
        print(f"## {title}\n\n{text}\n\n{table.markdown(heads, rows)}\n", flush=True)
        if given.json is not None:
            part = {"title": title, "text": text, "about": where, "heads": heads, "rows": rows}
            store(given.json, {"scale": {name: part}})


if __name__ == "__main__":
    main()
