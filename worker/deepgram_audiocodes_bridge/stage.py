"""What `bridgectl up` shows to the person at the terminal: where calls go, and one simulated call in full.

Everything goes through `say`, a line at a time. While the simulated call is on, what the application prints is
kept out of the way: on a terminal each of its lines is dimmed and cut to the width of the window.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bridge_edge.door import Door
from bridge_shared.errors import BridgeError
from bridge_shared.redis.calls import CallKeys, Calls
from bridge_sim.caller import CallProblem, CallReport, SimulatedCall
from bridge_sim.plan import CallPlan

if TYPE_CHECKING:
    from deepgram_audiocodes_bridge.process import Process

DEMO_PROMPTS = ("where_is_my_parcel", "opening_hours", "thank_you")
"""What the simulated caller says, one sentence a turn."""


DOORS_SECONDS = 0.2
"""So long after the first door opened, the others of the application are expected to be open too."""

FOLLOW_SECONDS = 0.2
DIM, BRIGHT, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"

Say = Callable[[str], None]


def banner(say: Say) -> None:
    """Tell, loudly, that nobody talks to Deepgram."""
    say("=" * 78)
    say("  DEEPGRAM_API_KEY is not set: A SIMULATED AGENT ANSWERS THE CALLS.")
    say("  It knows a few recorded sentences. Nothing leaves this machine.")
    say("=" * 78)


def onward(say: Say, process: Process, host: str, port: int, token: str | None) -> None:
    """Tell how to go on from another terminal, and where the page is.

    Args:
        host, port: of an admin port.
        token: the one made up for this run; None: it is the operator's, or there is no page.
    """
    settings, program = process.settings, _program("bridgectl")
    fleet = f"export BRIDGE_FLEET={settings.fleet}; " if settings.origin("fleet") != "default" else ""
    if process.embedded:
        say(f"In another terminal: export REDIS_URL={process.redis_url}; {fleet}{program} calls")
    else:  # the password in it is not for the screen
        say(f"In another terminal, with the REDIS_URL of this one: {fleet}{program} calls")
    page = f"http://{in_url(reachable(host))}:{port}/"
    if token is not None:
        say(f"Page: {page}#{token}")
    elif settings.admin_token is not None:
        say(f"Page: {page}  (its token is BRIDGE_ADMIN_TOKEN)")


class Stage:
    """The show of one process.

    Args:
        process: whose doors open.
        say: shows one line.
        token: of the page, if it was made up.
    """

    def __init__(self, process: Process, say: Say, token: str | None) -> None:
        self._process = process
        self._token = token
        self._colours = _colourful(sys.stdout)
        self._aside = Aside(sys.stdout)
        self._say_it = say
        self._doors: list[Door] = []
        self._introduced = False

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """The application runs in this block."""
        if not self._colours:
            yield
            return
        with contextlib.redirect_stdout(self._aside):
            yield

    def opened(self, door: Door) -> None:
        """A door has opened: say where, and place a simulated call if the agent is simulated. In the media thread."""
        self._doors.append(door)
        if self._introduced:
            self._show_door(door)
        elif len(self._doors) == 1:
            self._process.background(self._introduce())

    async def _introduce(self) -> None:
        """Wait a moment for the other bridges of the application, then begin."""
        await asyncio.sleep(DOORS_SECONDS)
        self._introduced = True
        simulated = self._process.simulated is not None
        if simulated:
            banner(self._say)
        for door in self._doors:
            self._show_door(door)
        onward(self._say, self._process, self._process.admin_host, self._process.admin_port, self._token)
        door = self._doors[0]
        issuer = self._process.settings.oidc_issuer
        if simulated and door.authenticate is not None:
            self._say("No simulated call is placed: how to get past `authenticate` is not known here.")
        elif simulated and issuer is not None and not door.tokens:
            self._say("No simulated call is placed: callers need a JWT of BRIDGE_OIDC_ISSUER (bridgectl call --token)")
        elif simulated:
            await self._demonstrate(door)
        if not self._process.draining.is_set():
            self._say("Listening for calls. Ctrl-C drains.")

    def _show_door(self, door: Door) -> None:
        self._say(
            f"Bot URL for Live Hub: ws://<this machine>:{_address(door, self._doors)}  (wss:// behind your TLS proxy)"
        )
        self._say(f"               Token: {_token_notice(door, issued=self._process.settings.oidc_issuer is not None)}")

    async def _demonstrate(self, door: Door) -> None:
        """Place one simulated call, show the conversation as it reaches Redis, say how to read it."""
        url = url_of(door, self._doors)
        caller = SimulatedCall(url, CallPlan(say=DEMO_PROMPTS), token=door.tokens[0] if door.tokens else None)
        cid = caller.conversation_id
        self._say(f"\nPlacing a simulated call. The conversation as it is stored in Redis ({cid}):")
        if self._colours:
            self._say(f"{DIM}(what the application prints is dim, and cut to one line, until the call is over){PLAIN}")
        self._say("")
        with self._aside.dimmed():
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._follow(cid))
                report = await self._place(caller)
                following.cancel()
        if report is None:
            return
        if not report.ok:
            self._say(f"\nThe simulated call failed: {report.problem}")
        self._say(f"\nThe call is over after {report.turns} turns. Read its transcript from Redis:\n")
        for command in self._readings(cid):
            self._say(f"    {command}\n")
        self._say(f"Another call:  {_program('bridgectl')} call --url {url}")

    async def _place(self, caller: SimulatedCall) -> CallReport | None:
        """The whole call, or none of it that matters: a drain need not wait for a caller who is only a show."""
        call = asyncio.create_task(caller.run())
        draining = asyncio.create_task(self._process.draining.wait())
        try:
            await asyncio.wait([call, draining], return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            self._say("\nHanging up the simulated call.")
            with contextlib.suppress(CallProblem):  # not connected yet
                await caller.hang_up()
            return None
        finally:
            for task in (call, draining):
                task.cancel()
            await asyncio.wait([call, draining])

    async def _follow(self, cid: str) -> None:
        """Show the lines of a transcript as they are stored, until cancelled; then the rest."""
        settings = self._process.settings
        calls = Calls(self._process.state, settings.fleet, transcript_ttl=settings.transcript_ttl)
        shown = 0
        try:
            while True:
                await asyncio.sleep(FOLLOW_SECONDS)
                shown = await self._show(calls, cid, shown)
        except asyncio.CancelledError:
            await self._show(calls, cid, shown)
            raise

    async def _show(self, calls: Calls, cid: str, shown: int) -> int:
        with contextlib.suppress(BridgeError):  # a later look will find them
            lines = await calls.transcript(cid)
            for line in lines[shown:]:
                text = f"  | {line.at[11:19]}  {'caller' if line.role == 'user' else 'agent ':6}  {line.content}"
                self._say(f"{BRIGHT}{text}{PLAIN}" if self._colours else text)
            return len(lines)
        return shown

    def _readings(self, cid: str) -> tuple[str, str]:
        """Two commands that print the transcript."""
        key, url = CallKeys.of(cid).transcript, self._process.redis_url
        if self._process.embedded:
            port = url.rpartition(":")[2].partition("/")[0]
            client, imports, where = f"redis-cli -p {port}", "redis", f"'{url}'"
        else:  # the password in it is not for the screen
            client, imports, where = 'redis-cli -u "$REDIS_URL"', "os, redis", "os.environ['REDIS_URL']"
        script = (
            f"import {imports}; lines = redis.from_url({where}, decode_responses=True).xrange('{key}'); "
            "[print(line['role'], line['content'], sep=': ') for _, line in lines]"
        )
        return f"{client} XRANGE '{key}' - +", f'{_program("python")} -c "{script}"'

    def _say(self, line: str) -> None:
        with self._aside.undimmed():
            self._say_it(line)


class Aside:
    """An output stream that can put what is written to it aside: dim, and every line cut to the window's width.

    Everything else about it is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dim = False
        self._begun = ""

    @contextlib.contextmanager
    def dimmed(self) -> Iterator[None]:
        self._dim = True
        try:
            yield
        finally:
            self._dim = False
            begun, self._begun = self._begun, ""
            if begun:
                self._stream.write(begun)

    @contextlib.contextmanager
    def undimmed(self) -> Iterator[None]:
        was, self._dim = self._dim, False
        try:
            yield
        finally:
            self._dim = was

    def write(self, text: str) -> int:
        if not self._dim:
            return self._stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        width = shutil.get_terminal_size().columns
        for line in lines:
            shown = line if len(line) < width else f"{line[: width - 4]}..."
            self._stream.write(f"{DIM}{shown}{PLAIN}\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def url_of(door: Door, doors: Sequence[Door]) -> str:
    """Where callers on this machine reach this one of the doors of an edge."""
    return f"ws://{in_url(reachable(door.host))}:{_address(door, doors)}"


def _address(door: Door, doors: Sequence[Door]) -> str:
    """Port, and path if several bridges share the port."""
    sharing = sum((other.host, other.port) == (door.host, door.port) for other in doors)
    return f"{door.port}/{door.bridge}" if sharing > 1 else str(door.port)


def reachable(host: str) -> str:
    """Where something on this machine that listens on `host` can be reached from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def in_url(host: str) -> str:
    """The same as URLs have it."""
    return f"[{host}]" if ":" in host else host


def _colourful(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _token_notice(door: Door, *, issued: bool) -> str:
    if door.authenticate is not None:
        return "the application's `authenticate` decides who may call"
    if issued:
        return "callers must show a JWT of BRIDGE_OIDC_ISSUER, or one of the tokens"
    if door.tokens:
        return "callers must show it; in Live Hub give the one of AC_TOKEN, or of the application"
    return "none. ANYBODY WHO REACHES THIS PORT CAN CALL. Set AC_TOKEN, and give it to Live Hub"


def _program(name: str) -> str:
    """How to call a program of this environment from here."""
    path = Path(sys.executable).with_name(name) if name != "python" else Path(sys.executable)
    if not path.exists():
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
