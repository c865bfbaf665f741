"""`bridgectl`: options become settings, settings become a function call, its outcome becomes an exit code.

What the commands do lives elsewhere: `local` runs pods, `cli_call` places calls, `bridge_sim.agent` is the agent.
"""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from bridge_shared import config, logs
from bridge_shared.errors import BridgeError, CallUnknown, ConfigError
from bridge_shared.lifecycle import new_event_loop
from bridge_shared.protocol.media import FORMATS
from bridge_shared.redis.fleet import PodInfo
from bridge_sim import speech
from bridge_sim.agent import AgentScript, SimulatedAgent
from deepgram_audiocodes_bridge import cli_call, cli_calls, local, operations

T = TypeVar("T")

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2
EXIT_UNKNOWN_CALL: Final = 3

PIPE_WIDTH: Final = 240
ROOMY_WIDTH: Final = 140
"""Columns of a table that goes into a file or a pipe, where nobody has a window to fit it into; and how many it
takes on a terminal to say what each setting means."""

# A file that is piped shows each line as it comes: `bridgectl up | tee log` is how people keep what happened.
say = functools.partial(print, flush=True)

EXAMPLES: Final = """\b
Examples:
  bridgectl up                              everything on this machine, and a demonstration call
  bridgectl up app.py                       the same with an application of yours
  bridgectl up app.py --workers 2           pods as separate processes: kill one and watch
  bridgectl call                            another terminal: one simulated call, live transcript
  bridgectl call --calls 50 --rate 10       fifty calls, ten a second, and figures
  bridgectl config                          every setting, and where its value came from

\b
In a cluster (REDIS_URL, DEEPGRAM_API_KEY and AC_TOKEN set):
  bridgectl edge app.py                     a pod that holds callers' sockets
  bridgectl worker app.py                   a pod that runs agents and handlers
  bridgectl pods                            who is there, and how full
  bridgectl drain POD                       give its calls to others, then end it

\b
Exit codes: 0 done, or drained; 2 a setting or an option is wrong; 3 no such call; 1 anything else.
SIGTERM and Ctrl-C drain; a second one stops at once."""

