"""Finish, remote control, redaction, `forget` and the admin port, when pods die or hang at the worst moment."""

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
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server, connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_worker.redaction import Redaction
from conftest import RedisServer
from deepgram_audiocodes_bridge.store import CallStore
from integration.test_page import browse
from pods import Pod, Pods, application, calling, environment

QUICK = AgentScript(think_s=0.0)
TOKEN = "0815-token"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextlib.asynccontextmanager
async def redis(url: str) -> AsyncIterator[tuple[Server, Calls]]:
    server = await connect(url, name="test")
    try:
        yield server, Calls(server, "fleet", transcript_ttl=3600)
    finally:
        await server.close()


def api(pod: Pod) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{pod.admin_port}", headers=headers, trust_env=False)


async def bridgectl(redis_url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", *arguments]
    env = environment({"REDIS_URL": redis_url, **variables})
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)


async def owed(calls: Calls, cid: str, *, bridge: str) -> None:
    """A call that has ended, whose owner is long dead and whose finish is owed."""
    await calls.attach(cid, edge="edge-gone", new={"bridge": bridge, "media_format": "raw/mulaw"})
    claimed = await calls.claim(cid, worker="worker-gone", seen_owner="", seen_we=0)
    assert claimed is not None
    await calls.activate(cid, we=claimed.we, session_id="0" * 32)
    await calls.end(cid, reason="hangup", detail="", finisher="worker-gone")


# ── redaction ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_redaction_pattern_that_the_settings_accept_costs_no_call(redis_url: str, tmp_path: Path) -> None:
    # config.py:338 compiles each line alone; redaction.py:27 wraps it in (?:…), where a flag such as (?i) is an error,
    # so every Conversation fails in its constructor (conversation.py:121)
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_REDACT=r"(?i)pin \d+") as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()


def test_each_redaction_pattern_takes_out_what_it_matches_alone() -> None:
    # redaction.py:27 joins the patterns: a back-reference of the second one then means a group of the first one
    assert "1111" not in Redaction("(\\d)\\1{3}")("card 1111")
    assert "1111" not in Redaction("(password) is \\w+\n(\\d)\\1{3}")("card 1111")


async def test_what_is_redacted_is_nowhere_in_redis_while_the_call_lives(redis_url: str, tmp_path: Path) -> None:
    # function_calls.py: `_note` stores the arguments (and the answer) of function calls as they are
    script = AgentScript(think_s=0.0, calls={"parcel_number": (("pay", '{"card":"4111111111111111"}'),)})
    app = application(tmp_path, functions=["pay"])
    async with SimulatedAgent(script) as agent, Pods(redis_url, agent.url, app, BRIDGE_REDACT=r"\d{16}") as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (server, _), calling(edge) as call:
            await call.say("parcel_number")
            await worker.until_logged("the application has no handler for function_call_request")
            await call.wait_answer()
            key = f"call:{{{call.conversation_id}}}:functions"
            entries = await server.execute_again("XRANGE", key, "-", "+")
            assert entries
            assert "4111111111111111" not in str(entries)


# ── the finish ─────────────────────────────────────────────────────────────────────────────────────────────

TWO = """
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)

@bridge.on("session_end")
async def slow(session, event):
    print("slow", event.attempt, flush=True)
    if event.attempt == 1:
        await asyncio.sleep(20)
"""


async def test_a_handler_that_has_succeeded_does_not_run_again_when_the_worker_dies_in_the_next_one(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py:72-80: success is written only when all handlers have returned, not behind each
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, TWO)) as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await owner.until(lambda: "slow 1" in owner.stdout, 20, "the second handler")
        other = await pods.worker()
        owner.kill()
        await other.until(lambda: "slow 2" in other.stdout, 20, "the finish elsewhere")
        assert "crm" not in other.stdout


async def test_a_hundred_calls_that_no_worker_here_can_finish_keep_no_other_from_its_finish(
    redis_url: str, tmp_path: Path
) -> None:
    # calls.py `due(limit=100)`: always the same hundred longest due; finisher.py `_adopt` leaves those of a bridge that
    # is not hosted where they are, so whatever became due later is never looked at
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
        redis(redis_url) as (_, calls),
    ):
        await owed(calls, "control", bridge="8000")
        worker = await pods.worker()
        await worker.until(lambda: "session_end hangup control" in worker.stdout, 15, "the finish without others")
        for number in range(100):
            await owed(calls, f"former-bridge-{number}", bridge="was-renamed")
        await owed(calls, "ours", bridge="8000")
        await worker.until(lambda: "session_end hangup ours" in worker.stdout, 15, "the finish behind others")


