"""How a call comes to this socket: VAIC places it (`session.initiate`) or goes on with it (`session.resume`).

A new call is created in Redis and offered to the workers until one has accepted it; a live one that has lost its
socket, or its edge, is attached to this socket with a higher epoch, so that the former one is left out
(shared/README.md, Rules).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bridge_shared import logs, tracing
from bridge_shared.errors import BridgeError
from bridge_shared.protocol import audiocodes as vaic
from bridge_shared.protocol.media import FORMATS, choose
from bridge_shared.redis.calls import CallRecord

if TYPE_CHECKING:
    from bridge_edge.call import Call

log = logs.get("edge.call")

OFFER_AGAIN_SECONDS = 0.5
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 2.0, 0.1
"""A call to be resumed is looked for this long: Redis may have been emptied, and its owner is putting it back."""

OWNER_SECONDS = 0.2
"""A caller who comes back waits so long at most for the owner to know it; until then the owner sends to the former
edge, which may not know either that VAIC has left."""


async def set_up(call: Call, initiate: vaic.Initiate) -> None:
    """Place a new call; it is accepted or refused when this returns. Cancelling it leaves that to whoever cancels."""
    cid, began_ns = initiate.conversation_id, tracing.now_ns()
    if not initiate.valid_id:
        return await call.refuse("conversation", "conversationId must be 1-128 characters of A-Z a-z 0-9 . _ -", end="")
    call.cid = cid
    if call.on_call is not None:
        call.on_call(cid)
    offered = initiate.formats or ()
    chosen, wanted = choose(call.door.formats, offered), call.door.play_format
    play = choose((wanted,), offered) if wanted is not None else None
    fields = {
        "caller": initiate.caller or "",
        "bot": initiate.bot_name or "",
        "media_format": chosen or "",
        "play_format": play if play is not None and play != chosen else "",
    }
    deadline = call.edge.loop.time() + call.edge.settings.accept_timeout
    try:
        bridge = call.bridge = fields["bridge"] = await call.edge.bridge(call.door, call.socket)
        if not bridge:
            return await call.refuse("no_worker", "No worker serves this path", end="")
        if call.edge.full:
            return await call.refuse("edge_full", "This bridge is at its capacity", end="")
        why = call.edge.refusal(bridge)
        if why is not None and await call.edge.calls.read(cid) is None:  # a live call may come back
            return await call.refuse("no_room", why, end="")
        attached = await call.edge.calls.attach(cid, edge=call.edge.pod, new=fields)
        call.ours = attached.status == "created"
        if attached.status == "live" and call.edge.deserted(attached.record):
            if attached.record is None or not _formats(attached.record) <= set(offered):
                return await call.refuse("format", "The conversation is live in another media format", end="")
            return await _go_on(call, bridge)
        if attached.status != "created":
            return await call.refuse("conversation", f"Conversation {cid} is {attached.status} already", end="")
        call.span = call.edge.tracing.call(cid, began_ns, bridge=bridge, media_format=chosen or "", epoch=attached.ee)
        if not initiate.expect_audio:
            return await call.refuse(
                "format", "This bot speaks; it needs expectAudioMessages (directTTS)", end="hangup"
            )
        if chosen is None:
            return await call.refuse("format", "No common media format", end="hangup")
        if wanted is not None and play is None:
            log.warning(
                "play_media_format is not offered by VAIC: the agent speaks in the caller's format; choose another",
                cid=cid,
                wanted=wanted,
                offered=[token for token in FORMATS if token in offered],
            )
        call.attach(attached, chosen, fields["play_format"])
        await _accepted_by(call, deadline, bridge)
    except BridgeError as error:
        log.warning("call could not be set up", cid=cid, error=str(error))
        await call.refuse("redis", "The bridge cannot take calls at the moment")


async def resume(call: Call, asked: vaic.Resume) -> None:
    """Go on with a live call; it is attached or refused when this returns. Cancelling it as for `set_up`."""
    cid = asked.conversation_id
    if not asked.valid_id:
        return await call.refuse("not_found", "Unknown conversation", end="")
    call.cid = cid
    try:
        call.bridge = await call.edge.bridge(call.door, call.socket)
        await _go_on(call, call.bridge)
    except BridgeError as error:
        log.warning("call could not be resumed", cid=cid, error=str(error))
        await call.refuse("redis", "The bridge cannot take calls at the moment", end="")


async def _go_on(call: Call, bridge: str) -> None:
    """Take over a call that has lost its socket, or its edge."""
    calls, missing = call.edge.calls, "Conversation not found"
    record = await _look(call)
    if record is None or record.bridge != bridge:  # looked at first: attaching takes it from its present edge
        return await call.refuse("not_found", missing, end="")
    attached = await calls.attach(call.cid, edge=call.edge.pod, new=None)
    if attached.status != "attached" or (record := attached.record) is None:
        return await call.refuse("not_found", missing, end="")
    call.span = call.edge.tracing.part(
        "attachment",
        call.cid,
        bridge=bridge,
        media_format=record.media_format,
        epoch=attached.ee,
        former_edge=attached.former_edge,
    )
    call.attach(attached, record.media_format, record.play_format, live=record.state == "active")
    if record.state != "active":
        return await _accepted_by(call, call.edge.loop.time() + call.edge.settings.accept_timeout, bridge)
    if call.ended_by_peer:  # while the call was being attached
        return call.tell_end()
    if call.gone:  # meanwhile; nobody knew then whose call it was
        call.tell_lost()
    elif attached.we and not call.edge.dead(attached.owner):
        await call.within(OWNER_SECONDS, lambda: call.gone or call.bot.state != "initiated")
    call.go_on()
    call.pump()


def _formats(record: CallRecord) -> set[str]:
    """All that VAIC has to know for this call."""
    return {record.media_format, record.play_format or record.media_format}


async def _look(call: Call) -> CallRecord | None:
    """The call as Redis has it; None if it is not there for a while."""
    until = call.edge.loop.time() + LOOK_SECONDS
    while True:
        record = await call.edge.calls.read(call.cid)
        if record is not None or call.gone or call.edge.loop.time() >= until:
            return record
        await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def _accepted_by(call: Call, deadline: float, bridge: str) -> None:
    """Offer the call until a worker answers; refuse it if none has by then."""
    assert call.link is not None
    if call.gone or call.ended_by_peer:  # while the call was being created
        await call.end_in_redis("hangup" if call.ended_by_peer else "ended", "abandoned")
        return call.over.set()
    try:
        async with asyncio.timeout_at(deadline):
            while not call.answer.done():
                if not call.link.connected:
                    await call.edge.offer(call.cid, bridge, call.link)
                await asyncio.wait([call.answer], timeout=OFFER_AGAIN_SECONDS)
    except TimeoutError:
        pass
    if call.gone or call.ended_by_peer:
        return  # whoever noticed that ends the call
    if not call.answer.done():
        reason = "The agent is not ready in time" if call.link.connected else "No worker is free to take the call"
        await call.refuse("agent_slow" if call.link.connected else "no_worker", reason)
    elif (refusal := call.answer.result()) is not None:
        call.ends("refused", tracing.word(refusal))  # the rest is what others say
        await call.refuse("agent", refusal)
