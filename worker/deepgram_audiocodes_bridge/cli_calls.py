"""What `bridgectl` shows of calls, and does with them, from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from bridge_shared import api, config
from bridge_shared.errors import CommandRefused
from bridge_shared.redis.calls import CallRecord, Line
from deepgram_audiocodes_bridge import operations

Cid: TypeAlias = Annotated[str, typer.Argument(metavar="CID", help="VoiceAI Connect's conversation id.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

PIPE_WIDTH = 200


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for a person."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


async def calls(settings: config.Settings, *, as_json: bool) -> None:
    """Print the live calls."""
    async with operations.cluster(settings) as cluster:
        records = await cluster.live()
    if as_json:
        print(json.dumps([api.call_view(record).model_dump() for record in records], indent=2))
    else:
        columns = ("call", "state", "bridge", "caller", "since", "edge", "worker")
        show(columns, [_row(record) for record in records])


def _row(record: CallRecord) -> tuple[str, ...]:
    since = record.active_at or record.created_at
    return record.cid, record.state, record.bridge, record.caller, since, record.edge, record.owner


async def transcript(settings: config.Settings, cid: str, *, follow: bool, as_json: bool) -> None:
    """Print what was said, and with `follow` what is said until the call ends."""
    async with operations.cluster(settings) as cluster:
        await cluster.call(cid)
        if follow:
            async for line in api.follow(cluster.calls, cid):
                print(_line(line, as_json=as_json), flush=True)
            return
        lines = await cluster.calls.transcript(cid)
    if as_json:
        print(json.dumps([api.line_view(line).model_dump() for line in lines], indent=2))
    else:
        for line in lines:
            print(_line(line, as_json=False))


def _line(line: Line, *, as_json: bool) -> str:
    if as_json:
        return api.line_view(line).model_dump_json()
    cut = f"  (interrupted after {(line.heard_ms or 0) / 1000:.1f} s)" if line.interrupted else ""
    return f"{line.at[11:19]}  {line.role:<9}  {line.content}{cut}"


async def send(settings: config.Settings, cid: str, verb: str, *arguments: Any) -> None:
    """Have a live call's owner do something."""
    async with operations.cluster(settings) as cluster:
        await cluster.remote.send(cid, verb, *arguments)


async def transfer(settings: config.Settings, cid: str, target: str, reason: str | None) -> None:
    """Have a live call transferred.

    Raises:
        CommandRefused: beside others, this is nothing to transfer to.
    """
    try:
        parameters = {"transferTarget": api.transfer_target(target)}
    except ValueError as error:
        raise CommandRefused(cid, str(error)) from None
    if reason:
        parameters["handoverReason"] = reason
    await send(settings, cid, "transfer", parameters)


async def finish(settings: config.Settings, cid: str) -> None:
    """Have the handlers run again."""
    async with operations.cluster(settings) as cluster:
        await cluster.finish(cid)


async def unfinished(settings: config.Settings, *, as_json: bool) -> None:
    """Print the calls that are owed their finish, and those for which it was given up."""
    async with operations.cluster(settings) as cluster:
        rows: list[dict[str, Any]] = []
        for cid, seconds in (await cluster.calls.unfinished()).items():
            record = await cluster.calls.readable(cid)
            given_up = math.isinf(seconds)
            rows.append(
                {
                    "conversation_id": cid,
                    "call": cid,  # as it was called first
                    "state": "given_up" if given_up else "owed",
                    "tries": record.tries if record is not None else 0,
                    "next_try_s": None if given_up else round(seconds, 1),
                    "error": record.finish_error if record is not None else "",
                }
            )
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        due = [
            (row["call"], row["state"].replace("_", " "), row["tries"], _next_try(row), row["error"]) for row in rows
        ]
        show(("call", "finish", "tries", "next try", "failed"), due)


def _next_try(row: dict[str, Any]) -> str:
    seconds = row["next_try_s"]
    if seconds is None:
        return f"none: bridgectl finish {row['call']}"
    return "now" if seconds <= 0 else f"in {seconds:.0f} s"


async def forget(settings: config.Settings, cid: str, *, force: bool) -> None:
    """Delete what Redis has of a call."""
    async with operations.cluster(settings) as cluster:
        await cluster.forget(cid, force=force)