app = typer.Typer(
    name="bridgectl",
    help="Phone calls from AudioCodes VoiceAI Connect to Deepgram Voice Agents.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

App = Annotated[Path, typer.Argument(metavar="APP", help="The Python file that ends in asyncio.run(bridge.run()).")]
OptionalApp = Annotated[
    Path | None, typer.Argument(metavar="APP", help="The Python file that ends in asyncio.run(bridge.run()).")
]

# for the pods of `bridgectl up --workers`, as they are started by it
AdminHost = Annotated[str | None, typer.Option(hidden=True)]
Tell = Annotated[int | None, typer.Option(hidden=True)]


@app.command(
    epilog="""\b
Examples:
  bridgectl up
  bridgectl up worker/examples/01_basic/app.py
  bridgectl up app.py --workers 3 --edges 2 --port 8000
  REDIS_URL=redis://localhost:6379 DEEPGRAM_API_KEY=... bridgectl up app.py"""
)
def up(
    app: OptionalApp = None,
    workers: Annotated[int | None, typer.Option(min=1, max=100, help="Worker pods, each a process of its own.")] = None,
    edges: Annotated[
        int | None, typer.Option(min=1, max=100, help="Edge pods, each a process and a port of its own.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port for callers; further edges take the next ones. "
            "[default: BRIDGE_PORT, or what the application says]"
        ),
    ] = None,
) -> None:
    """The whole cluster on this machine.

    It starts a Redis of its own unless REDIS_URL is set, and a simulated agent unless DEEPGRAM_API_KEY is.
    """
    settings = _settings(port=port).model_copy(update={"role": None})
    _leave(local.up(app, workers=workers, edges=edges, settings=settings, say=say))


@app.command(
    epilog="""\b
Examples:
  REDIS_URL=redis://redis:6379 bridgectl edge app.py
  REDIS_URL=redis://redis:6379 AC_TOKEN=secret BRIDGE_PORT=8080 bridgectl edge"""
)
def edge(app: OptionalApp = None, admin_host: AdminHost = None, tell: Tell = None) -> None:
    """One edge pod, holding callers' sockets.

    Without APP its door comes from the environment: AC_TOKEN, or BRIDGE_OPEN_DOOR=true.
    """
    _leave(local.edge(app, _settings(), admin_host=admin_host, pipe=tell))


@app.command(
    epilog="""\b
Example:
  REDIS_URL=redis://redis:6379 DEEPGRAM_API_KEY=... bridgectl worker app.py"""
)
def worker(app: App, admin_host: AdminHost = None, tell: Tell = None) -> None:
    """One worker pod, running agents and the handlers of APP."""
    _leave(local.worker(app, _settings(), admin_host=admin_host, pipe=tell))


@app.command(
    epilog=f"""\b
Examples:
  bridgectl call
  bridgectl call --say parcel_number --say goodbye --wav-out heard.wav
  bridgectl call --barge-in --format raw/lpcm16
  bridgectl call --keys '1003#'
  bridgectl call --calls 200 --rate 20 --concurrency 100 --json

\b
Sentences for --say:
  {" ".join(speech.names("caller"))}"""
)
def call(
    url: Annotated[
        str | None, typer.Option(help="The bot. [default: ws://127.0.0.1:BRIDGE_PORT, or port 8000]")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token. [default: the first one of AC_TOKEN]")] = None,
    calls: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    rate: Annotated[float, typer.Option(min=0.01, help="New calls per second.")] = 10.0,
    concurrency: Annotated[int | None, typer.Option(min=1, help="At most so many at a time.")] = None,
    say: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What the caller says; once for each turn.")
    ] = None,
    keys: Annotated[
        str, typer.Option(metavar="KEYS", help="Pressed after the greeting. Without --say nothing is said then.")
    ] = "",
    barge_in: Annotated[
        bool, typer.Option("--barge-in", help="The caller may interrupt, and interrupts the first answer.")
    ] = False,
    format: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT", help=f"Offered media formats: {', '.join(FORMATS)}.")
    ] = None,
    wav_out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write what the caller heard (one call only).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Simulated callers with real speech.

    Shows the live transcript of one call, or the figures of many. Exits with 1 if a call failed.
    """
    settings = _settings()
    options = cli_call.Options(
        url=url or f"ws://127.0.0.1:{settings.port or local.FIRST_PORT}",
        token=token or next(iter(settings.ac_tokens), None),
        calls=calls,
        rate=rate,
        concurrency=concurrency,
        say=tuple(say or (() if keys else local.DEMO_PROMPTS)),
        keys=keys,
        barge_in=barge_in,
        formats=tuple(format or FORMATS),
        wav_out=wav_out,
    )
    _leave(EXIT_FAILED if cli_call.run(options, as_json=as_json).failed else EXIT_OK)


@app.command(
    epilog="""\b
Examples:
  bridgectl agent
  bridgectl agent --echo --think-ms 0
  DEEPGRAM_URL=ws://127.0.0.1:8900/v1/agent/converse DEEPGRAM_API_KEY=any bridgectl up app.py"""
)
def agent(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8900,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="The one API key it accepts. [default: any]")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Send the caller's audio back and say nothing.")] = False,
    think_ms: Annotated[int, typer.Option(min=0, max=60_000, help="From the caller's last word to the answer.")] = 200,
) -> None:
    """The simulated Deepgram agent as a server.

    It listens, understands the sentences of `bridgectl call`, and answers them.
    """
    _settings()
    script = AgentScript(require_token=token, echo=echo, think_s=think_ms / 1000)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve_agent(SimulatedAgent(script, host, port, record=False)))


