"""What grows with pods and calls: cost over E × W, a burst of set-ups, the takeover of many calls at once."""

from __future__ import annotations

import functools
import json
import sys
import time

import redis
import stamps
import table
from cell import agents, callers, measure
from designs import Design, Process, product

FRAMES = {"talk": 6.25 + 5, "echo": 50 + 50}
"""Of audio, per second and call, up and down."""

POLL_SECONDS = 0.005
OWNED_SECONDS = 30.0
HEARD_SECONDS = 3.0
"""How long calls are listened to after the last one has an owner."""

SENT_SECONDS = 0.1
"""What the worker had passed on before it was killed has been heard by then."""


def pods(calls: int, seconds: float, repeats: int) -> tuple[list[str], list[list[str]]]:
    """The same load on one, two and four edges and workers, by turns."""
    sizes = [(1, 1), (2, 2), (4, 4)]
    cells: list[table.Cell] = []
    for load in ("talk", "echo"):
        for repeat in range(repeats):
            for edges, workers in sizes:
                name = f"{edges} × {workers}"
                print(f"{load} {calls} {repeat + 1}/{repeats} {name}", file=sys.stderr, flush=True)
                make = functools.partial(product, edges=edges, workers=workers)
                cell = measure(name, make, load, calls, seconds)
                cell.repeat = repeat
                cells.append(cell.json())
    heads = ["load", "calls", "edges × workers", "CPU ms per call-second", "edge / worker / redis", "× 1 × 1"]
    heads += ["XADD/s", "audio frames per XADD", "heard p50 ms", "p99 ms", "lost"]
    by = table.groups(cells)
    rows = []
    for (load, n, name), found in by.items():
        xadds = table.median(found, lambda c: c["redis"]["xadd"])
        rows.append(
            [
                load,
                str(n),
                name,
                table.spread(c["cluster_cpu"] for c in found),
                table.parts(found, lambda c, part: c["cpu"][part]),
                table.spread(table.ratios(found, by[load, n, "1 × 1"])),
                f"{xadds:.0f}",
                f"{n * FRAMES[load] / xadds:.1f}" if xadds else "–",
                *(table.spread(c["heard"][figure] for c in found if figure in c["heard"]) for figure in ("p50", "p99")),
                str(sum(c["lost"] for c in found)),
            ]
        )
    return heads, rows


def burst(calls: int, repeats: int) -> tuple[list[str], list[list[str]]]:
    """So many set-ups within a second, each begun on time whatever the others do."""
    heads = ["repeat", "set-ups in 1 s", "p50 ms", "p99 ms", "max ms", "all accepted after ms", "not accepted"]
    rows = []
    for repeat in range(repeats):
        with agents("talk") as (_, agent_url), product(agent_url) as design:
            with callers(design, "talk", 1):  # what is loaded at a first call is not what is measured
                pass
            with callers(design, "talk", calls, per_second=calls) as (_, setup):
                figures = [f"{setup[figure]:.1f}" for figure in ("p50", "p99", "max")]
                rows.append(
                    [str(repeat + 1), str(calls), *figures, f"{setup['all_s'] * 1000:.0f}", str(setup["failed"])]
                )
    return heads, rows


def takeover(calls: int, repeats: int) -> tuple[list[str], list[list[str]]]:
    """All calls are one worker's; it is killed, and another one is there."""
    heads = ["repeat", "calls taken over", "first owned ms", "p50 ms", "all owned ms", "heard again p50 ms", "last ms"]
    heads += ["not owned", "not heard again", "dropped"]
    rows = []
    for repeat in range(repeats):
        with agents("echo") as (_, agent_url), product(agent_url) as design:
            rows.append([str(repeat + 1), *_takeover(design, calls)])
    return heads, rows


def _takeover(design: Design, calls: int) -> list[str]:
    worker = next(part for part in design.parts if part.name == "worker")
    with callers(design, "echo", calls) as (caller, _):
        assert design.add is not None
        design.add("worker")
        time.sleep(1.0)  # the two workers have seen each other's heart beat
        caller.tell("begin")
        worker.kill()
        killed = stamps.now()
        owned = owners(design, killed)
        time.sleep(HEARD_SECONDS)
        again = heard_again(caller, killed)
        caller.tell("end")
        still = json.loads(caller.line())["open"]
    ms = stamps.summary(owned) if owned else {"p50": float("nan"), "max": float("nan")}
    heard = stamps.summary(again.values()) if again else {"p50": float("nan"), "max": float("nan")}
    first = min(owned, default=float("nan"))
    figures = [first, ms["p50"], ms["max"], heard["p50"], heard["max"]]
    missing = [calls - len(owned), calls - len(again), calls - still]
    return [str(len(owned)), *(f"{figure:.0f}" for figure in figures), *map(str, missing)]


def owners(design: Design, killed: float) -> list[float]:
    """Milliseconds from the kill until each live call had another owner than before."""
    with redis.Redis(port=design.redis_port) as client:

        def look(cids: list[bytes]) -> list[bytes]:
            pipe = client.pipeline(transaction=False)
            for cid in cids:
                pipe.hget(b"call:{" + cid + b"}", "we")
            return list(pipe.execute())

        waiting = client.zrange("{fleet}:calls", 0, -1)
        before = dict(zip(waiting, look(waiting), strict=True))
        found: list[float] = []
        while waiting and stamps.now() - killed < OWNED_SECONDS:
            time.sleep(POLL_SECONDS)
            epochs = look(waiting)
            ms = (stamps.now() - killed) * 1000
            left = [cid for cid, epoch in zip(waiting, epochs, strict=True) if epoch == before[cid]]
            found += [ms] * (len(waiting) - len(left))
            waiting = left
    return found


def heard_again(caller: Process, killed: float) -> dict[str, float]:
    """Call → milliseconds from the kill until its audio came back, of those that heard something afterwards."""
    caller.tell("gaps")
    gaps = json.loads(caller.line())
    return {cid: (end - killed) * 1000 for cid, (begin, end) in gaps.items() if begin <= killed + SENT_SECONDS < end}