HANGS = """
@bridge.on("session_end")
async def crm(session, event):
    print("begun", session.conversation_id, flush=True)
    if session.conversation_id.startswith("hangs"):
        await asyncio.sleep(1000)
"""


async def test_a_handler_that_hangs_for_one_call_does_not_keep_the_finish_of_others(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py:55-56: calls are adopted one after the other, each up to BRIDGE_FINISH_TIMEOUT (30 s) a handler
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, HANGS)) as pods,
        redis(redis_url) as (_, calls),
    ):
        for number in range(2):
            await owed(calls, f"hangs-{number}", bridge="8000")
        await owed(calls, "ours", bridge="8000")
        worker = await pods.worker()
        await worker.until(lambda: "begun hangs-0" in worker.stdout, 15, "the first finish")
        await worker.until(lambda: "begun ours" in worker.stdout, 15, "ours, which nothing hinders")


BLOCKS = """
import pathlib
@bridge.on("session_end")
def crm(session, event):
    first = not pathlib.Path({path!r}).exists()
    pathlib.Path({path!r}).touch()
    print("crm", "first" if first else "again", flush=True)
    if first:
        time.sleep(60)
"""


async def test_a_plain_session_end_handler_that_hangs_is_cut_off_and_run_again_elsewhere(
    redis_url: str, tmp_path: Path
) -> None:
    # handlers.py `_call` bounds by cancelling, which a plain function never notices; `finish` waits without a bound of
    # its own, and its worker is alive, so that nobody else takes the call
    app = application(tmp_path, BLOCKS.format(path=str(tmp_path / "begun")))
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app, BRIDGE_FINISH_TIMEOUT="1") as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await owner.until(lambda: "crm first" in owner.stdout, 20, "the handler")
        other = await pods.worker()
        await other.until(lambda: "crm again" in other.stdout, 20, "the finish elsewhere, 1 s + 1 s later")


async def test_a_finish_that_was_given_up_stays_given_up_when_the_worker_dies_right_then(
    redis_url: str, tmp_path: Path
) -> None:
    # calls.py `give_up` marks the call, then moves it in {fleet}:ended; a worker that finds it in between takes
    # `given_up` for `done` (finisher.py:109-110, `finish != "owed"` -> `finished`)
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
        redis(redis_url) as (_, calls),
    ):
        await owed(calls, "c1", bridge="8000")
        await calls._finished("c1", "given_up", ())  # the first half of `give_up`; then the worker dies
        await owed(calls, "later", bridge="8000")
        worker = await pods.worker()
        await worker.until(lambda: "session_end hangup later" in worker.stdout, 15, "the one behind it")
        record = await calls.read("c1")
        assert record is not None and record.finish == "given_up"
        assert "c1" in await calls.unfinished()


REMEMBERS = """
known = {}
@bridge.on("session_start")
async def begun(session, event):
    known[session] = "a customer"

@bridge.on("session_end")
async def crm(session, event):
    session.data["step"] = session.data.get("step", 0) + 1
    print("attempt", event.attempt, known.get(session), session.data["step"], flush=True)
    if event.attempt == 1:
        raise RuntimeError("the CRM is away")
"""


async def test_a_second_try_on_the_former_owner_has_the_session_that_the_application_knows(
    redis_url: str, tmp_path: Path
) -> None:
    # finisher.py:123 `_session` makes a new one although the owner lives and had one
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, REMEMBERS)) as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await owner.until(lambda: "attempt 2" in owner.stdout, 20, "the second try")
        assert "attempt 1 a customer" in owner.stdout
        assert "attempt 2 a customer" in owner.stdout


