"""The rendered chart, run: the manifests' own commands, variables, files and probes as local processes."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from pathlib import Path

import pytest

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.caller import CallPlan, SimulatedCall
from machine import Machine
from rendered import ROOT, SIMULATED, template

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CALLERS = 20
SENTENCES = ("thank_you", "opening_hours", "greeting_hello", "change_address")


async def test_what_the_chart_starts_takes_a_call_and_ends_cleanly() -> None:
    """Redis, simulated agent, two workers, two edges, `helm test`; then each pod ends within its grace period."""
    async with Machine(template()) as machine:
        await machine.start()
        code, output = await machine.helm_test()
        assert code == 0, output
        assert "transcript: user" in output
        assert "transcript: assistant" in output
        for name in ("bridge-edge", "bridge-worker"):
            assert await machine.scale(name, 0) == [0, 0]


async def test_helm_test_fails_when_no_worker_is_there() -> None:
    async with Machine(template()) as machine:
        await machine.start()
        assert await machine.scale("bridge-worker", 0) == [0, 0]
        code, output = await machine.helm_test()
        assert code == 1
        assert "the call failed" in output


async def test_an_application_of_ones_own_runs_from_its_config_map(tmp_path: Path) -> None:
    app = (ROOT / "worker/deepgram_audiocodes_bridge/demo/app.py").read_text()
    values = tmp_path / "values.yaml"
    greeting = "Hello, this is the parcel desk. How can I help you?"
    assert greeting in app
    indented = app.replace('"prompt": "You are', '"prompt": "Of my own. You are').replace("\n", "\n    ")
    values.write_text(f"agent: {{simulated: true}}\napp:\n  file: desk.py\n  inline: |\n    {indented}\n")
    async with Machine(template(values, "edge.replicas=1", "worker.replicas=1")) as machine:
        await machine.start()
        code, output = await machine.helm_test()
        assert code == 0, output
        assert any("desk.py" in word for word in machine.running["bridge-worker"][0]._command)


async def test_workers_are_scaled_from_one_to_four_to_one_under_twenty_live_calls_and_none_is_lost() -> None:
    async with Machine(template(SIMULATED, "worker.replicas=1")) as machine:
        await machine.start()
        calls = [
            SimulatedCall(url, CallPlan(turn_timeout_s=45), token=machine.token())
            for url, _ in zip(itertools.cycle(machine.edges()), range(CALLERS), strict=False)
        ]
        stop, begun = asyncio.Event(), asyncio.Semaphore(0)

        async def talk(call: SimulatedCall) -> None:
            async with call:
                await call.connect()
                await call.initiate()
                for sentence in itertools.cycle(SENTENCES):
                    await call.say(sentence)
                    await call.wait_answer()
                    begun.release()
                    if stop.is_set():
                        break
                await call.hang_up()

        async with asyncio.TaskGroup() as tasks:
            for call in calls:
                tasks.create_task(talk(call))
            for _ in range(CALLERS):
                await begun.acquire()
            assert await machine.scale("bridge-worker", 4) == []
            assert await machine.scale("bridge-worker", 1) == [0, 0, 0]
            stop.set()

        reports = [call.report() for call in calls]
        assert [(r.problem, r.violations) for r in reports] == [(None, [])] * CALLERS
        server = await connect(machine.redis_url, name="test")
        try:
            stored = Calls(server, "fleet", transcript_ttl=3600)
            for report in reports:
                lines = [(line.role, line.content) for line in await stored.transcript(report.conversation_id)]
                assert [role for role, _ in lines].count("user") == len(report.answer_ms)
        finally:
            await server.close()
        answers = [ms for report in reports for ms in report.answer_ms]
        print(f"answers {len(answers)}, p50 {statistics.median(answers):.0f} ms, max {max(answers):.0f} ms")
