"""What grows with what is kept: long transcripts, and many ended calls in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import redis
import stamps
import uvloop
from cell import agents, callers
from designs import product, redis_server
from measure import cpu_ms
from scale_pods import HEARD_SECONDS, heard_again, owners

from bridge_shared.redis import scripts
from bridge_shared.redis.calls import CallKeys, Calls, now_iso
from bridge_shared.redis.connection import Server, connect
from bridge_shared.redis.transcripts import FencedStream

APPENDED = 200
"""Lines whose cost is measured at each length."""

TIMES = 20
SENTENCE = "Your parcel left the depot this morning and will reach you between two and four o'clock. "
NEW = {"bridge": "8000", "caller": "+493012345", "bot": "load", "media_format": "raw/mulaw"}
FLEET, MONTH = "fleet", 30 * 24 * 3600


def _line(number: int) -> dict[str, str]:
    role = ("user", "assistant")[number % 2]
    return {"role": role, "content": SENTENCE, "at": now_iso(), "turn": str(number)}


# Transcripts


def transcripts(lines: int) -> tuple[list[str], list[list[str]]]:
    """Append to, read, and take over a call whose transcript has so many lines."""
    heads = ["lines", "append ms, each", "Redis CPU µs per append", "read ms", "reader's CPU ms", "Redis CPU ms"]
    heads += ["KiB in Redis", "claimed after ms", "heard after the claim ms"]
    rows = []
    for length in sorted({0, lines // 100, lines // 10, lines}):
        print(f"a transcript of {length} lines", file=sys.stderr, flush=True)
        with redis_server() as (server, port):
            stored = uvloop.run(_append_and_read(server.pid, port, length))
        rows.append([str(length), *stored, *_resume(length)])
    return heads, rows


async def _append_and_read(pid: int, port: int, length: int) -> list[str]:
    async with _server(port) as server:
        calls = Calls(server, FLEET, transcript_ttl=MONTH)
        we = await _begin(calls, "long")
        key = CallKeys.of("long").transcript
        lines = FencedStream(server, key, we)
        storing = asyncio.create_task(lines.run())
        try:
            for number in range(length):
                lines.append(_line(number))
            if not await lines.flush(60):
                raise TimeoutError(f"{length} lines were not stored within 60 s")
            kib = int(await server.execute("MEMORY", "USAGE", key, "SAMPLES", "0") or 0) / 1024
            took, used = [], cpu_ms(pid)
            for number in range(APPENDED):
                began = time.perf_counter()
                lines.append(_line(number))
                await lines.flush(10)
                took.append((time.perf_counter() - began) * 1000)
            append_cpu = (cpu_ms(pid) - used) * 1000 / APPENDED
        finally:
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)
        read, mine, used = [], time.process_time(), cpu_ms(pid)
        for _ in range(TIMES):
            began = time.perf_counter()
            await calls.transcript("long")
            read.append((time.perf_counter() - began) * 1000)
        reader, theirs = (time.process_time() - mine) * 1000 / TIMES, (cpu_ms(pid) - used) / TIMES
    append, whole = statistics.median(took), statistics.median(read)
    return [f"{append:.2f}", f"{append_cpu:.0f}", f"{whole:.1f}", f"{reader:.1f}", f"{theirs:.1f}", f"{kib:.0f}"]


def _resume(length: int) -> list[str]:
    """Kill the owner of one call with such a transcript."""
    with agents("echo") as (_, agent_url), product(agent_url, workers=1) as design:
        worker = next(part for part in design.parts if part.name == "worker")
        with callers(design, "echo", 1) as (caller, _):
            with redis.Redis(port=design.redis_port) as client:
                call = b"call:{" + client.zrange("{fleet}:calls", 0, 0)[0] + b"}"
                we = client.hget(call, "we").decode()
                for start in range(1, length + 1, 1000):
                    pipe = client.pipeline(transaction=False)
                    for number in range(start, min(start + 1000, length + 1)):
                        pipe.xadd(call + b":transcript", _line(number), id=f"{we}-{number}", nomkstream=True)
                    pipe.execute()
            assert design.add is not None
            design.add("worker")
            time.sleep(1.0)  # the two workers have seen each other's heart beat
            caller.tell("begin")
            worker.kill()
            killed = stamps.now()
            owned = owners(design, killed)
            time.sleep(HEARD_SECONDS)
            again = list(heard_again(caller, killed).values())
            caller.tell("end")
            json.loads(caller.line())
    if not owned or not again:
        return ["never" if not owned else f"{owned[0]:.0f}", "never"]
    return [f"{owned[0]:.0f}", f"{again[0] - owned[0]:.0f}"]


# Ended calls


def ended(calls: int) -> tuple[list[str], list[list[str]]]:
    """What the fleet asks of Redis, beside so many calls that have ended."""
    columns: list[dict[str, str]] = []
    heads = ["what", "empty Redis", f"{calls} finished calls", f"{calls} owed their finish"]
    for finish in ("", "done", "owed"):
        print(f"ended calls: {finish or 'none'}", file=sys.stderr, flush=True)
        with redis_server() as (_, port):
            if finish:
                uvloop.run(_one(port, finish))
                _copies(port, calls, finish)
            columns.append(uvloop.run(_ask(port)))
    return heads, [[name, *(column[name] for column in columns)] for name in columns[0]]


async def _begin(calls: Calls, cid: str) -> int:
    """A call that has begun; its owner's epoch."""
    await calls.attach(cid, edge="edge-1", new=NEW)
    claimed = await calls.claim(cid, worker="worker-1", seen_owner="", seen_we=0)
    assert claimed is not None
    await calls.activate(cid, we=claimed.we, session_id="load")
    return claimed.we


