"""Finish, transfers and the admin API at the worst moments: blocked loops, drains, other keys, Redis away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bridge_shared.redis.calls import CallKeys, Calls
from bridge_shared.redis.connection import Server, connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from chaos.network import Balancer
from conftest import RedisServer
from deepgram_audiocodes_bridge.store import CallStore
from pods import Pod, Pods, application, calling, environment
from redis_topologies import ClusterServers, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

QUICK = AgentScript(think_s=0.0)
TOKEN = "0815-token"


@contextlib.asynccontextmanager
async def redis(url: str) -> AsyncIterator[tuple[Server, Calls]]:
    server = await connect(url, name="test")
    try:
        yield server, Calls(server, "fleet", transcript_ttl=3600)
    finally:
        await server.close()


async def owed(calls: Calls, cid: str) -> None:
    """A call that has ended without an owner, and whose finish is owed."""
    await calls.attach(cid, edge="edge-gone", new={"bridge": "8000", "media_format": "raw/mulaw"})
    await calls.end(cid, reason="error", detail="lost", report=True)


def api(pod: Pod, token: str = TOKEN) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{pod.admin_port}", headers=headers, trust_env=False)


# ── the finish ─────────────────────────────────────────────────────────────────────────────────────────────

BLOCKED_LATER = """
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)
    if event.attempt == 1:
        asyncio.get_running_loop().call_later(0.2, time.sleep, 60)  # a handler of another call that blocks
        raise RuntimeError("the CRM is away")
"""


async def test_a_finish_that_failed_once_is_tried_elsewhere_when_its_finisher_s_loop_is_blocked_since(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py `_adopt` left it to others without releasing it, and others leave it to a finisher that is alive
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, BLOCKED_LATER)) as pods,
        redis(redis_url) as (_, calls),
    ):
        first = await pods.worker()
        await owed(calls, "c1")
        await first.until(lambda: "crm 1" in first.stdout, 15, "the first try")
        other = await pods.worker()
        await other.until(lambda: "crm" in other.stdout, 20, "the second try, elsewhere")


SLOW = """
@bridge.on("session_end")
def crm(session, event):
    print("crm", event.attempt, flush=True)
    time.sleep(3.2)
"""


async def test_a_plain_handler_that_succeeds_a_little_late_is_not_run_again_by_another_worker(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py `_others`: the former owner waited for itself as long as all others do, so any of them might be first
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, SLOW), BRIDGE_FINISH_TIMEOUT="0.5") as pods,
        redis(redis_url) as (_, calls),
    ):
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()

        async def done() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.finish == "done"

        await edge.until(done, 30, "the finish")
        assert sum(worker.stdout.count("crm") for worker in workers) == 1


FAILS_LATER = """
import pathlib
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)
    while not pathlib.Path({path!r}).exists():
        await asyncio.sleep(0.02)
    raise RuntimeError("the CRM is away")
"""


async def test_a_call_that_is_forgotten_while_it_is_finished_does_not_come_back_when_that_fails(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py `_again` postponed what was not there any more
    go_on = tmp_path / "go on"
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, FAILS_LATER.format(path=str(go_on)))) as pods,
        redis(redis_url) as (server, calls),
    ):
        worker = await pods.worker()
        await owed(calls, "c1")
        await worker.until(lambda: "crm 1" in worker.stdout, 15, "the handler")
        assert await calls.forget("c1")
        go_on.touch()
        await worker.until_logged("the call was forgotten while its session_end handlers failed")
        await owed(calls, "c2")
        traces = []
        while worker.stdout.count("crm 1") < 2:  # until the worker has looked again
            traces += [cid for cid in await calls.unfinished() if cid == "c1"]
            await asyncio.sleep(0.02)
        assert not traces
        assert not [key for key in await server.execute("KEYS", "*") if b"c1" in key]


WAITS = """
import pathlib
@bridge.on("session_end")
async def crm(session, event):
    session.data["step"] = event.attempt
    print("crm", event.attempt, flush=True)
    while not pathlib.Path({path!r}).exists():
        await asyncio.sleep(0.02)

@bridge.on("session_end")
async def mail(session, event):
    session.data["mail"] = event.attempt
    print("mail", event.attempt, flush=True)
