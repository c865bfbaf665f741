"""The admin API `/v1`: every live call from any pod. With `BRIDGE_ADMIN_TOKEN` as bearer token; 403 if there is none.

    GET  /v1/calls                        the live calls, oldest first, page by page
    GET  /v1/pods                         the pods and how full they are
    GET  /v1/calls/{cid}                  one call, live or kept
    GET  /v1/calls/{cid}/transcript       what was said; `?follow=true` streams it until the call ends
    POST /v1/calls/{cid}/hangup           also transfer, say, finish, inject, prompt, dtmf, play
    GET  /v1/openapi.json                 all of this for machines

The routes run in the loop that moves audio, like the rest of the admin port: an answer holds a hundred calls at most.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, Field

from bridge_shared import __version__
from bridge_shared.admin import Door
from bridge_shared.errors import BridgeError, CallOver, CallUnknown, CommandRefused, RedisUnavailable
from bridge_shared.page import PAGE as PAGE_HTML
from bridge_shared.redis.calls import CallRecord, Calls, Line
from bridge_shared.redis.fleet import Fleet, PodInfo
from bridge_shared.remote import Remote

PAGE: Final = 100
FOLLOW_SECONDS: Final = 0.25
AWAY_SECONDS: Final = 30.0
"""Who follows a call waits so long for a Redis that does not answer."""

LOST_SECONDS: Final = 5.0
"""And so long for its pods to write again what a Redis that was emptied has lost."""

ALIVE_SECONDS: Final = 15.0
"""A stream in which nothing is said shows by a comment that it lives."""

OUR_ERROR: Final = "Value error, "
"""Pydantic's word for a ValueError of ours, before its sentence."""

AS_JSON: Final = "Send the body as JSON, with the header Content-Type: application/json"

CURSOR: Final = r"^([0-9]{1,15}-[A-Za-z0-9._-]{1,128})?$"
"""Where a page begins: behind this call, by when it came; the call itself may have ended meanwhile."""

Cid = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="VoiceAI Connect's conversation id.")]


TARGET: Final = re.compile(r"^([Tt][Ee][Ll]:|[Ss][Ii][Pp][Ss]?:)[^\s]+$|^\+?[0-9][0-9 ()./-]*$", re.ASCII)
"""What VoiceAI Connect can transfer to, as far as its form tells."""


def transfer_target(target: str) -> str:
    """The target of a transfer that somebody asks for from outside.

    Raises:
        ValueError: it is none, in a sentence.
    """
    if not TARGET.fullmatch(target):
        raise ValueError(f"{target!r:.80} is no target of a transfer: give a tel: or sip: URI, or a number")
    return target


class CallView(BaseModel):
    """One call as it stands in Redis. Text that is not there is empty."""

    conversation_id: str
    state: str = Field(description="offered, active or ended")
    reason: str = Field(description="why it ended: hangup, ended, transfer or error")
    detail: str
    bridge: str
    caller: str
    bot: str
    media_format: str
    edge: str = Field(description="the pod that has the caller's socket")
    owner: str = Field(description="the worker that has the agent")
    created_at: str
    active_at: str
    ended_at: str
    session_id: str
    finish: str = Field(description='"" while live; owed, done, given_up or none')
    start: dict[str, Any]
    data: dict[str, Any] = Field(description="what the application keeps of it, while live")
    handoff: dict[str, Any] | None = Field(description="what was stored before a transfer")


class CallPage(BaseModel):
    """Live calls, oldest first. `next`: give it as `after` for the page behind; None at the end."""

    calls: list[CallView]
    next: str | None
    total: int = Field(description="how many live calls there are in all")


class PodView(BaseModel):
    """One pod as it announces itself. A dead one stays on the list for a minute."""

    pod: str
    role: str
    calls: int
    capacity: int
    agents: int
    draining: bool
    version: str


class Pods(BaseModel):
    """The pods of the fleet, workers first."""

    pods: list[PodView]


class LineView(BaseModel):
    """One utterance. `heard_ms` is None until it is known how much of it the caller heard."""

    id: str
    role: str
    content: str
    at: str
    turn: str
    heard_ms: int | None
    interrupted: bool


class Transcript(BaseModel):
    """What was said, in order."""

    conversation_id: str
    lines: list[LineView]


class HangUp(BaseModel):
    """Hang up after the agent's last words."""

    reason: str | None = Field(default=None, max_length=200)


class Transfer(BaseModel):
    """Transfer after the agent's last words."""

    target: Annotated[str, AfterValidator(transfer_target)] = Field(
        min_length=1,
        max_length=500,
        description="a tel: or sip: URI, or a number",
        json_schema_extra={"pattern": TARGET.pattern},
    )
    reason: str | None = Field(default=None, max_length=500)