async def test_what_a_session_end_handler_keeps_in_session_data_is_there_at_its_next_try(
    redis_url: str, tmp_path: Path
) -> None:
    # scripts.py AMEND refuses an ended call; finisher.py:134 gives the session of a later try a mapping that writes
    # nowhere, and says nothing (session.py `data`: "to every worker that serves or finishes it")
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, REMEMBERS)) as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await owner.until(lambda: "attempt 2" in owner.stdout, 20, "the second try")
        (second,) = [line for line in owner.stdout.splitlines() if line.startswith("attempt 2")]
        assert second.endswith(" 2")


# ── transfer ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_transfer_asked_for_from_elsewhere_says_which_call_it_is(redis_url: str, tmp_path: Path) -> None:
    # remote.py:74-77 `_transfer` sends the parameters as they came; only Session.transfer adds X-Conversation-Id
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            assert (await bridgectl(redis_url, "transfer", call.conversation_id, "tel:+49301")).returncode == 0
            await call.wait_end()
    (transfer,) = call.report().activities
    headers = transfer["activityParams"].get("transferSipHeaders")
    assert headers == [{"name": "X-Conversation-Id", "value": call.conversation_id}]


BLOCKED_TICKET = """
@bridge.on("before_transfer")
def ticket(session, event):
    time.sleep(40)  # requests.post(...) to a ticket system that does not answer

@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "0":
        await session.transfer("tel:+49301", summary="wants a person")
"""


async def test_a_plain_before_transfer_handler_that_hangs_holds_the_transfer_up_no_longer_than_the_setting(
    redis_url: str, tmp_path: Path
) -> None:
    # handlers.py `ask` waits for the application's loop without a bound of its own
    app = application(tmp_path, BLOCKED_TICKET)
    settings = {"BRIDGE_BEFORE_TRANSFER_TIMEOUT": "1"}
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app, **settings) as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.send_dtmf("0")
            await edge.until(lambda: call.report().activities, 15, "the transfer, due after 1 s")


async def test_a_second_transfer_is_refused_or_carried_out_and_the_hand_off_is_of_the_one_that_is(
    redis_url: str, tmp_path: Path
) -> None:
    # commands.py:203 overwrites `handoff` before `_leave` finds that the call is being left already (commands.py:233);
    # remote.py `_obey` looks at `over`, not at `parting`, and answers OK
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (_, calls), api(edge) as client, calling(edge) as call:
            at = f"/v1/calls/{call.conversation_id}"
            await client.post(f"{at}/say", json={"text": "Just a moment please, I am going to connect you. " * 2})
            await agent.connections[0].wait_for(lambda a: a.texts, 10)
            first = await client.post(f"{at}/transfer", json={"target": "tel:+49301"})
            second = await client.post(f"{at}/transfer", json={"target": "tel:+49302"})
            await call.wait_end()
            record = await calls.read(call.conversation_id)
    assert record is not None
    went = [activity["activityParams"]["transferTarget"] for activity in call.report().activities]
    assert first.status_code == 202
    assert json.loads(record.raw["handoff"])["target"] == went[-1]
    assert second.status_code == 409 or "tel:+49302" in went


ELSEWHERE = """
@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "5":
        while session._control.__class__.__name__ != "Elsewhere":
            await asyncio.sleep(0.02)
        await session.transfer("tel:+49301", handover_reason="asked", summary="wants a person")
"""


async def test_the_summary_of_a_transfer_is_stored_though_the_call_has_changed_hands(
    redis_url: str, tmp_path: Path
) -> None:
    # remote.py:101 `Elsewhere.before_transfer` does nothing, and `_transfer` (remote.py:76) stores summary ""
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, ELSEWHERE), BRIDGE_DRAIN_SECONDS="6") as pods,
    ):
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (_, calls), calling(edge) as call:
            await call.send_dtmf("5")
            await first.until(lambda: agent.connections and agent.connections[0].ready, 10, "the agent")
            await pods.worker()
            first.terminate()
            await call.wait_end()
            record = await calls.read(call.conversation_id)
    assert record is not None
    assert json.loads(record.raw["handoff"])["summary"] == "wants a person"


