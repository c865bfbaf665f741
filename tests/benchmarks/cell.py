"""One cell of the table: a design under a load of so many calls, measured for some seconds."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import redis
from designs import HERE, Design, Process
from measure import Meter, rss_mib

WARM_SECONDS = 2.0
BYTES_PER_SECOND = 8000


@dataclass
class Cell:
    """What was measured.

    Attributes:
        cpu: CPU milliseconds per call and second of call, by component; `load` and `agents` are not the bridge's.
        busy: the same as part of one core.
        rest_mib: resident memory before the first call, by component; `rss_mib`: at the end of the measurement.
        heard: `echo`: caller → bridge → agent → bridge → caller; `talk`: agent → caller, each answer's first piece. ms.
        up: caller → agent, each frame, ms.
        setup: `session.initiate` to `session.accepted`, ms.
        lost: pieces of audio that never came back.
        carried: `echo`: the part of the audio sent that came back while it was measured.
        late_ms: the longest that the load itself was late.
        chunks_per_second: messages with audio to the callers.
        redis: per second: XADDs, commands, bytes in and out; `memory_mib` at the end, `rest_memory_mib` before.
    """

    design: str
    load: str
    calls: int
    seconds: float
    cpu: dict[str, float]
    busy: dict[str, float]
    rest_mib: dict[str, float]
    rss_mib: dict[str, float]
    heard: dict[str, Any]
    up: dict[str, Any]
    setup: dict[str, Any]
    lost: int
    carried: float | None
    late_ms: float
    chunks_per_second: float
    redis: dict[str, float] = field(default_factory=dict)
    repeat: int = 0

    @property
    def cluster_cpu(self) -> float:
        """CPU milliseconds per call-second of the whole bridge."""
        return sum(ms for name, ms in self.cpu.items() if name not in ("load", "agents"))

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "cluster_cpu": round(self.cluster_cpu, 3)}


@contextlib.contextmanager
def agents(load: str) -> Any:
    """The agents of a load; gives the process and its address."""
    process = Process("agents", [sys.executable, str(HERE / "agents.py"), "--load", load])
    try:
        yield process, f"ws://127.0.0.1:{process.ready()}"
    finally:
        process.end_input(2)
        process.stop()


@contextlib.contextmanager
def callers(design: Design, load: str, calls: int, per_second: float = 0.0) -> Any:
    """Calls at a design; gives the process and the times of their set-up."""
    command = [sys.executable, str(HERE / "callers.py"), "--calls", str(calls), "--load", load]
    process = Process("load", [*command, "--per-second", str(per_second), *design.urls])
    try:
        yield process, json.loads(process.ready())
    finally:
        process.end_input(15)
        process.stop()


def measure(name: str, make: Any, load: str, calls: int, seconds: float) -> Cell:
    """Run one cell. `make(agent_url)` is a context manager that gives a running `Design`."""
    with agents(load) as (agent, agent_url):
        context: AbstractContextManager[Design] = make(agent_url)
        with contextlib.ExitStack() as stack:
            design = stack.enter_context(context)
            rest, rest_memory = _resident(design), _redis_memory(design)
            caller, setup = stack.enter_context(callers(design, load, calls))
            time.sleep(WARM_SECONDS)
            processes = [*design.parts, caller, agent]
            meter = Meter([(process.name, process.pid) for process in processes])
            before = _redis(design)
            meter.begin()
            caller.tell("begin")
            agent.tell("begin")
            time.sleep(seconds)
            took, used = meter.end()
            caller.tell("end")
            agent.tell("end")
            heard, up = json.loads(caller.line()), json.loads(agent.line())
            after, memory, rss = _redis(design), _redis_memory(design), _resident(design)
            for process in processes:
                process.expect_running()
    return Cell(
        design=name,
        load=load,
        calls=calls,
        seconds=round(took, 2),
        cpu={part: round(ms / took / calls, 3) for part, ms in used.items()},
        busy={part: round(ms / took / 1000, 3) for part, ms in used.items()},
        rest_mib=rest,
        rss_mib=rss,
        heard=heard["heard"],
        up=up["up"],
        setup=setup,
        lost=heard["lost"],
        carried=round(heard["bytes"] / (took * calls * BYTES_PER_SECOND), 3) if load == "echo" else None,
        late_ms=heard["late_ms"],
        chunks_per_second=round(heard["chunks"] / took, 1),
        redis={
            **{key: round((after[key] - before[key]) / took, 1) for key in after},
            **({"memory_mib": memory, "rest_memory_mib": rest_memory} if design.redis_port else {}),
        },
    )


def _resident(design: Design) -> dict[str, float]:
    """Resident memory by component, MiB."""
    found: dict[str, float] = {}
    for process in design.parts:
        found[process.name] = round(found.get(process.name, 0.0) + rss_mib(process.pid), 2)
    return found


def _redis_memory(design: Design) -> float:
    """What its Redis holds, MiB."""
    if not design.redis_port:
        return 0.0
    with redis.Redis(port=design.redis_port) as client:
        return round(client.info("memory")["used_memory"] / 2**20, 2)


def _redis(design: Design) -> dict[str, float]:
    """What its Redis has done so far."""
    if not design.redis_port:
        return {}
    with redis.Redis(port=design.redis_port) as client:
        calls = client.info("commandstats")
        stats = client.info("stats")
    return {
        "xadd": calls.get("cmdstat_xadd", {}).get("calls", 0),
        "commands": stats["total_commands_processed"],
        "bytes_in": stats["total_net_input_bytes"],
        "bytes_out": stats["total_net_output_bytes"],
    }