@contextlib.asynccontextmanager
async def _server(port: int) -> AsyncIterator[Server]:
    server = await connect(f"redis://127.0.0.1:{port}/0", name="scale")
    try:
        yield server
    finally:
        await server.close()


async def _one(port: int, finish: str) -> None:
    """The pattern: a call of ten lines that has ended."""
    async with _server(port) as server:
        calls = Calls(server, FLEET, transcript_ttl=MONTH)
        we = await _begin(calls, "pattern")
        key = CallKeys.of("pattern").transcript
        for number in range(1, 11):
            flat = [part for pair in _line(number).items() for part in pair]
            await server.execute("XADD", key, "NOMKSTREAM", f"{we}-{number}", *flat)
        await calls.end("pattern", reason="ended", detail="", we=we, finisher="worker-1")
        if finish == "done":
            await calls.finished("pattern", ["app.over"])


def _copies(port: int, calls: int, finish: str) -> None:
    """The pattern under so many other names. Those owed are due in an hour, as after handlers that fail."""
    with redis.Redis(port=port) as client:
        parts = [(suffix, client.dump(f"call:{{pattern}}{suffix}")) for suffix in ("", ":transcript")]
        due = (time.time() + 3600) * 1000
        for start in range(0, calls, 1000):
            pipe = client.pipeline(transaction=False)
            for number in range(start, min(start + 1000, calls)):
                for suffix, value in parts:
                    pipe.restore(f"call:{{copy-{number}}}{suffix}", MONTH * 1000, value)
                if finish == "owed":
                    pipe.zadd("{fleet}:ended", {f"copy-{number}": due})
            pipe.execute()


async def _ask(port: int) -> dict[str, str]:
    async with _server(port) as server:
        calls = Calls(server, FLEET, transcript_ttl=MONTH)
        number = iter(range(10**6))

        async def whole_call() -> None:
            cid = f"new-{next(number)}"
            we = await _begin(calls, cid)
            await calls.end(cid, reason="ended", detail="", we=we, finisher="worker-1")
            await calls.claim_finish(cid, worker="worker-1", seen_finisher="worker-1")
            await calls.finished(cid)

        async def beat() -> None:
            keys = [f"{{{FLEET}}}:beat", f"{{{FLEET}}}:workers"]
            await server.script(scripts.BEAT, keys, ["worker-1", "", 3600])

        found = {
            "list live calls, ms": await _timed(calls.live),
            "list calls owed their finish, ms": await _timed(calls.unfinished),
            "look for finishes that are due (each worker, each second), ms": await _timed(calls.due),
            "sweep (each worker, each minute), ms": await _timed(calls.sweep, times=3),
            "a call from claim to finish (6 steps), ms": await _timed(whole_call, times=200),
            "heart beat, ms": await _timed(beat, times=200),
        }
        async with _server(port) as other:
            found["heart beat while a sweep runs, longest of all, ms"] = await _beside(calls, other)
        used = int(await server.execute("DBSIZE"))
    with redis.Redis(port=port) as client:
        memory = client.info("memory")["used_memory"] / 2**20
    found["keys in Redis"] = str(used)
    found["memory of Redis, MiB"] = f"{memory:.1f}"
    return found


async def _timed(ask: Callable[[], Awaitable[Any]], times: int = TIMES) -> str:
    """Median and longest."""
    await ask()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1000)
    return f"{statistics.median(took):.2f} (max {max(took):.2f})"


async def _beside(calls: Calls, other: Server) -> str:
    """The longest heart beat, sent on a connection of its own, during sweeps."""
    sweeping = asyncio.create_task(_sweeps(calls))
    longest = 0.0
    while not sweeping.done():
        began = time.perf_counter()
        await other.script(scripts.BEAT, [f"{{{FLEET}}}:beat", f"{{{FLEET}}}:workers"], ["worker-2", "", 3600])
        longest = max(longest, (time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.001)
    await sweeping
    return f"{longest:.2f}"


async def _sweeps(calls: Calls) -> None:
    for _ in range(3):
        await calls.sweep()
