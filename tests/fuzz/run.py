"""Fuzz every target with so many inputs, and write what happened as a table.

    python tests/fuzz/run.py --inputs 1000000 --out tests/fuzz/RESULTS.md

The count is of inputs really fed, over all targets. A failure prints what hypothesis made of it, the smallest sequence
that still fails, and exits with 1; add that to `tests/fuzz/corpus` when it is mended.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from targets import TARGETS, Target, kept

IN_A_ROW = 40
EXAMPLES = 500
MEASURE_EVERY = 200
LIFE = 20_000
SEEDS = 1_000_000


Figures = tuple[int, int, float, int, int]


@dataclass
class Row:
    """What one target went through; seconds are summed over the processes."""

    target: Target
    fed: int = 0
    sequences: int = 0
    seconds: float = 0.0
    most: int = 0
    longest: int = 0

    @property
    def figures(self) -> Figures:
        """What passes between processes: a target cannot."""
        return self.fed, self.sequences, self.seconds, self.most, self.longest

    def add(self, figures: Figures) -> None:
        """Add what another process measured."""
        fed, sequences, seconds, most, longest = figures
        self.fed, self.sequences, self.seconds = self.fed + fed, self.sequences + sequences, self.seconds + seconds
        self.most, self.longest = max(self.most, most), max(self.longest, longest)


def part(number: int, inputs: int, first_seed: int) -> Figures:
    """Fuzz the target of that number, in a process of its own."""
    return fuzz(TARGETS[number], inputs, first_seed).figures


def fuzz(target: Target, inputs: int, first_seed: int) -> Row:
    """Feed at least so many inputs: every sequence to a new machine, and all of them to one that lives on.

    Raises:
        Exception: the machine did wrong.
    """
    row, began, round_ = Row(target), time.perf_counter(), 0
    old, age = target.machine(), 0
    while row.fed < inputs:

        @seed(first_seed + round_)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(target.inputs, min_size=1, max_size=IN_A_ROW))
        def sequence(datas: list[bytes]) -> None:
            nonlocal old, age
            fresh = target.machine()
            row.sequences += 1
            for data in datas:
                fresh.feed(data)
                old.feed(data)
                age += 1
                row.fed += 1
                row.longest = max(row.longest, age)
                if age % MEASURE_EVERY == 0:
                    row.most = max(row.most, kept(old.machine))
                    assert row.most <= target.most, f"it keeps {row.most} bytes after {age} inputs"
                if old.over or age >= LIFE:
                    row.most = max(row.most, kept(old.machine))
                    old, age = target.machine(), 0

        sequence()
        round_ += 1
    row.seconds = time.perf_counter() - began
    return row


def table(rows: list[Row], first_seed: int) -> str:
    """The rows for people."""
    lines = [
        "# Fuzzing",
        "",
        "Written by `make fuzz`. Each input goes to two machines: one that is new with each sequence, and one that",
        "lives until it ends by its own rules or has had 20,000. Most kept: the most bytes that such an old one held.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.machine()}, seed {first_seed}.",
        "",
        "| target | inputs | sequences | inputs/s, one process | oldest machine | most kept, bytes | bound | crashes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.target.what} | {row.fed:,} | {row.sequences:,} | {row.fed / row.seconds:,.0f} | {row.longest:,} "
            f"| {row.most:,} | {row.target.most:,} | 0 |"
        )
    fed, seconds = sum(row.fed for row in rows), sum(row.seconds for row in rows)
    lines.append(f"| all | {fed:,} | {sum(row.sequences for row in rows):,} | {fed / seconds:,.0f} | | | | 0 |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--out", type=Path, help="where the table goes, beside the terminal")
    given_ = parser.parse_args()
    print(f"seed {given_.seed}", flush=True)
    parts = os.cpu_count() or 1
    rows = [Row(target) for target in TARGETS]
    with ProcessPoolExecutor(parts) as pool:
        each = -(-given_.inputs // len(TARGETS) // parts)
        running = {
            pool.submit(part, number, each, given_.seed + at * SEEDS): number
            for at in range(parts)
            for number in range(len(TARGETS))
        }
        for done in as_completed(running):
            row = rows[running[done]]
            row.add(done.result())
            print(f"{row.target.name}: {row.fed:,} inputs, most kept {row.most:,} bytes", flush=True)
    text = table(rows, given_.seed)
    if given_.out is not None:
        given_.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
