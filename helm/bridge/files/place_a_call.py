"""Place one simulated call and find what was said in Redis; `helm test` runs this. Exit code 0 if both went well.

usage: place_a_call.py URL      (REDIS_URL, AC_TOKEN and BRIDGE_FLEET as for a pod)
"""

import asyncio
import sys

from bridge_shared import config
from bridge_shared.redis.calls import Calls, Line
from bridge_shared.redis.connection import connect
from bridge_sim.caller import CallPlan, SimulatedCall

# In the order in which a caller of the parcel desk says them; any agent answers something.
SAID = ("where_is_my_parcel", "goodbye")
STORED_SECONDS = 10.0


async def place(url: str, settings: config.Settings) -> str | None:
    """Place a call, show it, and read its transcript. What went wrong, or None."""
    token = next(iter(settings.ac_tokens), None)
    call = SimulatedCall(url, CallPlan(say=SAID), token=token, on_event=lambda event: print(event.kind, event.text))
    report = await call.run()
    if report.problem is not None:
        return f"the call failed: {report.problem}"
    lines = await transcript(call.conversation_id, settings)
    for line in lines:
        print(f"transcript: {line.role}: {line.content}")
    if missing := {"user", "assistant"} - {line.role for line in lines}:
        return f"the transcript of {call.conversation_id} in Redis has no line of: {', '.join(sorted(missing))}"
    return None


async def transcript(cid: str, settings: config.Settings) -> list[Line]:
    """What Redis has of this call once both sides are in it, or after 10 s."""
    assert settings.redis_url is not None
    server = await connect(settings.redis_url, name="helm-test")
    try:
        calls = Calls(server, settings.fleet, transcript_ttl=settings.transcript_ttl)
        until = asyncio.get_running_loop().time() + STORED_SECONDS
        while True:
            lines = await calls.transcript(cid)
            if len({line.role for line in lines}) > 1 or asyncio.get_running_loop().time() > until:
                return lines
            await asyncio.sleep(0.2)
    finally:
        await server.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(place(sys.argv[1], config.load())))
