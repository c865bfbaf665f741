"""That the benchmarks run, and that their tables say what was measured. No figure is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(script: Path, *arguments: str, seconds: float = 20) -> str:
    """Run one of the scripts; what it printed. Each runs as a process, as `make bench` does it."""
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cell(design: str, repeat: int, cpu: float, **changed: Any) -> dict[str, Any]:
    """A cell as `run.py` stores it."""
    return {
        "design": design,
        "load": "echo",
        "calls": 100,
        "seconds": 8.0,
        "cpu": {"bridge": cpu},
        "busy": {"bridge": cpu / 10, "load": 0.2, "agents": 0.1},
        "rest_mib": {"bridge": 20.0},
        "rss_mib": {"bridge": 30.0},
        "heard": {"n": 9, "p50": 1.0, "p99": 2.0, "max": 3.0},
        "up": {"n": 9, "p50": 0.5, "p99": 1.0, "max": 2.0},
        "setup": {"n": 9, "p50": 5.0, "p99": 9.0, "max": 10.0},
        "lost": 0,
        "carried": 1.0,
        "late_ms": 0.5,
        "chunks_per_second": 5000.0,
        "redis": {},
        "repeat": repeat,
        "cluster_cpu": cpu,
        **changed,
    }


def written(tmp_path: Path, cells: list[dict[str, Any]]) -> str:
    """RESULTS.md that is made of these cells."""
    versions = {"Python": "3.11"}
    about = {"command": "make bench", "at": "", "commit": "", "cores": 2, "processor": "", "memory_gib": 1}
    about |= {"kernel": "", "load": 0.0, "versions": versions}
    file, out = tmp_path / "results.json", tmp_path / "RESULTS.md"
    file.write_text(json.dumps({"about": about, "cells": cells}))
    run(HERE / "results.py", str(file), "--out", str(out), "--no-plots")
    return out.read_text()


def test_the_relay_gives_every_frame_back_as_it_was_sent() -> None:
    assert "as it was sent" in run(HERE / "check_relay.py")


def test_ratios_are_taken_within_a_repeat_and_shown_with_their_spread(tmp_path: Path) -> None:
    cells = [cell("plain, asyncio", 0, 8.0), cell("plain, asyncio", 1, 4.0), cell("plain, asyncio", 2, 6.0)]
    cells += [cell("relay", 0, 2.0), cell("relay", 1, 2.0), cell("relay", 2, 2.0)]
    found = written(tmp_path, cells)
    assert "- echo, 100 calls: plain, asyncio / relay = 3.00 (2.00–4.00)" in found
    assert "| echo | 100 | relay | 2.00 (2.00–2.00) | 2.00 | 0.33 (0.25–0.50) |" in found


def test_memory_per_call_is_what_was_added_since_rest(tmp_path: Path) -> None:
    assert "| echo | 100 | relay | 20.00 | 0.10 | 0.10 |" in written(tmp_path, [cell("relay", 0, 2.0)])


def test_calls_per_core_count_the_most_calls_whose_p99_is_within_20_ms(tmp_path: Path) -> None:
    slow = {"n": 9, "p50": 1.0, "p99": 20.1, "max": 30.0}
    few, many = cell("relay", 0, 4.0, calls=50), cell("relay", 0, 2.0, calls=200, heard=slow)
    assert "| echo | relay | 50 | 2.00 | 250 |" in written(tmp_path, [many, few])


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"busy": {"bridge": 0.5, "load": 0.5, "agents": 0.1}}, "load or agents may be the bottleneck"),
        ({"busy": {"bridge": 1.2, "load": 0.4, "agents": 0.4}}, "machine full"),
        ({"carried": 0.97}, "did not carry the load"),
    ],
)
def test_a_row_whose_figures_say_little_about_the_bridge_is_marked(
    tmp_path: Path, changed: dict[str, Any], remark: str
) -> None:
    assert remark not in written(tmp_path, [cell("relay", 0, 2.0)])
    assert remark in written(tmp_path, [cell("relay", 0, 2.0, **changed)])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_short_run_gives_tables_and_the_costs_that_sizing_takes(tmp_path: Path) -> None:
    file, out = tmp_path / "results.json", tmp_path / "RESULTS.md"
    short = ["--repeats", "1", "--seconds", "1", "--json", str(file)]
    run(HERE / "run.py", "--calls", "3", "--loads", "talk", *short, seconds=100)
    run(HERE / "results.py", str(file), "--out", str(out), "--no-plots")
    found = out.read_text()
    for design in ("product", "plain, asyncio", "plain, uvloop", "relay"):
        assert f"| talk | 3 | {design} |" in found
    assert str(tmp_path) not in found
    if json.loads(file.read_text())["costs"] is not None:  # None: no answer in this second, or a machine too busy
        assert "| 100,000 |" in run(ROOT / "deploy" / "sizing.py", str(file))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_parts_of_bench_scale_are_stored_side_by_side_and_each_gives_a_table(tmp_path: Path) -> None:
    file, out = tmp_path / "results.json", tmp_path / "RESULTS.md"
    small = ["--burst", "3", "--taken", "2", "--lines", "1", "--ended", "100", "--repeats", "1", "--json", str(file)]
    run(HERE / "scale.py", *small, "--parts", "burst", "takeover", seconds=60)
    run(HERE / "scale.py", *small, "--parts", "transcripts", "ended", seconds=60)
    run(HERE / "results.py", str(file), "--out", str(out))
    found = out.read_text()
    for part in ("A burst", "Takeover of many", "Long transcripts", "Ended calls"):
        assert f"## {part}" in found
