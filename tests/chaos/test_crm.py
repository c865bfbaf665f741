"""Everybody who has to do with a call dies around its end, and the CRM has it once, whole. With example 06 as it is."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from harness import free_port
from pods import Pods, Program

EXAMPLE = Path(__file__).parents[2] / "worker" / "examples" / "06_crm"
SLOW_SECONDS = "2"
"""Between the moment when the CRM has stored a record and its answer: whoever dies in it does not know."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def stored(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return dict(json.load(answer))


async def test_owner_then_edge_then_finisher_die_and_the_crm_has_one_record_with_the_whole_transcript(
    redis_url: str, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/records"
    crm = Program("crm", [sys.executable, str(EXAMPLE / "crm.py"), str(port), SLOW_SECONDS], {}, tmp_path).start()
    settings = {"CRM_URL": url, "CRM_FILE": str(tmp_path / "records.jsonl"), "DEEPGRAM_API_KEY": "test-key"}
    try:
        async with (
            SimulatedAgent(AgentScript(think_s=0.0)) as agent,
            Pods(redis_url, agent.url, EXAMPLE / "app.py", **settings) as pods,
        ):
            await crm.until(lambda: "http" in crm.stdout, 10, "the CRM")
            first_edge, edge, owner = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
            plan = CallPlan(turn_timeout_s=40, resume_url=edge.url, resume_after_s=0.1)
            async with SimulatedCall(first_edge.url, plan) as call:
                await call.connect()
                await call.initiate()
                await call.wait_greeting()
                await call.say("thank_you")
                await call.wait_answer()
                finisher = await pods.worker()
                owner.kill()
                await call.say("opening_hours")
                await call.wait_answer()
                first_edge.kill()
                await edge.until(lambda: call.report().resume_ms, 20, "the resume")
                await call.say("thank_you")
                await call.wait_answer()
                await call.hang_up()
            await crm.until(lambda: stored(url)["posts"] == 1, 20, "the first record")
            finisher.kill()  # the CRM has stored it, and not answered
            last = await pods.worker()
            await last.until((tmp_path / "records.jsonl").exists, 30, "the line in the file")
            await last.until(lambda: stored(url)["posts"] >= 2, 20, "the second try")
            records = stored(url)["records"]
            lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    finally:
        crm.close()
    assert [record["conversation_id"] for record in records] == [call.conversation_id]
    for record in (*records, *lines):
        del record["seconds"]  # by the owner's clock in one, by Redis's in the other
    assert lines == records
    said = [(line["role"], line["content"]) for line in records[0]["transcript"]]
    assert [role for role, _ in said] == ["assistant", *["user", "assistant"] * 3]
    assert records[0]["disposition"] == "hangup"
