"""Calls from outside: the admin API, `bridgectl`, and any program with `CallStore`."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge_shared.api import transfer_target
from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import AgentScript, SimulatedAgent
from conftest import RedisServer
from deepgram_audiocodes_bridge.store import CallStore
from pods import Pod, Pods, application, calling, environment

QUICK = AgentScript(think_s=0.0)
TOKEN = "0815-token"

BROKEN = """
import pathlib
@bridge.on("session_end")
def crm(session, event):
    if not pathlib.Path({path!r}).exists():
        raise RuntimeError("the CRM is away")
    print("crm", session.conversation_id, event.attempt, flush=True)
"""


def api(pod: Pod, token: str | None = TOKEN) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{pod.admin_port}", headers=headers, trust_env=False)


async def bridgectl(redis_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", *arguments]
    variables = environment({"REDIS_URL": redis_url})
    return await asyncio.to_thread(
        subprocess.run, command, env=variables, capture_output=True, text=True, timeout=30, check=False
    )


async def test_a_call_is_seen_and_acted_on_through_the_api_of_any_pod(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with api(edge) as at_edge, api(worker) as at_worker:
            async with calling(edge) as call:
                cid = call.conversation_id
                for pod in (at_edge, at_worker):
                    page = (await pod.get("/v1/calls")).json()
                    assert [c["conversation_id"] for c in page["calls"]] == [cid]
                    assert page["next"] is None
                seen = (await at_edge.get(f"/v1/calls/{cid}")).json()
                assert (seen["state"], seen["caller"], seen["owner"] != "") == ("active", "+4930123456", True)
                follow = asyncio.create_task(_events(at_worker, f"/v1/calls/{cid}/transcript?follow=true"))
                assert (
                    await at_edge.post(f"/v1/calls/{cid}/say", json={"text": "You are welcome."})
                ).status_code == 202
                await agent.connections[0].wait_for(lambda a: ("assistant", "You are welcome.") in a.texts, 10)
                assert (await at_edge.post(f"/v1/calls/{cid}/hangup")).status_code == 202
                await call.wait_end()
            assert [json.loads(line)["content"] for line in await follow] == ["You are welcome."]
            await worker.until(lambda: "session_end ended" in worker.stdout, 10, "the finish")
            for path in ("hangup", "finish"):
                answer = await at_edge.post(f"/v1/calls/{cid}/{path}")
                assert (answer.status_code, "detail" in answer.json()) == (409, True)
            lines = (await at_worker.get(f"/v1/calls/{cid}/transcript")).json()["lines"]
            assert [line["content"] for line in lines] == ["You are welcome."]
    assert [activity["name"] for activity in call.report().activities] == ["hangup"]


async def test_commands_that_name_a_call_reach_those_of_another_fleet_on_the_same_redis(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_FLEET="the-other") as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            cid = call.conversation_id
            assert json.loads((await bridgectl(redis_url, "calls", "--json")).stdout) == []
            assert (await bridgectl(redis_url, "say", cid, "You are welcome.")).returncode == 0
            await agent.connections[0].wait_for(lambda a: ("assistant", "You are welcome.") in a.texts, 10)
            follow = asyncio.create_task(bridgectl(redis_url, "transcript", cid, "--follow"))
            assert (await bridgectl(redis_url, "hangup", cid)).returncode == 0
            await call.wait_end()
        assert "assistant  You are welcome." in (await follow).stdout


async def test_the_api_injects_amends_the_prompt_plays_and_sends_digits(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(), pods.worker())
        async with api(edge) as client, calling(edge) as call:
            bodies: dict[str, dict[str, str]] = {
                "prompt": {"prompt": "Be brief."},
                "inject": {"text": "What did I say first?"},
                "dtmf": {"digits": "47#"},
                "play": {"url": "https://example.org/a.wav"},
            }
            for name, body in bodies.items():
                answer = await client.post(f"/v1/calls/{call.conversation_id}/{name}", json=body)
                assert answer.status_code == 202, name
            connection = agent.connections[0]
            await connection.wait_for(lambda a: ("prompt", "Be brief.") in a.updates, 10)
            await connection.wait_for(lambda a: ("user", "What did I say first?") in a.injections, 10)
            await edge.until(lambda: len(call.report().activities) == 2, 10, "the activities")
            await call.hang_up()
    sent = [(activity["name"], activity["activityParams"]) for activity in call.report().activities]
    assert sent == [
        ("sendDtmf", {"dtmfDigits": "47#"}),
        ("playUrl", {"playUrlUrl": "https://example.org/a.wav"}),
    ]


async def _events(client: httpx.AsyncClient, path: str) -> list[str]:
    async with client.stream("GET", path, timeout=30) as answer:
        lines = [line async for line in answer.aiter_lines()]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert lines[-3:] == ["event: end", "data: {}", ""]
    return data[:-1]


async def test_the_api_says_what_is_wrong_with_a_request(redis_url: str, tmp_path: Path) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        open_one, closed = await asyncio.gather(pods.worker(BRIDGE_ADMIN_TOKEN=TOKEN), pods.worker())
        async with api(open_one) as known, api(open_one, "wrong") as stranger, api(closed) as nobody:
            assert (await nobody.get("/v1/calls")).status_code == 403
            assert (await stranger.get("/v1/calls")).status_code == 401
            assert (await stranger.get("/readyz")).status_code == 200
            unknown = await known.get("/v1/calls/nobody")
            assert (unknown.status_code, unknown.json()) == (404, {"detail": "no call 'nobody' is known"})
            for path in ("hangup", "say", "transfer", "finish"):
                body: dict[str, Any] = {"text": "x", "target": "tel:1"}
                assert (await known.post(f"/v1/calls/nobody/{path}", json=body)).status_code == 404
            odd = await known.post("/v1/calls/nobody/say", json={"text": ""})
            assert (odd.status_code, odd.json()["detail"][0]["loc"]) == (422, ["body", "text"])
            for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
                sent = {"content": b'{"text": "x"}', "headers": {"Content-Type": kind}}
                unnamed = await known.post("/v1/calls/nobody/say", **sent)
                said = {"detail": "Send the body as JSON, with the header Content-Type: application/json"}
                assert (unnamed.status_code, unnamed.json()) == (415, said)
            nowhere = await known.post("/v1/calls/nobody/transfer", json={"target": "not a number"})
            sentence = "'not a number' is no target of a transfer: give a tel: or sip: URI, or a number"
            assert (nowhere.status_code, nowhere.json()["detail"][0]["msg"]) == (422, sentence)
            assert (await known.get("/v1/calls/a b")).status_code == 422
            paths = (await known.get("/v1/openapi.json")).json()["paths"]
            assert "/v1/calls/{cid}/transcript" in paths


async def test_while_redis_is_away_the_api_says_so_and_pods_are_not_ready(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(QUICK) as agent,
        Pods(redis_server.url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        redis_server.pause()
        try:
            async with api(edge) as known:
                answer = await known.get("/v1/calls", timeout=20)
                assert (answer.status_code, list(answer.json())) == (503, ["detail"])
            for pod in (edge, worker):
                await pod.until(lambda pod=pod: pod.get("/readyz")[0] == 503, 15, "being not ready")
                assert pod.get("/healthz")[0] == 200
        finally:
            redis_server.resume()
        for pod in (edge, worker):
            await pod.until(lambda pod=pod: pod.get("/readyz")[0] == 200, 15, "being ready again")


@pytest.mark.timeout(180)  # a dozen commands, each a process
async def test_bridgectl_shows_calls_and_acts_on_them(redis_url: str, tmp_path: Path) -> None:
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            cid = call.conversation_id
            assert cid in (await bridgectl(redis_url, "calls")).stdout
            shown = json.loads((await bridgectl(redis_url, "calls", "--json")).stdout)
            assert [c["conversation_id"] for c in shown] == [cid]
            live = await bridgectl(redis_url, "forget", cid)
            assert (live.returncode, "it is live" in live.stderr) == (1, True)
            live = await bridgectl(redis_url, "finish", cid)
            assert (live.returncode, "nothing is owed yet: it is live" in live.stderr) == (1, True)
            told = await bridgectl(redis_url, "say", cid, "You are welcome.")
            assert (told.returncode, told.stdout) == (0, f"{cid} will hear it after what the agent is saying\n")
            await agent.connections[0].wait_for(lambda a: ("assistant", "You are welcome.") in a.texts, 10)
            follow = asyncio.create_task(bridgectl(redis_url, "transcript", cid, "--follow"))
            nowhere = await bridgectl(redis_url, "transfer", cid, "not a number")
            assert (nowhere.returncode, "is no target of a transfer" in nowhere.stderr) == (1, True)
            assert (await bridgectl(redis_url, "transfer", cid, "tel:+49301")).returncode == 0
            await call.wait_end()
        assert "assistant  You are welcome." in (await follow).stdout
        await worker.until(lambda: "session_end transfer" in worker.stdout, 10, "the finish")
        for command in (["hangup"], ["transcript"], ["say", "x"], ["finish"], ["forget"]):
            unknown = await bridgectl(redis_url, command[0], "nobody", *command[1:])
            assert (unknown.returncode, unknown.stderr) == (3, "bridgectl: no call 'nobody' is known\n")
        async with CallStore(redis_url) as store:
            assert [line.content async for line in store.follow(cid)] == ["You are welcome."]
            record = await store.get(cid)
            assert record is not None and record.reason == "transfer"
            assert await store.live() == []
        assert (await bridgectl(redis_url, "forget", cid)).returncode == 0
        assert (await bridgectl(redis_url, "transcript", cid)).returncode == 3


@pytest.mark.parametrize("target", ["tel:+49301", "sip:queue7@pbx.example.net", "SIPS:a@b", "+49 (30) 123-45", "112"])
def test_a_transfer_goes_to_a_uri_or_a_number(target: str) -> None:
    assert transfer_target(target) == target


@pytest.mark.parametrize("target", ["", " ", "tel:", "not a number", "mailto:a@b", "tel:1 2", "queue7", "49\n"])
def test_a_transfer_to_anything_else_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="give a tel: or sip: URI, or a number"):
        transfer_target(target)


async def test_a_finish_that_was_given_up_is_listed_as_such(redis_url: str) -> None:
    server = await connect(redis_url, name="test")
    try:
        calls = Calls(server, "fleet", transcript_ttl=3600)
        await calls.attach("ours", edge="edge-gone", new={"bridge": "8000", "media_format": "raw/mulaw"})
        await calls.end("ours", reason="error", detail="lost", report=True)
        await calls.give_up("ours")
    finally:
        await server.close()
    (row,) = json.loads((await bridgectl(redis_url, "unfinished", "--json")).stdout)
    assert (row["conversation_id"], row["state"], row["next_try_s"]) == ("ours", "given_up", None)
    table = (await bridgectl(redis_url, "unfinished")).stdout
    assert re.search(r"ours +given up +0 +none: bridgectl finish ours", table)
    refused = await bridgectl(redis_url, "forget", "ours")
    assert "its session_end handlers have not succeeded (0 tries)" in refused.stderr


async def test_a_call_store_that_is_not_entered_or_was_left_says_how_to_use_it(redis_url: str) -> None:
    async with CallStore(redis_url) as left:
        assert await left.live() == []
    for store in (CallStore(redis_url), left):
        for use in (store.live(), store.get("x"), store.transcript("x"), anext(store.follow("x"))):
            with pytest.raises(RuntimeError, match=r"^CallStore is not connected: use it as 'async with CallStore\(…"):
                await use


async def test_a_call_whose_session_end_handlers_are_owed_is_forgotten_only_by_force(
    redis_url: str, tmp_path: Path
) -> None:
    app = application(tmp_path, BROKEN.format(path=str(tmp_path / "back")))
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        cid = call.conversation_id
        failed = await worker.until_logged("session_end handlers failed, they will be run again")
        assert (failed["cid"], failed["handlers"], failed["next_try_s"]) == (cid, ["__main__.crm"], 1.0)
        assert (await worker.until_logged("handler raised"))["cid"] == cid
        assert [line["cid"] for line in worker.logged("agent connected")] == [cid]
        refused = await bridgectl(redis_url, "forget", cid)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"bridgectl: call '{cid}': its session_end handlers have not succeeded (" in refused.stderr
        assert f"Run 'bridgectl finish {cid}' first, or give --force" in refused.stderr
        assert (await bridgectl(redis_url, "transcript", cid)).returncode == 0
        assert (await bridgectl(redis_url, "forget", cid, "--force")).returncode == 0
        assert (await bridgectl(redis_url, "transcript", cid)).returncode == 3


async def test_a_finish_that_failed_is_listed_and_run_again_on_demand(redis_url: str, tmp_path: Path) -> None:
    app = application(tmp_path, BROKEN.format(path=str(tmp_path / "back")))
    async with SimulatedAgent(QUICK) as agent, Pods(redis_url, agent.url, app) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with calling(edge) as call:
            await call.hang_up()
        cid = call.conversation_id

        async def listed() -> bool:
            rows = json.loads((await bridgectl(redis_url, "unfinished", "--json")).stdout)
            keys = [(row["conversation_id"], row["call"], row["state"]) for row in rows]
            return keys == [(cid, cid, "owed")] and rows[0]["error"] == "__main__.crm: RuntimeError"

        await worker.until(listed, 20, "the failed finish")
        (tmp_path / "back").touch()
        tried = await bridgectl(redis_url, "finish", cid)  # a refusal would mean that it was done in this moment
        lists = f"{cid} is being tried again; 'bridgectl unfinished' lists it if it fails\n"
        assert tried.stdout == lists or "its finish is done" in tried.stderr
        await worker.until(lambda: f"crm {cid}" in worker.stdout, 20, "the finish")
        assert worker.stdout.count("crm ") == 1
        again = await bridgectl(redis_url, "finish", cid)
        said = f"bridgectl: call '{cid}': nothing is owed: its finish is done\n"
        assert (again.returncode, again.stderr) == (1, said)