@app.command(
    "config",
    epilog="""\b
Examples:
  bridgectl config
  BRIDGE_PORT=8001 bridgectl config --json""",
)
def show_config(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Every setting and where its value came from.

    With unit and default; secrets are masked.
    """
    rows = config.describe(_settings())
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("default", overflow="fold")
    table.add_column("from", no_wrap=True)
    roomy = console.width >= ROOMY_WIDTH
    if roomy:
        table.add_column("meaning")
    for row in rows:
        value, default = (f"{text} {row.unit}" if text else "" for text in (row.value, row.default))
        cells = [row.name, value, default, row.origin, *([row.help] if roomy else [])]
        table.add_row(*cells, style=None if row.origin == "default" else "bold")
    console.print(table)


@app.command(
    epilog="""\b
Examples:
  bridgectl pods
  bridgectl pods --json"""
)
def pods(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """The pods of the cluster and how full they are. `silent`: it does not beat; a dead pod is listed for a minute."""
    rows = [operations.pod_row(pod, beats) for pod, beats in _run(_pods(_settings()))]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, header_style="bold")
    for name in ("pod", "role", "calls", "of", "agents", "state", "version", "bridges"):
        table.add_column(name, justify="right" if name in ("calls", "of", "agents") else "left")
    for row in rows:
        cells = (row["pod"], row["role"], row["calls"], row["capacity"], row["agents"], row["state"], row["version"])
        table.add_row(*map(str, cells), " ".join(map(str, row["bridges"])))
    console.print(table)


@app.command(
    epilog="""\b
Example:
  bridgectl drain worker-bridge-worker-5d9c-1a2b3c4d"""
)
def drain(pod: Annotated[str, typer.Argument(metavar="POD", help="As `bridgectl pods` names it.")]) -> None:
    """Have a pod give its calls to others and end, as SIGTERM would. Returns when it has begun."""
    _run(_drain(_settings(), pod))
    say(f"{pod} drains")


@app.command()
def calls(as_json: cli_calls.AsJson = False) -> None:
    """The live calls."""
    _run(cli_calls.calls(_settings(), as_json=as_json))


@app.command(
    epilog="""\b
Examples:
  bridgectl transcript 3f2b… --follow
  bridgectl transcript 3f2b… --json"""
)
def transcript(
    cid: cli_calls.Cid,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the call ends.")] = False,
    as_json: cli_calls.AsJson = False,
) -> None:
    """What was said in a call."""
    _run(cli_calls.transcript(_settings(), cid, follow=follow, as_json=as_json))


@app.command()
def hangup(
    cid: cli_calls.Cid, reason: Annotated[str | None, typer.Option(help="Becomes VAIC's hangupReason.")] = None
) -> None:
    """Hang up after the agent's last words. Returns when the call's worker has begun."""
    _run(cli_calls.send(_settings(), cid, "hangup", reason))
    say(f"{cid} is being hung up")


@app.command()
def transfer(
    cid: cli_calls.Cid,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A tel: or sip: URI, or a number.")],
    reason: Annotated[str | None, typer.Option(help="Becomes VAIC's handoverReason.")] = None,
) -> None:
    """Transfer after the agent's last words. Returns when the call's worker has begun."""
    _run(cli_calls.transfer(_settings(), cid, target, reason))
    say(f"{cid} is being transferred to {target}")


@app.command(name="say")
def say_in_call(cid: cli_calls.Cid, text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """Have the agent of a live call say something."""
    if not text.strip():
        raise typer.BadParameter("TEXT is empty")
    _run(cli_calls.send(_settings(), cid, "agent", "inject_agent", text))
    say(f"{cid} will hear it after what the agent is saying")


@app.command()
def finish(cid: cli_calls.Cid) -> None:
    """Run the session_end handlers of a call that have not succeeded once more, now."""
    _run(cli_calls.finish(_settings(), cid))
    say(f"{cid} is being tried again; 'bridgectl unfinished' lists it if it fails")


@app.command()
def unfinished(as_json: cli_calls.AsJson = False) -> None:
    """Calls whose session_end handlers have not all succeeded yet, and those for which that was given up."""
    _run(cli_calls.unfinished(_settings(), as_json=as_json))


@app.command()
def forget(
    cid: cli_calls.Cid,
    force: Annotated[bool, typer.Option("--force", help="Although session_end handlers have not succeeded.")] = False,
) -> None:
    """Delete what Redis has of a call that has ended. Refused while its session_end handlers are owed."""
    _run(cli_calls.forget(_settings(), cid, force=force))
    say(f"{cid} is forgotten")


async def _pods(settings: config.Settings) -> list[tuple[PodInfo, bool]]:
    async with operations.cluster(settings) as cluster:
        return await cluster.pods()


async def _drain(settings: config.Settings, pod: str) -> None:
    async with operations.cluster(settings) as cluster:
        await cluster.drain(pod)


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


async def _serve_agent(simulated: SimulatedAgent) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await simulated.start()
    except OSError as error:
        raise ConfigError("--port", f"cannot be listened on: {error.strerror}", "Choose another, or 0") from None
    try:
        say(f"A simulated Deepgram agent listens. DEEPGRAM_URL={simulated.url}")
        await stop.wait()
    finally:
        await simulated.stop()


def _settings(**overrides: object) -> config.Settings:
    """What every command begins with: the settings, and logs that go to standard error."""
    settings = config.load(**overrides)
    logs.configure(settings.log_level, settings.log_format)
    return settings


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: errors that somebody can act on become one sentence, all others a traceback.

    Args:
        arguments: those of the process unless given.
    """
    code = EXIT_OK
    try:
        app(arguments, prog_name="bridgectl")
    except* BridgeError as group:  # alone, or out of a task group
        code = _explain(group)
    sys.exit(code)


def _explain(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"bridgectl: {error}", file=sys.stderr)
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_UNKNOWN_CALL if isinstance(error, CallUnknown) else EXIT_FAILED


if __name__ == "__main__":
    main()
