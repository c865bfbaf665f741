"""A call is acted on from anywhere, keeps its data, and is handed to people with what they should know."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_shared.errors import CallOver, CallUnknown, CommandRefused
from bridge_shared.redis.calls import CallKeys, Calls
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server, connect
from bridge_shared.remote import Remote
from bridge_sim.agent import AgentScript, SimulatedAgent
from deepgram_audiocodes_bridge.store import CallStore
from pods import Pods, application, calling

QUICK = AgentScript(think_s=0.0)

DIGITS = """
@bridge.on("activity")
def keys(session, event):
    if event.activity.get("name", "").lower() == "dtmf":
        session.data["digits"] = session.data.get("digits", "") + event.activity["value"]
        print("digits", session.data["digits"], flush=True)

@bridge.on("session_end")
def digits(session, event):
    print("kept", session.data.get("digits"), event.attempt, event.idempotency_key, flush=True)
"""

ESCALATE = """
@bridge.on("before_transfer")
async def ticket(session, event):
    print("ticket", event.target, event.summary, flush=True)

@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "0":
        await session.transfer("tel:+49301", handover_reason="asked", summary="wants a person")
"""

LATER = """
@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "5":
        while session._control.__class__.__name__ != "Elsewhere":
            await asyncio.sleep(0.02)
        await session.send_agent_message("You are welcome.")
        print("said", flush=True)
"""


@contextlib.asynccontextmanager
async def redis(url: str) -> AsyncIterator[tuple[Server, Calls, Remote]]:
    server = await connect(url, name="test")
    calls = Calls(server, "fleet", transcript_ttl=3600)
    try:
        yield server, calls, Remote(calls, Commands(server))
    finally:
        await server.close()


async def test_a_live_call_is_told_from_elsewhere_what_to_do_and_does_it_once(redis_url: str, tmp_path: Path) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (server, calls, remote), calling(edge) as call:
            cid = call.conversation_id
            await remote.send(cid, "agent", "inject_agent", "You are welcome.")
            connection = agent.connections[0]
            await connection.wait_for(lambda agent: ("assistant", "You are welcome.") in agent.texts, 10)
            await remote.send(cid, "activities", [{"type": "event", "name": "sendMetaData", "value": {"n": 1}}])
            commands = Commands(server)
            record = await calls.read(cid)
            assert record is not None
            once = [{"type": "event", "name": "sendMetaData", "value": {"n": 2}}]
            for _ in range(2):  # as if the first answer had been lost
                asked = commands.ask(record.owner, "activities", 2.0, cid=cid, arguments=[once], command="same")
                assert await asked == b"ok"
            with pytest.raises(CommandRefused):
                await remote.send(cid, "agent", "function_response", "x")
            await remote.send(cid, "hangup", "from elsewhere")
            await call.wait_end()
            with pytest.raises(CallOver):
                await remote.send(cid, "hangup", None)
            with pytest.raises(CallUnknown):
                await remote.send("nobody", "hangup", None)
        names = [activity["name"] for activity in call.report().activities]
        assert names == ["sendMetaData", "sendMetaData", "hangup"]


async def test_a_command_from_elsewhere_that_fails_costs_the_call_nothing(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
        redis(redis_url) as (_, _calls, remote),
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            cid = call.conversation_id
            await remote.send(cid, "activities", [])
            await worker.until_logged("a command from elsewhere failed")
            with pytest.raises(CommandRefused):
                await remote.send(cid, "transfer", {"transferTarget": "tel:+49301", "transferSipHeaders": ["odd"]})
            await remote.send(cid, "agent", "inject_agent", "You are welcome.")
            await agent.connections[0].wait_for(lambda a: ("assistant", "You are welcome.") in a.injections)


async def test_what_an_application_keeps_of_a_call_survives_its_worker_and_is_there_at_the_end(
    redis_url: str, tmp_path: Path
) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, DIGITS)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with redis(redis_url) as (_, calls, _), calling(edge) as call:
            first = next(worker for worker in workers if worker.logged("agent connected"))
            (other,) = [worker for worker in workers if worker is not first]
            await call.send_dtmf("47")

            async def stored() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and json.loads(record.raw.get("data", "{}")) == {"digits": "47"}

            await first.until(stored, 10, "the data in Redis")
            first.kill()
            await other.until(lambda: other.logged("call taken over"), 10, "the takeover")
            await call.send_dtmf("11")
            await other.until(lambda: "digits 4711" in other.stdout, 10, "the digits")
            await call.hang_up()
            await other.until(lambda: "kept" in other.stdout, 10, "the finish")
        assert f"kept 4711 1 {call.conversation_id}:session_end" in other.stdout


async def test_a_transfer_stores_what_the_next_one_should_know_and_says_which_call_it_is(
    redis_url: str, tmp_path: Path
) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, ESCALATE)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (_, calls, _):
            async with calling(edge) as call:
                await call.say("thank_you")
                await call.wait_answer()
                await call.send_dtmf("0")
                await call.wait_end()
            await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
            record = await calls.read(call.conversation_id)
            lines = await calls.transcript(call.conversation_id)
        assert "ticket tel:+49301 wants a person" in worker.stdout
    assert record is not None
    assert json.loads(record.raw["handoff"]) == {
        "target": "tel:+49301",
        "reason": "asked",
        "summary": "wants a person",
        "after": lines[-1].id,
    }
    (transfer,) = call.report().activities
    assert transfer["activityParams"]["transferSipHeaders"] == [
        {"name": "X-Conversation-Id", "value": call.conversation_id}
    ]


TRIES = (
    ESCALATE
    + """
        session.data["tried"] = True  # so that it is known that this activity was handled
