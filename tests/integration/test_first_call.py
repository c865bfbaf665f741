"""A call through the whole bridge: caller, edge, Redis, worker, agent and back."""

from __future__ import annotations

from typing import Any

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import GREETING, configuration, running


async def test_a_caller_talks_with_the_agent_and_the_conversation_is_in_redis(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(greeting=GREETING))
    seen: list[tuple[str, Any]] = []
    for name in ("session_start", "conversation_text", "session_end"):
        bridge.on(name)(lambda session, event, name=name: seen.append((name, event)))
    async with SimulatedAgent() as agent, running(bridge, redis_url, agent) as app:
        call = SimulatedCall(app.url, CallPlan(say=("where_is_my_parcel",)))
        report = await call.run()
        assert report.problem is None
        assert report.violations == []
        lines = await app.calls("transcript", call.conversation_id)
    assert [line.content for line in lines] == [
        GREETING,
        "Where is my parcel?",
        "I have found your parcel.",
        "It is on its way and arrives tomorrow.",
    ]
    assert [name for name, _ in seen] == ["session_start", *["conversation_text"] * 4, "session_end"]
    assert seen[-1][1].reason == "hangup"
