"""A call whose owner is dead: it is offered to the other workers, and when nobody takes it the caller is not left
in silence: it is transferred, or told why and ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from bridge_edge.opening import OFFER_AGAIN_SECONDS
from bridge_shared import logs
from bridge_shared.link import Link

if TYPE_CHECKING:
    from bridge_edge.call import Call

log = logs.get("edge.call")

ORPHAN_SECONDS = 20.0
"""A call whose owner is dead waits so long for another one."""


async def find_owner(call: Call, link: Link) -> None:
    """Offer the call until it has another owner or the dead one shows life. Cancelling it stops the offering."""
    owner, epoch = link.peer_pod, link.peer_epoch
    log.warning("the owner of the call is dead", cid=call.cid, owner=owner)
    until = call.edge.loop.time() + ORPHAN_SECONDS
    while link.peer_epoch == epoch and call.edge.dead(owner) and not call.over.is_set():
        if call.edge.loop.time() >= until:
            return await _fail_over(call, "No worker is free to go on with the call")
        await call.edge.offer(call.cid, call.bridge, link, owner, epoch)
        await asyncio.sleep(OFFER_AGAIN_SECONDS)


async def _fail_over(call: Call, why: str) -> None:
    """Nobody goes on with the call: transfer the caller to the failover target if there is one, or say why not."""
    settings = call.edge.settings
    if settings.failover_target is None or call.gone or call.bot.state != "accepted":
        return await call.refuse("orphaned", why)
    log.warning("no worker goes on with the call, transferring it", cid=call.cid)
    await call.end_in_redis("error", why)
    parameters = {"transferTarget": settings.failover_target}
    call.send(call.bot.activities([{"type": "event", "name": "transfer", "activityParams": parameters}]))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.transfer_wait_seconds):
            await call.over.wait()  # VAIC ends the call when the transfer has come about
    call.give_up(why)
