"""The finish of a call over real pods: what a try leaves for the next one, here or elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_worker.finisher import PAUSES_SECONDS
from pods import Pods, application, calling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

QUICK = AgentScript(think_s=0.0)


@contextlib.asynccontextmanager
async def stored(url: str) -> AsyncIterator[Calls]:
    server = await connect(url, name="test")
    try:
        yield Calls(server, "fleet", transcript_ttl=3600)
    finally:
        await server.close()


STEPS = """
@bridge.on("session_end")
async def crm(session, event):
    session.data["step"] = session.data.get("step", 0) + 1
    print("attempt", event.attempt, "step", session.data["step"], flush=True)
    if event.attempt == 1:
        await asyncio.sleep(60)
"""


async def test_what_a_session_end_handler_keeps_is_there_at_its_next_try_also_elsewhere(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, STEPS)) as pods,
        stored(redis_url) as calls,
    ):
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await owner.until(lambda: "attempt 1 step 1" in owner.stdout, 20, "the first try")

        async def written() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.raw.get("data") == '{"step":1}'

        await owner.until(written, 5, "the data in Redis, though the handler still runs")
        other = await pods.worker()
        owner.kill()
        await other.until(lambda: "attempt 2 step 2" in other.stdout, 20, "the second try")


async def test_what_is_no_call_in_the_list_keeps_no_call_from_its_finish(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
        stored(redis_url) as calls,
    ):
        await calls._server.execute("SET", "call:{odd}", "no hash")
        await calls._server.execute("ZADD", "{fleet}:ended", 1, "odd", 2, "no {id} at all")
        worker = await pods.worker()
        await calls.attach("ours", edge="edge-gone", new={"bridge": "8000", "media_format": "raw/mulaw"})
        await calls.end("ours", reason="error", detail="lost", report=True)
        await worker.until(lambda: "session_end error ours" in worker.stdout, 15, "the finish")


WAITS = """
import pathlib
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)
    while not pathlib.Path({path!r}).exists():
        await asyncio.sleep(0.02)
"""


async def test_a_handler_whose_success_could_not_be_recorded_does_not_run_again_at_the_same_worker(
    redis_url: str, tmp_path: Path
) -> None:
    go_on = tmp_path / "go on"
    app = application(tmp_path, WAITS.format(path=str(go_on)))
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app) as pods, stored(redis_url) as calls:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await worker.until(lambda: "crm 1" in worker.stdout, 20, "the handler")
        key = f"call:{{{call.conversation_id}}}"
        await calls._server.execute("RENAME", key, f"{key}:away")
        await calls._server.execute("SET", key, "no hash")
        go_on.touch()
        await worker.until_logged("the finish could not be recorded, trying again", 20)
        await calls._server.execute("RENAME", f"{key}:away", key)

        async def done() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.finish == "done"

        await worker.until(done, 20, "the finish")
        assert worker.stdout.count("crm") == 1


BROKEN = """
@bridge.on("session_end")
async def crm(session, event):
    print("attempt", event.attempt, flush=True)
    raise RuntimeError("the CRM is away")
"""


async def test_a_finish_that_was_given_up_and_is_opened_again_is_tried_as_long_as_a_new_one(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, BROKEN)) as pods,
        stored(redis_url) as calls,
    ):
        await calls.attach("ours", edge="edge-gone", new={"bridge": "8000", "media_format": "raw/mulaw"})
        await calls.end("ours", reason="error", detail="lost", report=True)
        await calls._server.execute("HSET", "call:{ours}", "finish_attempts", len(PAUSES_SECONDS))
        worker = await pods.worker()
        await worker.until_logged("the finish is given up", 15)
        last = len(PAUSES_SECONDS) + 1
        assert f"attempt {last}\n" in worker.stdout
        assert await calls.reopen("ours")
        await worker.until(lambda: f"attempt {last + 2}\n" in worker.stdout, 15, "two tries more, 1 s apart")
        assert len(worker.logged("the finish is given up")) == 1


LATE = """
@bridge.on("session_end")
def crm(session, event):
    print("crm", event.attempt, flush=True)
    time.sleep(4)

@bridge.on("session_end")
async def mail(session, event):
    print("mail", event.attempt, flush=True)
"""


async def test_a_plain_handler_that_was_left_behind_and_succeeds_at_last_is_not_run_again(
    redis_url: str, tmp_path: Path
) -> None:
    app = application(tmp_path, LATE)
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, app, BRIDGE_FINISH_TIMEOUT="0.5") as pods,
        stored(redis_url) as calls,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()

        async def done() -> bool:
            record = await calls.read(call.conversation_id)
            return record is not None and record.finish == "done"

        await worker.until(done, 30, "the finish")
        assert worker.stdout.count("crm") == worker.stdout.count("mail") == 1
        assert worker.logged(
            "a handler is left behind: it blocks the application's event loop, or will not be cancelled"
        )


HELD = """
import pathlib
@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "9":
        session.data["digits"] = session.data.get("digits", "") + "9"
        print("digits", session.data["digits"], flush=True)
        if not pathlib.Path({path!r}).exists():
            pathlib.Path({path!r}).touch()
            await asyncio.sleep(25)

@bridge.on("conversation_text")
async def said(session, event):
    session.data["said"] = event.content

@bridge.on("session_end")
async def kept(session, event):
    print("kept", dict(session.data), flush=True)
"""


async def test_what_a_running_activity_handler_keeps_is_not_kept_twice_though_other_data_is_written_meanwhile(
    redis_url: str, tmp_path: Path
) -> None:
    app = application(tmp_path, HELD.format(path=str(tmp_path / "begun")))
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, app) as pods,
        stored(redis_url) as calls,
    ):
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.send_dtmf("9")
            await owner.until(lambda: "digits 9" in owner.stdout, 15, "the handler")
            await call.say("thank_you")

            async def written() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and "said" in record.raw.get("data", "")

            await owner.until(written, 15, "what the other handler keeps")
            other = await pods.worker()
            owner.kill()
            await other.until(lambda: "digits" in other.stdout, 20, "the activity at the next owner")
            await call.hang_up()
        await other.until(lambda: "kept" in other.stdout, 20, "the finish")
        assert "digits 9\n" in other.stdout
        assert "'digits': '9'" in other.stdout and "'said'" in other.stdout
