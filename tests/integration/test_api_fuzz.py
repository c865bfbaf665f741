"""The admin API against its own OpenAPI document: whatever is asked, the answer is one that the document names."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application, environment

TOKEN = "0815-token"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_no_request_makes_the_api_answer_what_its_document_does_not_name(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0.0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        plan = CallPlan(turn_timeout_s=40)
        async with SimulatedCall(edge.url, plan) as call, SimulatedCall(edge.url, plan) as victim:
            for one in (call, victim):
                await one.connect()
                await one.initiate()
            await fuzz(edge, tmp_path, cid="")
            await fuzz(edge, tmp_path, cid=victim.conversation_id)
            await call.say("thank_you")
            await call.wait_answer()
            await call.hang_up()
        assert worker.running and edge.running
        assert (call.report().problem, call.report().violations) == (None, [])


async def fuzz(pod: Pod, folder: Path, *, cid: str) -> None:
    """Ask everything of the document, of any call or of this one only."""
    (folder / "schemathesis.toml").write_text(f'[parameters]\n"path.cid" = "{cid}"\n' if cid else "")
    at = f"http://127.0.0.1:{pod.admin_port}"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{at}/v1/openapi.json", "--url", at]
    options = ["--max-examples", "25", "--seed", "1", "--workers", "1", "--phases", "examples,coverage,fuzzing"]
    checks = ["--checks", "not_a_server_error,status_code_conformance,response_schema_conformance"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--header", f"Authorization: Bearer {TOKEN}", *options, *checks],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=folder,
        env=environment({}),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
