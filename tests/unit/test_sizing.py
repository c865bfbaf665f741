"""The sizing script: what it makes of measured costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "sizing.py"


def load() -> ModuleType:
    """The script as a module; it lies in no package."""
    spec = importlib.util.spec_from_file_location("sizing", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sizing = load()

COSTS: dict[str, Any] = {
    "calls_measured": 100,
    "edge_cpu_ms": 1.0,
    "worker_cpu_ms": 2.0,
    "redis_cpu_ms": 0.6,
    "redis_in_bytes": 10_000,
    "redis_out_bytes": 20_000,
    "redis_memory_kib": 50,
    "edge_rss_mib": 0.1,
    "worker_rss_mib": 0.2,
    "edge_rest_mib": 80,
    "worker_rest_mib": 90,
}


def costs(**changed: float) -> Any:
    return sizing.Costs.of({**COSTS, **changed})


def test_pods_are_as_many_as_their_cpu_needs_and_one_of_each_role_is_spare() -> None:
    found = sizing.size(1000, costs(), sizing.Room(pod_cores=0.5))
    assert (found.calls_per_edge, found.calls_per_worker) == (500, 250)
    assert (found.edges, found.workers) == (2 + 1, 4 + 1)


def test_a_pod_takes_no_more_calls_than_fit_into_its_memory() -> None:
    found = sizing.size(100, costs(worker_rss_mib=10), sizing.Room(pod_memory_mib=190))
    assert found.calls_per_worker == 10


@pytest.mark.parametrize(("calls", "shards"), [(1000, 1), (1001, 3), (3000, 3), (3001, 4)])
def test_redis_becomes_a_cluster_of_at_least_three_at_the_first_call_beyond_one(calls: int, shards: int) -> None:
    found = sizing.size(calls, costs(edge_cpu_ms=0.01, worker_cpu_ms=0.01), sizing.Room(redis_cores=0.6))
    assert (found.shards, found.limit) == (shards, "CPU")


def test_a_redis_can_be_filled_by_its_network_with_what_its_replica_is_sent() -> None:
    # 20,000 bytes out, and the 10,000 that come in once more for the replica: 0.24 Mbit/s of each call
    room = sizing.Room(redis_gbit=0.24)
    assert sizing.limits(costs(redis_cpu_ms=0.01), room)["network"] == pytest.approx(1000)
    assert sizing.size(1000, costs(redis_cpu_ms=0.01), room).shards == 1
    found = sizing.size(1100, costs(redis_cpu_ms=0.01), room)
    assert (found.shards, found.limit) == (3, "network")


def test_a_redis_can_be_filled_by_its_memory() -> None:
    found = sizing.size(1000, costs(redis_memory_kib=10 * 1024), sizing.Room(redis_memory_gib=2))
    assert (found.shards, found.limit) == (5, "memory")


@pytest.mark.parametrize("calls", [1, 7, 100, 1000, 10_000, 100_000, 1_000_000])
def test_every_call_has_a_place_and_no_fleet_has_more_than_100_pods(calls: int) -> None:
    found = sizing.size(calls, costs(), sizing.Room())
    assert (found.edges - found.fleets) * found.calls_per_edge >= calls
    assert (found.workers - found.fleets) * found.calls_per_worker >= calls
    assert (found.edges + found.workers) / found.fleets <= 100
    fewer = found.fleets - 1
    if fewer:
        part = math.ceil(calls / fewer)
        assert math.ceil(part / found.calls_per_edge) + math.ceil(part / found.calls_per_worker) + 2 > 100


def test_each_fleet_has_a_redis_of_its_own_for_its_part_of_the_calls() -> None:
    found = sizing.size(100_000, costs(), sizing.Room())
    part = math.ceil(100_000 / found.fleets)
    assert found.fleets > 1
    assert found.shards == sizing.size(part, costs(), sizing.Room()).shards


def test_network_and_cores_are_in_proportion_to_calls() -> None:
    found = sizing.size(1000, costs(), sizing.Room())
    assert found.redis_in_mbit == pytest.approx(80)
    assert found.redis_out_mbit == pytest.approx(160)
    assert found.cores == pytest.approx(3.6)
    assert found.callers_mbit == pytest.approx(1000 * sizing.VAIC_BYTES * 8 / 1e6)


def test_a_figure_that_is_missing_or_no_number_is_named() -> None:
    for name in (field.name for field in dataclasses.fields(sizing.Costs)):
        without = {key: value for key, value in COSTS.items() if key != name}
        for wrong in (without, {**COSTS, name: "1"}, {**COSTS, name: -1}, {**COSTS, name: math.nan}):
            with pytest.raises(sizing.BadCosts, match=name):
                sizing.Costs.of(wrong)


def test_a_pod_that_takes_no_call_is_said_and_not_divided_by() -> None:
    with pytest.raises(sizing.BadCosts, match="one worker takes no call"):
        sizing.size(10, costs(worker_rest_mib=600), sizing.Room(pod_memory_mib=512))


def test_the_command_reads_what_the_benchmark_writes_and_prints_a_row_for_each_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"cells": [], "costs": COSTS}))
    assert sizing.main([str(file)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["100", "1,000", "10,000", "100,000"]
    assert len({row.count("|") for row in rows}) == 1
    assert "| one |" in rows[2] and "| Cluster, " in rows[4]


def test_the_command_says_what_is_wrong_with_the_file_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    for text, said in (("{", "results.json"), (json.dumps({"costs": None}), "make bench"), ("{}", "edge_cpu_ms")):
        file.write_text(text)
        assert sizing.main([str(file)]) == 1
        assert said in capsys.readouterr().err


def test_of_a_file_that_is_not_there_the_command_says_what_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "results.json"
    assert sizing.main([str(missing)]) == 2
    assert capsys.readouterr().err == f"sizing: {missing} is not there: 'make bench' writes it (about an hour)\n"