"""
)


@pytest.mark.slow
async def test_a_transfer_that_failed_is_not_tried_again_by_the_next_owner(redis_url: str, tmp_path: Path) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, TRIES)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with redis(redis_url) as (_, calls, _), calling(edge, transfer_fails=True) as call:
            first = next(worker for worker in workers if worker.logged("agent connected"))
            (other,) = [worker for worker in workers if worker is not first]

            async def forgotten() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and "data" in record.raw and record.leaving is None

            await call.send_dtmf("0")
            await first.until_logged("transfer failed, the call goes on")
            await first.until(forgotten, 10, "the record without the transfer")
            first.kill()
            await other.until(lambda: other.logged("call taken over"), 10, "the takeover")
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        assert [activity["name"] for activity in call.report().activities] == ["transfer"]
        assert "ticket" not in other.stdout


async def test_a_hang_up_that_waits_for_a_transfer_is_carried_out_by_the_next_owner_if_the_transfer_fails(
    redis_url: str, tmp_path: Path
) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with redis(redis_url) as (_, _, remote), calling(edge, transfer_fails=True) as call:
            cid = call.conversation_id
            first = next(worker for worker in workers if worker.logged("agent connected"))
            await remote.send(cid, "agent", "inject_agent", "We are open from nine to five on all working days. " * 2)
            await agent.connections[0].wait_for(lambda agent: agent.texts, 10)
            await remote.send(cid, "transfer", {"transferTarget": "tel:+49301"})
            await remote.send(cid, "hangup", "enough")
            first.kill()
            await call.wait_end()
    names = [activity["name"] for activity in call.report().activities]
    assert names == ["transfer", "hangup"]


DECIDES = """
@bridge.on("before_transfer")
async def nobody_there(session, event):
    await session.end_session("closed")

@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "0":
        await session.transfer("tel:+49301")
"""


async def test_who_follows_a_call_goes_on_when_redis_has_lost_it_for_a_moment(redis_url: str) -> None:
    async with redis(redis_url) as (server, calls, _), CallStore(redis_url) as store:
        fields = {"bridge": "8000"}
        await calls.attach("c1", edge="e1", new=fields)
        transcript = CallKeys.of("c1").transcript

        async def said(entry: str, content: str) -> None:
            await server.execute("XADD", transcript, entry, "role", "user", "content", content)

        await said("1-1", "one")
        following = store.follow("c1")
        assert (await anext(following)).content == "one"
        await server.execute("FLUSHALL")
        following_on = asyncio.ensure_future(anext(following))
        await asyncio.sleep(1)  # its pods need as long to notice
        assert not following_on.done()
        await calls.restore("c1", fields, edge="e1", ee=1)
        await said("1-1", "one")
        await said("1-2", "two")
        assert (await following_on).content == "two"
        await calls.end("c1", reason="hangup", detail="")
        assert [line async for line in following] == []
        assert [line async for line in store.follow("nobody")] == []


async def test_an_application_may_hang_up_instead_of_a_transfer_that_is_being_prepared(
    redis_url: str, tmp_path: Path
) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, DECIDES)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.send_dtmf("0")
            await call.wait_end()
        await worker.until(lambda: "session_end ended" in worker.stdout, 10, "the finish")
    assert [activity["name"] for activity in call.report().activities] == ["hangup"]


@pytest.mark.slow
async def test_a_handler_that_outlives_its_worker_s_ownership_still_reaches_the_call(
    redis_url: str, tmp_path: Path
) -> None:
    settings = {"BRIDGE_DRAIN_SECONDS": "6"}  # given away though the handler runs
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, LATER), **settings) as pods,
    ):
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.send_dtmf("5")
            await first.until(lambda: agent.connections and agent.connections[0].ready, 10, "the agent")
            await pods.worker()
            first.terminate()
            said = ("assistant", "You are welcome.")
            await agent.wait_for(lambda agent: any(said in later.texts for later in agent.connections[1:]), 20)
            await call.hang_up()