class Say(BaseModel):
    """Have the agent say this."""

    text: str = Field(min_length=1, max_length=4000)


class Prompt(BaseModel):
    """Add this to the agent's prompt."""

    prompt: str = Field(min_length=1, max_length=25_000)


class Digits(BaseModel):
    """Send these to the far end."""

    digits: str = Field(pattern=r"^[0-9A-D*#]{1,20}$")


class Play(BaseModel):
    """Have VoiceAI Connect play an audio file."""

    url: str = Field(pattern=r"^https?://", max_length=2000)


class Done(BaseModel):
    """The call's owner has begun."""

    status: Literal["accepted"] = "accepted"


class Problem(BaseModel):
    """Why not, in a sentence."""

    detail: str


def add(app: FastAPI, calls: Calls, remote: Remote, fleet: Fleet, token: str | None) -> None:
    """Add the API to a pod's admin application.

    Args:
        calls, remote, fleet: of the loop that serves it.
        token: the bearer token; None closes the API.
    """
    bearer = HTTPBearer(auto_error=False)

    app.add_middleware(Door, token=token)

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (400, 401, 403, 404, 408, 409, 413, 415, 503)
    }
    router = APIRouter(prefix="/v1", dependencies=[Depends(bearer)], responses=refusals)

    @router.get("/calls")
    async def list_calls(
        limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
        after: Annotated[str, Query(pattern=CURSOR, description="`next` of the page before")] = "",
    ) -> CallPage:
        """The live calls, oldest first."""
        since, _, cid = after.partition("-")
        some = await calls.live_page(limit + 1, (int(since or 0), cid))
        page = some[:limit]
        records = [record for _, cid in page if (record := await calls.readable(cid)) is not None]
        return CallPage(
            calls=[call_view(record) for record in records],
            next=f"{page[-1][0]}-{page[-1][1]}" if len(some) > limit else None,
            total=await calls.live_count(),
        )

    @router.get("/pods")
    async def list_pods() -> Pods:
        """The pods of the fleet and how full they are."""
        found = sorted((await fleet.pods()).values(), key=lambda pod: (pod.role != "worker", pod.pod))
        return Pods(pods=[pod_view(pod) for pod in found])

    @router.get("/calls/{cid}")
    async def get_call(cid: Cid) -> CallView:
        """One call, live or kept."""
        return call_view(await _known(calls, cid))

    @router.get("/calls/{cid}/transcript", response_model=Transcript)
    async def get_transcript(cid: Cid, follow: bool = False) -> Any:
        """What was said. With `follow` as server-sent events: `line` each, then `end`, or `error` for an outage."""
        await _known(calls, cid)
        if follow:
            return StreamingResponse(_events(calls, cid), media_type="text/event-stream")
        return Transcript(conversation_id=cid, lines=[line_view(line) for line in await calls.transcript(cid)])

    @router.post("/calls/{cid}/hangup", status_code=202)
    async def hang_up(cid: Cid, body: HangUp | None = None) -> Done:
        """Hang up after the agent's last words."""
        await remote.send(cid, "hangup", body.reason if body is not None else None)
        return Done()

    @router.post("/calls/{cid}/transfer", status_code=202)
    async def transfer(cid: Cid, body: Transfer) -> Done:
        """Transfer after the agent's last words; if that fails the call goes on."""
        parameters: dict[str, Any] = {"transferTarget": body.target}
        if body.reason is not None:
            parameters["handoverReason"] = body.reason
        await remote.send(cid, "transfer", parameters)
        return Done()

    @router.post("/calls/{cid}/say", status_code=202)
    async def say(cid: Cid, body: Say) -> Done:
        """Have the agent say something, after what it is saying."""
        await remote.send(cid, "agent", "inject_agent", body.text)
        return Done()

    @router.post("/calls/{cid}/inject", status_code=202)
    async def inject(cid: Cid, body: Say) -> Done:
        """Have the agent answer something as if the caller had said it."""
        await remote.send(cid, "agent", "inject_user", body.text)
        return Done()

    @router.post("/calls/{cid}/prompt", status_code=202)
    async def prompt(cid: Cid, body: Prompt) -> Done:
        """Add to the agent's prompt, for the rest of the call."""
        await remote.send(cid, "agent", "update_prompt", body.prompt)
        return Done()

    @router.post("/calls/{cid}/dtmf", status_code=202)
    async def dtmf(cid: Cid, body: Digits) -> Done:
        """Send digits to the far end."""
        await remote.send(cid, "activities", [_event("sendDtmf", {"dtmfDigits": body.digits})])
        return Done()

    @router.post("/calls/{cid}/play", status_code=202)
    async def play(cid: Cid, body: Play) -> Done:
        """Have VoiceAI Connect play an audio file."""
        await remote.send(cid, "activities", [_event("playUrl", {"playUrlUrl": body.url})])
        return Done()

    @router.post("/calls/{cid}/finish", status_code=202)
    async def finish(cid: Cid) -> Done:
        """Run the `session_end` handlers that have not succeeded once more, now."""
        record = await _known(calls, cid)
        if not await calls.reopen(cid):
            raise CommandRefused(cid, nothing_owed(record))
        return Done()

    @app.get("/v1/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(get_openapi(title="Bridge", version=__version__, routes=router.routes))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE_HTML)

    app.include_router(router)

    @app.exception_handler(BridgeError)
    async def explain(request: Request, error: Exception) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        return JSONResponse({"detail": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    async def name_the_field(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        if any(e["loc"] == ("body",) for e in errors) and not _is_json(request):
            return JSONResponse({"detail": AS_JSON}, 415)
        # not what was sent: it need not be JSON that can be sent back (NaN, half a surrogate)
        plain = [{"loc": e["loc"], "msg": e["msg"].removeprefix(OUR_ERROR), "type": e["type"]} for e in errors]
        return JSONResponse({"detail": plain}, 422)


STATUS: Final[dict[type[BridgeError], int]] = {
    CallUnknown: 404,
    CallOver: 409,
    CommandRefused: 409,
    RedisUnavailable: 503,
}


def call_view(record: CallRecord) -> CallView:
    """A call as the API and `bridgectl --json` show it."""
    fields = {name: getattr(record, name) for name in CallView.model_fields if hasattr(record, name)}
    return CallView(
        **fields,
        conversation_id=record.cid,
        data=_object(record.raw.get("data")) or {},
        handoff=_object(record.raw.get("handoff")),
    )


def nothing_owed(record: CallRecord) -> str:
    """Why there is nothing to finish, for a person."""
    if record.state != "ended":
        return "nothing is owed yet: it is live"
    if record.finish == "none":
        return "nothing is owed: it ended before it had begun"
    return "nothing is owed: its finish is done"


def pod_view(pod: PodInfo) -> PodView:
    """A pod as the API shows it; what it does not say, or says oddly, is 0."""

    def number(name: str) -> int:
        value = pod.info.get(name)
        return value if isinstance(value, int) else 0

    return PodView(
        pod=pod.pod,
        role=pod.role,
        calls=number("load"),
        capacity=number("capacity"),
        agents=number("agents"),
        draining=bool(pod.info.get("draining")),
        version=str(pod.info.get("version", "")),
    )


def line_view(line: Line) -> LineView:
    """An utterance as the API and `bridgectl --json` show it."""
    return LineView(**{name: getattr(line, name) for name in LineView.model_fields})


async def follow(calls: Calls, cid: str) -> AsyncGenerator[Line, None]:
    """What was said in a call so far, and what is said from now on until it has ended, once each, through an outage of
    Redis of half a minute. Cancelling it ends the following.

    Raises:
        RedisUnavailable: it has not answered for longer.
    """
    loop = asyncio.get_running_loop()
    last = ""
    seen, answered_at, missing_since = False, loop.time(), None
    while True:
        try:
            record = await calls.read(cid)
            lines = await calls.transcript(cid, last)
        except RedisUnavailable:
            if loop.time() > answered_at + AWAY_SECONDS:
                raise
        else:
            answered_at = loop.time()
            for line in lines:
                last = line.id
                yield line
            if record is not None:
                seen, missing_since = True, None
                if record.state == "ended":
                    return
            else:
                missing_since = missing_since or answered_at
                if not seen or answered_at > missing_since + LOST_SECONDS:
                    return
        await asyncio.sleep(FOLLOW_SECONDS)


async def _events(calls: Calls, cid: str) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def lines() -> None:
        try:
            async for line in follow(calls, cid):
                queue.put_nowait(f"id: {line.id}\nevent: line\ndata: {line_view(line).model_dump_json()}\n\n")
            queue.put_nowait("event: end\ndata: {}\n\n")
        except BridgeError as error:
            queue.put_nowait(f"event: error\ndata: {Problem(detail=str(error)).model_dump_json()}\n\n")
        queue.put_nowait(None)

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(lines())
        try:
            due = loop.time() + ALIVE_SECONDS
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        event = await queue.get()
                except TimeoutError:
                    event = ": still here\n\n"
                due = loop.time() + ALIVE_SECONDS
                if event is None:
                    return
                yield event
        finally:
            reading.cancel()


def _is_json(request: Request) -> bool:
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _event(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "event", "name": name, "activityParams": parameters}


async def _known(calls: Calls, cid: str) -> CallRecord:
    record = await calls.read(cid)
    if record is None:
        raise CallUnknown(cid)
    return record


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