"""


async def test_handlers_that_succeed_while_redis_is_away_run_once(redis_server: RedisServer, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    app = application(tmp_path, WAITS.format(path=str(go_on)))
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_server.url, agent.url, app) as pods,
        redis(redis_server.url) as (_, calls),
    ):
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        owner = next(worker for worker in workers if worker.logged("agent connected"))
        await owner.until(lambda: "crm 1" in owner.stdout, 20, "the handler")
        redis_server.pause()
        go_on.touch()
        await owner.until(lambda: "mail 1" in owner.stdout, 30, "the second handler")
        await owner.until_logged("the finish could not be recorded, trying again", 40)
        redis_server.resume()

        async def done() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.finish == "done"

        await edge.until(done, 30, "the finish")
        ran = [line for worker in workers for line in worker.stdout.splitlines() if line.startswith(("crm", "mail"))]
        assert ran == ["crm 1", "mail 1"]


TAKES_TIME = """
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)
    await asyncio.sleep(2)
    print("written", event.attempt, flush=True)
"""


async def test_a_worker_that_drains_lets_the_finish_of_another_s_call_come_to_its_end(
    redis_url: str, tmp_path: Path
) -> None:
    # worker.py `drain` waited for its own calls only: the handler was cut off, and run again elsewhere
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, TAKES_TIME)) as pods,
        redis(redis_url) as (_, calls),
    ):
        worker = await pods.worker()
        await owed(calls, "c1")
        await worker.until(lambda: "crm 1" in worker.stdout, 15, "the handler")
        worker.terminate()
        assert await worker.ended() == 0
        assert "written 1" in worker.stdout
        record = await calls.read("c1")
        assert record is not None and record.finish == "done"


async def test_a_finisher_that_stood_still_runs_no_further_handler_when_another_has_the_call(
    redis_url: str, tmp_path: Path
) -> None:
    go_on = tmp_path / "go on"
    app = application(tmp_path, WAITS.format(path=str(go_on)))
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, app) as pods,
        redis(redis_url) as (_, calls),
    ):
        edge, first, second = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        owner, other = (first, second) if first.logged("agent connected") else (second, first)
        await owner.until(lambda: "crm 1" in owner.stdout, 20, "the handler")
        owner.pause()
        await other.until(lambda: "crm 2" in other.stdout, 20, "the handler at the other")
        owner.go_on()
        go_on.touch()

        async def done() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.finish == "done"

        await other.until(done, 20, "the finish")
        await owner.until_logged("another worker finishes the call now")
        assert "mail" not in owner.stdout
        assert other.stdout.count("mail 2") == 1


ESCALATE = """
@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "0":
        await session.transfer("tel:+49301", handover_reason="asked", summary="wants a person")