async def test_in_example_07_a_caller_who_is_being_connected_is_connected_though_the_worker_dies(
    redis_url: str, tmp_path: Path
) -> None:
    # examples/07: the function call is answered first, so nobody carries it out again; `transfer` waits for the last
    # words in memory only. `handoff` is in Redis by then, and no new owner looks at it
    app = Path(__file__).parents[2] / "worker" / "examples" / "07_amazon_connect" / "app.py"
    script = AgentScript(think_s=0.0, calls={"speak_to_a_person": (("speak_to_a_person", '{"why":"a complaint"}'),)})
    async with SimulatedAgent(script) as agent, Pods(redis_url, agent.url, app) as pods:
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with redis(redis_url) as (_, calls), calling(edge) as call:
            await call.wait_greeting()
            await call.say("speak_to_a_person")
            owner = next(worker for worker in workers if worker.logged("agent connected"))

            async def stored() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and "handoff" in record.raw

            await owner.until(stored, 20, "the hand-off in Redis")
            assert not call.report().activities
            owner.kill()
            await edge.until(lambda: call.report().activities, 25, "the transfer, by the other worker")


# ── remote control ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hang_up_that_was_accepted_is_carried_out_though_the_owner_dies_before_the_last_words_are_out(
    redis_url: str, tmp_path: Path
) -> None:
    # remote.py:49-51 answers OK when the deed has begun; it is in the owner's memory only while `played_out` waits
    # (commands.py `_part`), and the next owner knows nothing of it
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, *workers = await asyncio.gather(pods.edge(), pods.worker(), pods.worker())
        async with api(edge) as client, calling(edge) as call:
            at = f"/v1/calls/{call.conversation_id}"
            owner = next(worker for worker in workers if worker.logged("agent connected"))
            await client.post(f"{at}/say", json={"text": "We are open from nine to five on all working days. " * 2})
            await agent.connections[0].wait_for(lambda a: a.texts, 10)
            assert (await client.post(f"{at}/hangup")).status_code == 202
            owner.kill()
            await edge.until(
                lambda: "hangup" in [a["name"] for a in call.report().activities], 30, "the hang-up that was accepted"
            )


async def test_a_command_that_was_refused_is_not_carried_out_afterwards(redis_url: str, tmp_path: Path) -> None:
    # remote.py:69-71: the command stays in the inbox of an owner that did not answer in time; nothing says until when
    # it is wanted, so an owner that wakes up obeys it although "try again" has been said
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with api(edge) as client, calling(edge) as call:
            at = f"/v1/calls/{call.conversation_id}"
            worker.pause()
            refused = await client.post(f"{at}/dtmf", json={"digits": "1"}, timeout=30)
            assert refused.status_code == 409
            worker.go_on()
            assert (await client.post(f"{at}/dtmf", json={"digits": "2"}, timeout=30)).status_code == 202
            await edge.until(lambda: "2" in _digits(call), 15, "the second command")
            assert _digits(call) == ["2"]


def _digits(call: SimulatedCall) -> list[str]:
    return [activity["activityParams"]["dtmfDigits"] for activity in call.report().activities]


# ── the admin API ──────────────────────────────────────────────────────────────────────────────────────────


async def test_pages_of_live_calls_show_each_once_though_calls_end_between_them(redis_url: str, tmp_path: Path) -> None:
    # api.py:172 begins again at the first call when `after` is no longer live: with many calls that end, for ever
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
        redis(redis_url) as (_, calls),
    ):
        worker = await pods.worker()
        for cid in ("c1", "c2", "c3"):
            await calls.attach(cid, edge="edge-1", new={"bridge": "8000"})
            await asyncio.sleep(0.002)  # so that they are of different milliseconds
        async with api(worker) as client:
            first = (await client.get("/v1/calls", params={"limit": 2})).json()
            assert [call["conversation_id"] for call in first["calls"]] == ["c1", "c2"]
            await calls.end("c2", reason="hangup", detail="")
            second = (await client.get("/v1/calls", params={"limit": 2, "after": first["next"]})).json()
            assert [call["conversation_id"] for call in second["calls"]] == ["c3"]


@pytest.mark.parametrize("body", ['{"text": 1e999}', '{"text": NaN}', r'{"text": "\ud800"}'])
async def test_a_body_that_does_not_validate_is_answered_with_422(redis_url: str, tmp_path: Path, body: str) -> None:
    # api.py has FastAPI's own handler for RequestValidationError: it repeats the input, which no JSON can hold
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        worker = await pods.worker()
        async with api(worker) as client:
            kind = {"Content-Type": "application/json"}
            answer = await client.post("/v1/calls/nobody/say", content=body, headers=kind)
            assert answer.status_code == 422


