"""Whether the fleet has room for one more call: arithmetic on what its workers say about themselves.

Pure. What a worker has not said, or not in a way that can be counted, never keeps a call out: Deepgram's own 429
and the workers' own capacity stand behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WORKERS_FULL = "All workers are at their capacity (BRIDGE_WORKER_CALLS); start more workers or try again later"
AGENT_LIMIT = "The limit of agent connections (BRIDGE_AGENT_LIMIT) is reached; try again later"


@dataclass(frozen=True, slots=True)
class Load:
    """A live worker, as it announces itself.

    Attributes:
        calls, capacity: what it has, and what it takes of new calls.
        agents: agent connections that it has or is about to have.
        limit: its BRIDGE_AGENT_LIMIT; None if it has none.
        takes: the bridges that it takes new calls for; none while it drains.
    """

    pod: str
    calls: int
    capacity: int
    agents: int
    limit: int | None
    takes: frozenset[str]


def load(pod: str, info: Mapping[str, Any]) -> Load | None:
    """What a worker announces; None if it cannot be understood."""
    calls, capacity, agents, limit = (info.get(name) for name in ("load", "capacity", "agents", "agent_limit"))
    if not isinstance(calls, int) or not isinstance(capacity, int) or not isinstance(agents, int):
        return None
    bridges = info.get("bridges")
    named = bridges if isinstance(bridges, list) and not info.get("draining") else ()
    takes = frozenset(name for name in named if isinstance(name, str))
    return Load(pod, calls, capacity, agents, limit if isinstance(limit, int) else None, takes)


def elsewhere(edges: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of these edges, by what it announces, takes new calls; one that cannot be understood does not."""
    for info in edges:
        calls, capacity = info.get("load"), info.get("capacity")
        if isinstance(calls, int) and isinstance(capacity, int) and calls < capacity and not info.get("draining"):
            return True
    return False


def agents_left(limit: int, agents: Mapping[str, int], *, takeover: bool = False) -> int:
    """How many agent connections may be opened under the fleet's limit.

    New calls leave a reserve: as many connections as the largest worker has, so that the others can take its calls
    over. A worker that is alone has nobody to leave them to, and a takeover may use the reserve.

    Args:
        agents: live worker → its agent connections.
    """
    reserve = 0 if takeover or len(agents) < 2 else max(agents.values())
    return limit - reserve - sum(agents.values())


def refusal(workers: Iterable[Load], bridge: str, waiting: int) -> str | None:
    """Why a new call cannot be taken now, for a person; None = it can, or nobody knows.

    Args:
        workers: the live ones.
        waiting: calls that have been offered and have no owner yet: they come first.
    """
    known = list(workers)
    serving = [worker for worker in known if bridge in worker.takes]
    if not serving:
        return None  # they may just be restarting
    if sum(max(0, worker.capacity - worker.calls) for worker in serving) <= waiting:
        return WORKERS_FULL
    limits = [worker.limit for worker in serving if worker.limit is not None]
    if len(limits) == len(serving) and agents_left(max(limits), {w.pod: w.agents for w in known}) <= waiting:
        return AGENT_LIMIT
    return None
