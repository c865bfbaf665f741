"""How many pods, Redis shards and how much network a number of calls needs, computed from measured costs.

    python deploy/sizing.py tests/benchmarks/results.json [--calls 100 1000 10000 100000]

The costs are those that `make bench` measures and stores as `costs`: the product under VAIC's framing, at the most
calls whose delay stays within bounds. It prints a table in Markdown. What it assumes stands below the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FLEET_PODS = 100
"""A fleet has at most so many pods (each watches all others); more calls need more fleets, with a Redis each."""

CLUSTER_PRIMARIES = 3
"""Redis Cluster has no fewer."""

REPLICAS = 1
"""For each Redis, so that one may fail; it is sent everything that is written."""

SPARE = 1
"""Pods of each role and fleet beyond what the load needs, so that one may fail."""

VAIC_BYTES = 6.25 * (1708 + 118) + 10 * (1068 + 134)
"""Per call and second, both ways together, if both sides speak all the time: base64 of 160 ms of µ-law up and of 100 ms
down, each with its JSON and frame."""

AGENT_BYTES = 2 * 8000 + 6.25 * 8 + 10 * 4
"""The same between worker and agent: bare µ-law and frames."""


class BadCosts(Exception):
    """The file does not hold costs that can be computed with."""


@dataclass(frozen=True)
class Costs:
    """What one call costs.

    Attributes:
        edge_cpu_ms, worker_cpu_ms, redis_cpu_ms: CPU milliseconds per second of call.
        redis_in_bytes, redis_out_bytes: per second of call, as Redis counts them.
        redis_memory_kib: held in Redis per live call.
        edge_rss_mib, worker_rss_mib: resident memory per call, beside what a pod without calls holds
            (`edge_rest_mib`, `worker_rest_mib`).
    """

    edge_cpu_ms: float
    worker_cpu_ms: float
    redis_cpu_ms: float
    redis_in_bytes: float
    redis_out_bytes: float
    redis_memory_kib: float
    edge_rss_mib: float
    worker_rss_mib: float
    edge_rest_mib: float
    worker_rest_mib: float

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Costs:
        """From JSON: the object itself or its member `costs`.

        Raises:
            BadCosts: a figure is missing, or is no number, or negative, or a CPU cost is zero.
        """
        given = data.get("costs", data)
        if not isinstance(given, Mapping):
            raise BadCosts(
                "`costs` is empty: no number of calls under `talk` was measured whose p99 is at most 20 ms. "
                'Run `make bench ARGS="--loads talk"`.'
            )
        found = {}
        for name in (field.name for field in fields(cls)):
            value = given.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise BadCosts(
                    f"{name} is {value!r}, but must be a number that is not negative; `make bench` writes it"
                )
            if name.endswith("_cpu_ms") and value == 0:
                raise BadCosts(f"{name} is 0, but nothing costs nothing; measure at more calls")
            found[name] = float(value)
        return cls(**found)


@dataclass(frozen=True)
class Room:
    """How much of everything may be used.

    Attributes:
        pod_cores: part of a core that an edge or worker may be busy; each has one loop that moves audio.
        pod_memory_mib: of a pod; `redis_memory_gib`: of one Redis, for live calls.
        redis_cores: part of a core that one Redis may be busy; it executes commands on one.
        redis_gbit: network of one Redis in each direction that may be used, Gbit/s.
    """

    pod_cores: float = 0.6
    pod_memory_mib: float = 512
    redis_cores: float = 0.6
    redis_memory_gib: float = 8
    redis_gbit: float = 2


@dataclass(frozen=True)
class Size:
    """What a number of calls needs.

    Attributes:
        fleets: into how many equal ones the calls are divided.
        edges, workers: pods of all fleets, the spare ones included.
        shards: Redis primaries of each fleet; 1 is a single Redis, more are a Redis Cluster. Each has `REPLICAS`.
        limit: what fills a Redis first: `CPU`, `network` or `memory`.
        calls_per_edge, calls_per_worker: what `BRIDGE_EDGE_CALLS` and `BRIDGE_WORKER_CALLS` may be set to.
    """

    calls: int
    fleets: int
    edges: int
    workers: int
    shards: int
    limit: str
    calls_per_edge: int
    calls_per_worker: int
    redis_in_mbit: float
    redis_out_mbit: float
    callers_mbit: float
    agents_mbit: float
    cores: float


def size(calls: int, costs: Costs, room: Room) -> Size:
    """What so many calls at once need."""
    per_edge = _per_pod(costs.edge_cpu_ms, costs.edge_rss_mib, costs.edge_rest_mib, room, "edge")
    per_worker = _per_pod(costs.worker_cpu_ms, costs.worker_rss_mib, costs.worker_rest_mib, room, "worker")
    for fleets in itertools.count(1):
        part = math.ceil(calls / fleets)
        edges = math.ceil(part / per_edge) + SPARE
        workers = math.ceil(part / per_worker) + SPARE
        if edges + workers <= FLEET_PODS:
            break
    demands = {name: part / most for name, most in limits(costs, room).items()}
    limit = max(demands, key=lambda name: demands[name])
    shards = 1 if demands[limit] <= 1 else max(CLUSTER_PRIMARIES, math.ceil(demands[limit]))
    return Size(
        calls=calls,
        fleets=fleets,
        edges=edges * fleets,
        workers=workers * fleets,
        shards=shards,
        limit=limit,
        calls_per_edge=per_edge,
        calls_per_worker=per_worker,
        redis_in_mbit=calls * costs.redis_in_bytes * 8 / 1e6,
        redis_out_mbit=calls * costs.redis_out_bytes * 8 / 1e6,
        callers_mbit=calls * VAIC_BYTES * 8 / 1e6,
        agents_mbit=calls * AGENT_BYTES * 8 / 1e6,
        cores=calls * (costs.edge_cpu_ms + costs.worker_cpu_ms + costs.redis_cpu_ms) / 1000,
    )


def limits(costs: Costs, room: Room) -> dict[str, float]:
    """How many calls fill one Redis, by what fills it."""
    out = costs.redis_out_bytes + REPLICAS * costs.redis_in_bytes
    return {
        "CPU": 1000 * room.redis_cores / costs.redis_cpu_ms,
        "network": room.redis_gbit * 1e9 / 8 / max(costs.redis_in_bytes, out, 1e-9),
        "memory": room.redis_memory_gib * 2**20 / max(costs.redis_memory_kib, 1e-9),
    }


def _per_pod(cpu_ms: float, rss_mib: float, rest_mib: float, room: Room, role: str) -> int:
    """Calls that one pod takes."""
    memory = (room.pod_memory_mib - rest_mib) / rss_mib if rss_mib else math.inf
    found = math.floor(min(1000 * room.pod_cores / cpu_ms, memory) + 1e-9)
    if found < 1:
        raise BadCosts(
            f"one {role} takes no call at all: {cpu_ms} ms of CPU per second and {rest_mib} + {rss_mib} MiB "
            f"do not fit into {room.pod_cores} cores and {room.pod_memory_mib} MiB"
        )
    return found


def table(sizes: Sequence[Size], costs: Costs, room: Room) -> str:
    """Markdown: a row for each number of calls, and what it rests on."""
    heads = ["calls", "fleets", "edges", "workers", "Redis of each fleet", "filled first by", "cores busy"]
    heads += ["Redis Mbit/s in / out", "callers Mbit/s", "agents Mbit/s"]
    rows = [
        [
            f"{one.calls:,}",
            f"{one.fleets:,}",
            f"{one.edges:,}",
            f"{one.workers:,}",
            "one" if one.shards == 1 else f"Cluster, {one.shards} primaries",
            one.limit,
            f"{one.cores:,.1f}",
            f"{one.redis_in_mbit:,.0f} / {one.redis_out_mbit:,.0f}",
            f"{one.callers_mbit:,.0f}",
            f"{one.agents_mbit:,.0f}",
        ]
        for one in sizes
    ]
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    by, most = min(limits(costs, room).items(), key=lambda item: item[1])
    some = sizes[0]
    notes = [
        "",
        f"- One edge takes {some.calls_per_edge:,} calls and one worker {some.calls_per_worker:,}, at "
        f"{room.pod_cores:g} of a core and {room.pod_memory_mib:g} MiB each; {SPARE} of each role and fleet is spare. "
        f"A fleet has at most {FLEET_PODS} pods, and a Redis of its own.",
        f"- One Redis is full at {most:,.0f} calls ({by}); from there on it is Redis Cluster, of at least "
        f"{CLUSTER_PRIMARIES} primaries. Each primary has {REPLICAS} replica. A Redis may use {room.redis_cores:g} of "
        f"a core, {room.redis_gbit:g} Gbit/s each way and {room.redis_memory_gib:g} GiB for live calls; transcripts "
        "that are kept come on top.",
        "- Costs are taken as proportional to calls. They were measured with one edge and one worker, whose batches "
        "are larger than those of many pods; `make bench-scale` says how much more those cost.",
        "- The network is that of µ-law with both sides speaking all the time, without TLS and TCP.",
    ]
    return "\n".join([*lines, *notes])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pods, Redis and network for a number of calls.")
    parser.add_argument("costs", type=Path, help="JSON with the costs: what `make bench` writes")
    parser.add_argument("--calls", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    for field in fields(Room):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=float, default=field.default, help=f"default {field.default:g}")
    given = parser.parse_args(arguments)
    room = Room(**{field.name: getattr(given, field.name) for field in fields(Room)})
    if min(given.calls) < 1 or min(vars(room).values()) <= 0:
        parser.error("calls and room must be above 0")
    try:
        costs = Costs.of(json.loads(given.costs.read_text()))
        print(table([size(calls, costs, room) for calls in given.calls], costs, room))
    except FileNotFoundError:
        print(f"sizing: {given.costs} is not there: 'make bench' writes it (about an hour)", file=sys.stderr)
        return 2
    except (OSError, ValueError, BadCosts) as error:
        print(f"sizing: {given.costs.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