async def test_probes_are_answered_while_a_hundred_others_are_connected_to_the_admin_port(
    redis_url: str, tmp_path: Path
) -> None:
    # admin.py:100 `limit_concurrency=100` counts every open connection, idle ones too, without a token even: the
    # liveness probe then gets 503, and the pod is restarted with all its calls
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        worker = await pods.worker()
        idle = [await asyncio.open_connection("127.0.0.1", worker.admin_port) for _ in range(100)]
        try:
            await asyncio.sleep(0.2)  # nothing tells when the pod has accepted them
            status, _ = await asyncio.to_thread(worker.get, "/healthz")
            assert status == 200
        finally:
            for _, writer in idle:
                writer.close()


async def test_a_transcript_that_is_followed_goes_on_after_a_short_outage_of_redis(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    # api.py `follow` lets RedisUnavailable out: the stream breaks off, `bridgectl transcript --follow` ends with 1
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_server.url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with api(edge) as client, calling(edge) as call:
            path = f"/v1/calls/{call.conversation_id}/transcript?follow=true"
            seen: list[str] = []

            async def read() -> None:
                async with client.stream("GET", path, timeout=60) as answer:
                    async for line in answer.aiter_lines():
                        seen.append(line)

            reading = asyncio.create_task(read())
            await call.say("thank_you")
            await call.wait_answer()
            await edge.until(lambda: any("You are welcome." in line for line in seen), 10, "the first line")
            redis_server.pause()
            await asyncio.sleep(6)  # the outage
            redis_server.resume()
            await asyncio.sleep(3)  # it is over for every connection: the end of the call is told as usual
            await call.hang_up()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(reading, 15)
            assert "event: end" in seen


# ── forget ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_forget_nothing_in_redis_has_a_trace_of_the_call(redis_url: str, tmp_path: Path) -> None:
    # calls.py `forget` deletes four keys; {fleet}:offers has the cid for up to 10,000 calls, call:{cid}:cmd:*
    # stays a minute, the last entries of both inboxes until the next ones come
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (server, _):
            async with calling(edge) as call:
                await call.say("thank_you")
                await call.wait_answer()
                cid = call.conversation_id
                assert (await bridgectl(redis_url, "hangup", cid)).returncode == 0
                await call.wait_end()
            await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")
            assert (await bridgectl(redis_url, "forget", cid)).returncode == 0
            await asyncio.sleep(3)  # inboxes are trimmed once a second
            traces = []
            for key in await server.execute_again("KEYS", "*"):
                kind = await server.execute_again("TYPE", key)
                if cid.encode() in key:
                    traces.append(key)
                elif kind == "stream" or kind == b"stream":
                    content = str(await server.execute_again("XRANGE", key, "-", "+"))
                    traces += [key] if cid in content else []
            assert traces == []


# ── more of the same ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_command_is_acknowledged_only_by_an_owner_that_has_begun_it(redis_url: str, tmp_path: Path) -> None:
    # remote.py:49: the mark `call:{cid}:cmd:<id>` is set before the deed; of an owner that dies in between the next one
    # takes the mark for done and answers OK
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (server, calls), calling(edge) as call:
            cid, commands = call.conversation_id, Commands(server)
            record = await calls.read(cid)
            assert record is not None
            mark = f"{record.we - 1} 0 other"  # by a former owner, which was killed then
            await server.execute_again("HSET", CallKeys.of(cid).commands, "one", mark)
            dtmf = [{"type": "event", "name": "sendDtmf", "activityParams": {"dtmfDigits": "1"}}]
            answer = await commands.ask(record.owner, "activities", 2.0, cid=cid, arguments=[dtmf], command="one")
            await call.send_dtmf("1")
            done = True
            try:
                await edge.until(lambda: _digits(call) == ["1"], 5, "the digits")
            except TimeoutError:
                done = False
            assert (answer, done) != (b"ok", False)


HELD = """
@bridge.on("activity")
async def keys(session, event):
    if event.activity.get("value") == "9":
        await asyncio.sleep(25)

@bridge.on("conversation_text")
async def said(session, event):
    session.data["said"] = event.content
    print("set", flush=True)
"""


async def test_session_data_is_written_at_once_whatever_another_handler_does(redis_url: str, tmp_path: Path) -> None:
    # conversation.py:236: nothing is written while any `activity` handler runs (30 s at most, longer with a transfer in
    # it), what handlers of the agent's lane set neither
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, HELD)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with redis(redis_url) as (_, calls), calling(edge) as call:
            await call.send_dtmf("9")
            await call.say("thank_you")
            await worker.until(lambda: "set" in worker.stdout, 15, "the handler")

            async def stored() -> bool:
                record = await calls.read(call.conversation_id)
                return record is not None and "data" in record.raw

            await worker.until(stored, 5, "the data in Redis")