"""


async def test_what_a_person_should_know_is_stored_though_the_edge_has_ended_the_call_meanwhile(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    # commands.py `_write` amends live calls only. The worker is cut off from the state, not from the inboxes; the edge
    # waits 2 s for the owner to end the call
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_server.url, agent.url, application(tmp_path, ESCALATE), BRIDGE_MEDIA_REDIS_URL=redis_url) as pods,
        redis(redis_server.url) as (_, calls),
        Balancer([redis_server.port]) as line,
    ):
        cut_off = {"REDIS_URL": f"redis://127.0.0.1:{line.port}/0"}
        edge, worker = await asyncio.gather(pods.edge(), pods.worker(**cut_off))
        async with calling(edge) as call:
            backends, line.backends = line.backends, []
            line.cut()
            await call.send_dtmf("0")
            await call.wait_end()

            async def ended() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and record.state == "ended"

            await edge.until(ended, 15, "the end, by the edge")
            line.backends = backends
            await worker.until(lambda: "session_end" in worker.stdout, 30, "the finish")

            async def done() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and record.finish == "done"

            await worker.until(done, 10, "the finish")
        record = await calls.read(call.conversation_id)
        assert record is not None
        assert json.loads(record.raw.get("handoff", "{}")).get("summary") == "wants a person"


FORMER = """
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)
"""


# ── the examples, `bridgectl` ──────────────────────────────────────────────────────────────────────────────


async def test_example_02_keeps_the_digits_across_a_worker_kill(redis_url: str) -> None:
    app = Path(__file__).parents[2] / "worker" / "examples" / "02_dtmf" / "app.py"
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, app) as pods,
        redis(redis_url) as (_, calls),
    ):
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with calling(edge) as call:
            await call.wait_greeting()
            owner = next(worker for worker in workers if worker.logged("agent connected"))
            (other,) = [worker for worker in workers if worker is not owner]
            await call.send_dtmf("47")

            async def stored() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and record.raw.get("data") == '{"digits":"47"}'

            await owner.until(stored, 10, "the digits in Redis")
            owner.kill()
            await other.until_logged("call taken over")
            await call.send_dtmf("1")
            await call.send_dtmf("#")
            said = ("assistant", "Thank you. I have parcel number 4 7 1.")
            await agent.wait_for(lambda agent: any(said in each.injections for each in agent.connections), 15)
            await call.hang_up()


def test_the_shell_completes_commands() -> None:
    asked = {"_BRIDGECTL_COMPLETE": "complete_bash", "COMP_WORDS": "bridgectl tr", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from deepgram_audiocodes_bridge.cli import main; main([])"]
    done = subprocess.run(command, env=environment(asked), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["transcript", "transfer"]


# ── the admin API ──────────────────────────────────────────────────────────────────────────────────────────


async def test_who_has_no_token_is_refused_before_anything_of_a_body_is_read(redis_url: str, tmp_path: Path) -> None:
    # api.py asked for the token in a dependency, and FastAPI reads the body before it asks dependencies: a stranger
    # filled the pod's memory, or kept all hundred places of the API by sending nothing
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        open_one, closed = await asyncio.gather(pods.worker(BRIDGE_ADMIN_TOKEN=TOKEN), pods.worker())
        for pod, status in ((open_one, b"401"), (closed, b"403")):
            reader, writer = await uploading(pod, "wrong", 10**9)
            assert status in await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
            writer.close()
        strangers = [await uploading(open_one, "wrong", 9) for _ in range(120)]
        async with api(open_one) as known, api(open_one, "wrong") as stranger:
            assert (await known.get("/v1/calls")).status_code == 200
            odd = await stranger.post("/v1/calls/nobody/say", content="{", headers={"Content-Type": "application/json"})
            assert odd.status_code == 401
        for _, writer in strangers:
            writer.close()


async def test_a_body_is_neither_kept_whatever_its_length_nor_waited_for_without_end(
    redis_url: str, tmp_path: Path
) -> None:
    # admin.py bounded how many requests are at work, but not what one of them may cost
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        worker = await pods.worker()
        reader, writer = await uploading(worker, TOKEN, 10**9)
        slow_reader, slow_writer = await uploading(worker, TOKEN, 9)
        writer.write(b"x" * 1_000_000)
        assert b"413" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        assert b"408" in await asyncio.wait_for(slow_reader.readuntil(b"\r\n"), 20)
        writer.close()
        slow_writer.close()


async def uploading(pod: Pod, token: str, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.admin_port)
    head = f"POST /v1/calls/c1/say HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def test_who_has_stopped_following_takes_no_place_any_more(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
        redis(redis_url) as (server, calls),
    ):
        worker = await pods.worker()
        await calls.attach("c1", edge="e1", new={"bridge": "8000"})
        await server.execute("XADD", CallKeys.of("c1").transcript, "1-1", "role", "user", "content", "one")
        for _ in range(3):
            followers = []
            for _ in range(40):
                reader, writer = await asyncio.open_connection("127.0.0.1", worker.admin_port)
                head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
                writer.write(f"GET /v1/calls/c1/transcript?follow=true HTTP/1.1\r\n{head}".encode())
                followers.append((reader, writer))
            for reader, writer in followers:
                await asyncio.wait_for(reader.readuntil(b'"content":"one"'), 10)
                writer.transport.abort()

            async def free() -> bool:
                async with api(worker) as client:
                    return (await client.get("/v1/calls")).status_code == 200

            await worker.until(free, 10, "a free place")
        assert not worker.logged("Exception in ASGI application")


# ── what is kept ───────────────────────────────────────────────────────────────────────────────────────────


async def test_one_odd_key_hides_no_other_call_from_those_who_look(redis_url: str, tmp_path: Path) -> None:
    # the lists of the API, of `bridgectl` and of CallStore, the sweeper and the sweep read one call after the other and
    # stopped at the first that cannot be read
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN, BRIDGE_LOST_SECONDS="1") as pods,
        redis(redis_url) as (server, calls),
        CallStore(redis_url) as store,
    ):
        await server.execute("SET", "call:{odd}", "no hash")
        await server.execute("ZADD", "{fleet}:calls", 1, "odd", 2, "no {id} at all")
        await server.execute("ZADD", "{fleet}:ended", "+inf", "odd", "+inf", "no {id} at all")
        await calls.attach("c1", edge="edge-gone", new={"bridge": "8000", "media_format": "raw/mulaw"})
        assert [record.cid for record in await store.live()] == ["c1"]
        for command, shown in (("calls", "c1"), ("unfinished", "odd")):
            done = await bridgectl(redis_url, command)
            assert (done.returncode, shown in done.stdout) == (0, True), done.stderr
        worker = await pods.worker()
        async with api(worker) as client:
            page = await client.get("/v1/calls")
            assert page.status_code == 200
        await worker.until_logged("a call has lost its edge and its worker, ending it")
        assert await calls.sweep() >= 2
        assert await calls.unfinished() == {}


async def bridgectl(redis_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", *arguments]
    env = environment({"REDIS_URL": redis_url})
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)


async def test_the_store_knows_no_error_but_that_redis_is_away(redis_url: str) -> None:
    # calls.py CallKeys.of raises CallUnknown
    async with CallStore(redis_url) as store:
        assert await store.transcript("no call") == []
        assert [line async for line in store.follow("no call")] == []


async def test_nothing_of_commands_is_left_of_a_finished_call(redis_url: str, tmp_path: Path) -> None:
    # scripts.py FINISHED: `call:{cid}:commands` stayed for ten minutes
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
        redis(redis_url) as (server, calls),
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with api(worker) as client, calling(edge) as call:
            cid = call.conversation_id
            for path, body in (("say", {"text": "You are welcome."}), ("hangup", {"reason": "enough"})):
                assert (await client.post(f"/v1/calls/{cid}/{path}", json=body)).status_code == 202
            await call.wait_end()

        async def done() -> bool:
            record = await calls.read(cid)
            return record is not None and record.finish == "done"

        await worker.until(done, 10, "the finish")
        keys = CallKeys.of(cid)
        left = [key.decode() for key in await server.execute("KEYS", "*") if cid.encode() in key]
        assert sorted(left) in ([keys.call, keys.transcript], [keys.call, keys.heard, keys.transcript])


async def test_what_is_opened_again_lives_as_long_as_it_is_tried_whatever_the_retention(redis_url: str) -> None:
    # scripts.py REOPEN_FINISH left the call and its transcript the hour or two that they had
    async with redis(redis_url) as (server, calls):
        await owed(calls, "c1")
        await server.execute("XADD", CallKeys.of("c1").transcript, "1-1", "role", "user", "content", "one")
        await calls.give_up("c1")
        for key in (CallKeys.of("c1").call, CallKeys.of("c1").transcript):
            await server.execute("EXPIRE", key, 60)
        assert await calls.reopen("c1")
        for key in (CallKeys.of("c1").call, CallKeys.of("c1").transcript):
            assert await server.execute("TTL", key) > 24 * 3600


async def test_who_follows_reads_what_is_new_and_not_all_again(redis_url: str) -> None:
    # api.py `follow` read the whole transcript four times a second, in the loop that moves audio
    async with redis(redis_url) as (server, calls):
        for number in (1, 2, 3):
            entry = ("role", "user", "content", f"line {number}")
            await server.execute("XADD", CallKeys.of("c1").transcript, f"1-{number}", *entry)
        assert [line.content for line in await calls.transcript("c1", "1-2")] == ["line 3"]
        assert await calls.transcript("c1", "1-3") == []
        assert len(await calls.transcript("c1")) == 3


async def test_a_call_is_acted_on_finished_and_forgotten_on_a_cluster(tmp_path: Path) -> None:
    with started(ClusterServers) as servers:
        servers.settle()
        async with (
            SimulatedAgent(QUICK) as agent,
            Pods(servers.url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
            redis(servers.url) as (_, calls),
        ):
            edge, worker = await asyncio.gather(pods.edge(), pods.worker())
            async with api(edge) as client, calling(edge) as call:
                cid = call.conversation_id
                said = await client.post(f"/v1/calls/{cid}/say", json={"text": "You are welcome."})
                assert said.status_code == 202
                await agent.connections[0].wait_for(lambda a: ("assistant", "You are welcome.") in a.texts, 10)
                assert (await client.post(f"/v1/calls/{cid}/hangup")).status_code == 202
                await call.wait_end()
            await worker.until(lambda: "session_end ended" in worker.stdout, 15, "the finish")

            async def done() -> bool:
                record = await calls.read(cid)
                return record is not None and record.finish == "done"

            await worker.until(done, 15, "the finish")
            assert not await calls.reopen(cid)
            assert await calls.forget(cid)
            assert await calls.read(cid) is None
            assert await calls.unfinished() == {}
