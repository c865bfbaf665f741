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


async def finish(settings: config.Settings, cid: str) -> None:
    """Have the handlers run again."""
    async with operations.cluster(settings) as cluster:
        await cluster.finish(cid)


async def unfinished(settings: config.Settings, *, as_json: bool) -> None:
    """Print the calls that are owed their finish, and those for which it was given up."""
    async with operations.cluster(settings) as cluster:
        rows = []
        for cid, seconds in (await cluster.calls.unfinished()).items():
            record = await cluster.calls.readable(cid)
            tries = record.tries if record is not None else 0
            rows.append({"call": cid, "tries": tries, "next_try_s": None if math.isinf(seconds) else round(seconds, 1)})
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        due = [(row["call"], row["tries"], "given up" if row["next_try_s"] is None else _in(row)) for row in rows]
        show(("call", "tries", "next try"), due)


def _in(row: dict[str, Any]) -> str:
    seconds = float(row["next_try_s"])
    return "now" if seconds <= 0 else f"in {seconds:.0f} s"


async def forget(settings: config.Settings, cid: str) -> None:
    """Delete every trace of a call."""
    async with operations.cluster(settings) as cluster:
        await cluster.forget(cid)