POISON = """
import os
@bridge.on("session_end")
async def crm(session, event):
    print("attempt", event.attempt, flush=True)
    os._exit(9)  # as a native library that crashes, or the kernel for want of memory
"""


async def test_a_finish_that_takes_its_worker_down_is_tried_with_backoff_too(redis_url: str, tmp_path: Path) -> None:
    # finisher.py: only a handler that has returned leads to `_again`; nothing is postponed at the claim, so the next
    # worker takes the call at once, and the next, and it is never given up
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path, POISON)) as pods,
        redis(redis_url) as (_, calls),
    ):
        workers = await asyncio.gather(*(pods.worker() for _ in range(4)))
        await owed(calls, "poison", bridge="8000")
        await workers[0].until(lambda: sum(not worker.running for worker in workers) >= 1, 15, "the first death")
        with contextlib.suppress(TimeoutError):  # three tries wait 1 + 5 + 30 s at least
            await workers[0].until(lambda: sum(not worker.running for worker in workers) == 4, 20, "the last")
        assert any(worker.running for worker in workers)


FIRST_EDITION = """
@bridge.on("session_end")
async def crm(session, event):
    print("crm", event.attempt, flush=True)

@bridge.on("session_end")
async def mail(session, event):
    raise RuntimeError("no mail today")
"""
SECOND_EDITION = """
@bridge.on("session_end")
async def audit(session, event):
    print("audit", event.attempt, flush=True)
""" + FIRST_EDITION.replace('raise RuntimeError("no mail today")', 'print("mail", flush=True)')


async def test_a_handler_that_has_succeeded_does_not_run_again_in_a_newer_edition_of_the_application(
    redis_url: str, tmp_path: Path
) -> None:
    # handlers.py `handler_key`: the number in the order of registration is part of the name, so one more handler in
    # front, in a rolling deploy, renames all others
    (tmp_path / "new").mkdir()
    new = application(tmp_path / "new", SECOND_EDITION)
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path, FIRST_EDITION)) as pods:
        edge, first = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        await first.until_logged("session_end handlers failed, they will be run again")
        assert "crm 1" in first.stdout
        pods._app = new
        second = await pods.worker()
        first.terminate()
        await second.until(lambda: "mail" in second.stdout, 20, "the rest of the finish")
        assert "crm" not in second.stdout


async def test_bridgectl_refuses_what_the_api_refuses(redis_url: str, tmp_path: Path) -> None:
    # cli.py: TARGET and TEXT are not looked at, so `bridgectl transfer $CID "$UNSET"` sends a caller to nowhere
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            done = await bridgectl(redis_url, "transfer", call.conversation_id, "")
            assert done.returncode != 0


async def test_the_store_says_none_for_an_id_that_no_call_can_have(redis_url: str) -> None:
    # calls.py CallKeys.of raises CallUnknown; store.py promises None, and no error but RedisUnavailable
    async with CallStore(redis_url) as store:
        assert await store.get("no call") is None


async def test_the_page_counts_all_live_calls(redis_url: str, tmp_path: Path) -> None:
    # page.py: one page of /v1/calls, `next` is not looked at
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
        redis(redis_url) as (_, calls),
    ):
        worker = await pods.worker()
        for number in range(101):
            await calls.attach(f"c{number}", edge="edge-1", new={"bridge": "8000"})
        page = await browse(f"http://127.0.0.1:{worker.admin_port}/#{TOKEN}", tmp_path, "--dump-dom")
        assert "(101)" in page, page[page.index('id="many"') :][:40]
