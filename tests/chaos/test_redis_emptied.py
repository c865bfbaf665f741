"""Redis loses everything in the middle of a call: the pods write it again from what they hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, running


async def test_after_redis_was_emptied_the_call_goes_on_and_its_whole_transcript_is_there(
    redis_server, eventually: Callable[..., Awaitable[None]]
) -> None:
    bridge = DeepgramBridge(configuration())
    ended = []
    bridge.on("session_end")(lambda session, event: ended.append((event.reason, len(session.get_transcript()))))
    async with (
        SimulatedAgent(AgentScript(think_s=0.0)) as agent,
        running(bridge, redis_server.url, agent) as app,
        SimulatedCall(app.url, CallPlan(barge_in=True)) as call,
    ):
        await call.connect()
        await call.initiate()
        await call.say("thank_you")
        await call.wait_answer()
        redis_server.command("FLUSHALL")

        async def restored() -> bool:
            record = await app.calls("read", call.conversation_id)
            return record is not None and bool(record.owner) and bool(record.edge)

        await eventually(restored)
        await call.say("opening_hours")
        await call.wait_answer()
        await call.hang_up()
        await eventually(lambda: ended)
        lines = await app.calls("transcript", call.conversation_id)
        record = await app.calls("read", call.conversation_id)
    assert [line.content for line in lines] == [
        "Thank you very much for your help.",
        "You are welcome.",
        "What are your opening hours, please?",
        "We are open from eight to six, Monday to Friday.",
    ]
    assert ended == [("hangup", 4)]
    assert record.state == "ended" and record.reason == "hangup"
    assert len(agent.connections) == 1
    assert call.report().violations == []
