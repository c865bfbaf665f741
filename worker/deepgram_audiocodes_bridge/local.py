"""What `bridgectl up`, `edge` and `worker` do: run the customer's file as one role, or as a whole cluster here.

The file runs as `__main__`, as `python app.py` would, with the settings of this process in place; each
`bridge.run()` in it joins the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import runpy
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import SecretStr

from bridge_edge.door import Door
from bridge_shared import config
from bridge_shared.config import Settings
from bridge_shared.errors import BridgeError, ConfigError
from bridge_shared.lifecycle import Signals
from bridge_shared.redis.fleet import Role
from deepgram_audiocodes_bridge import process as joined
from deepgram_audiocodes_bridge import stage
from deepgram_audiocodes_bridge.children import Child, Children, free_ports, tell
from deepgram_audiocodes_bridge.process import SIMULATED_KEY, Process
from deepgram_audiocodes_bridge.stage import DEMO_PROMPTS, Stage

__all__ = ["DEMO_PROMPTS", "FIRST_PORT", "edge", "up", "worker"]

DEMO = Path(__file__).with_name("demo") / "app.py"
"""The application of `bridgectl up` without one; in a folder of its own, as that comes first on its module path."""

FORMATS = ("raw/mulaw", "raw/lpcm16_8", "raw/lpcm16")
FIRST_PORT = 8000
EDGE_PORT = 8081
"""Of an edge without an application, as in `BridgeConfig`."""

GRACE_SECONDS = 15.0
"""What a pod may take to end beyond its drain: hanging up, last handlers, last lines."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEY = "DEEPGRAM_API_KEY"
UNUSED_KEY = "not needed by an edge"

Say = Callable[[str], None]


def worker(app: Path, settings: Settings, *, admin_host: str | None = None, pipe: int | None = None) -> int:
    """Run one worker pod until it has drained. Returns the exit code.

    Args:
        admin_host: where the admin port listens, if not where BRIDGE_HOST says.
        pipe: where a parent wants to be told of the pod (`children.tell`).
    """
    return _run(app, _pod("worker", settings, admin_host, pipe))


def edge(app: Path | None, settings: Settings, *, admin_host: str | None = None, pipe: int | None = None) -> int:
    """Run one edge pod until it has drained. Returns the exit code. Arguments as for `worker`.

    Raises:
        ConfigError: without an application, a door that is open to everybody must be asked for.
    """
    process = _pod("edge", settings, admin_host, pipe)
    if app is not None:
        # applications refuse to start without one, and a pod that faces callers should not have the real one
        os.environ[KEY] = os.environ.get(KEY) or UNUSED_KEY
        return _run(app, process)
    if not settings.ac_tokens and settings.oidc_issuer is None and not settings.open_door:
        mend = "Set it, or BRIDGE_OIDC_ISSUER, or BRIDGE_OPEN_DOOR=true"
        raise ConfigError("AC_TOKEN", "is not set, so anybody could place calls", mend)
    door = Door("", settings.host, settings.port or EDGE_PORT, FORMATS, settings.ac_tokens)
    try:
        with _signals(process):
            asyncio.run(process.serve_door(door))
    except _Told as told:
        return told.exit_code
    finally:
        process.close()
    return 0


def _pod(role: Role, settings: Settings, admin_host: str | None, pipe: int | None) -> Process:
    process = joined.command(settings.model_copy(update={"role": role}))
    if admin_host is not None:
        process.admin_host = admin_host
    if pipe is not None:
        tell(process, pipe)
    return process


def up(app: Path | None, *, workers: int | None, edges: int | None, settings: Settings, say: Say = print) -> int:
    """Run the whole cluster on this machine until it has drained. Returns the exit code.

    Args:
        app: None runs a small application of ours.
        workers, edges: as so many processes each; both None: everything in this process.
        say: shows a line to the person at the terminal.
    """
    app = app or DEMO
    if not app.is_file():
        raise _no_file(app)
    keyless = settings.deepgram_key is None and not config.in_dotenv(KEY, app.parent)
    if keyless:
        os.environ[KEY] = SIMULATED_KEY  # applications refuse to start without one
    if workers is not None or edges is not None:
        simulated = keyless and settings.origin("deepgram_url") == "default"
        return _processes(app, workers or 1, edges or 1, simulated, settings, say)
    host, token = _page(settings)
    if token is not None:
        settings = settings.model_copy(update={"admin_token": SecretStr(token)})
    process = joined.command(settings)
    process.admin_host = host
    show = Stage(process, say, token)
    process.on_open = show.opened
    with show.set():
        return _run(app, process)


def _page(settings: Settings) -> tuple[str, str | None]:
    """Where the admin port of `up` listens, and the token that is made up for its page: none if there is one already,
    or if BRIDGE_HOST puts the port where others may reach it."""
    if settings.admin_token is not None:
        return settings.host, None
    if settings.origin("host") != "default" and settings.host not in LOOPBACK:
        return settings.host, None
    host = settings.host if settings.host in LOOPBACK else LOOPBACK[0]
    return host, secrets.token_urlsafe(16)


def _run(app: Path, process: Process) -> int:
    """Run the application's file and tell its faults from ours."""
    if not app.is_file():
        raise _no_file(app)
    setting = f"APP {app}"
    stopped: SystemExit | None = None
    try:
        with _as_main(app), _signals(process):
            runpy.run_path(str(app), run_name="__main__")
    except _Told as told:
        return told.exit_code
    except SystemExit as stop:
        stopped = stop
    except BridgeError:
        raise
    except Exception as error:
        if isinstance(error, ExceptionGroup) and (ours := error.subgroup(BridgeError)) is not None:
            raise ours from None
        if process.joined:
            raise
        raise ConfigError(setting, f"cannot be run: {_where(error, app)}", _mend(error)) from error
    finally:
        process.close()
    if not process.joined:
        if stopped is not None and stopped.code not in (None, 0):
            problem = f"stopped before it ran a bridge: {str(stopped.code).rstrip('.')}"
            raise ConfigError(setting, problem, "Give it what it asks for")
        raise ConfigError(setting, "ran no bridge", "End it with asyncio.run(bridge.run())")
    if stopped is not None and isinstance(stopped.code, str):
        print(stopped.code, file=sys.stderr)
        return 1
    return stopped.code if stopped is not None and isinstance(stopped.code, int) else 0


class _Told(SystemExit):
    """A signal came while there was nothing to drain: not yet, or no more (then it is a second one)."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@contextlib.contextmanager
def _signals(process: Process) -> Iterator[None]:
    """Until the pods take the signals over, one ends the application. (The kernel hides a signal that nobody
    handles from the first process of a container, which would then go on to take calls.)"""

    def told() -> None:
        raise _Told(1 if process.over else 0)

    with Signals(told):
        yield


def _no_file(app: Path) -> ConfigError:
    mend = "Give the path of the Python file that ends in asyncio.run(bridge.run())"
    return ConfigError(f"APP {app}", "is no file", mend)


@contextlib.contextmanager
def _as_main(app: Path) -> Iterator[None]:
    """What `python app.py` does to the interpreter."""
    path, arguments = sys.path[:], sys.argv
    sys.path.insert(0, str(app.resolve().parent))
    sys.argv = [str(app)]
    try:
        yield
    finally:
        sys.path[:], sys.argv = path, arguments


def _where(error: Exception, app: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(app):
            line = trace.tb_lineno
        trace = trace.tb_next
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}{f' (line {line})' if line else ''}"


def _mend(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Install what it imports"
    if isinstance(error, KeyError) and str(error.args[0]).isupper():  # os.environ["DEEPGRAM_API_KEY"]
        return f"Set the variable {error.args[0]}, or mend the file"
    return "Mend the file"


def _processes(app: Path, workers: int, edges: int, simulated: bool, settings: Settings, say: Say) -> int:
    """Run each pod as a process of its own. Redis and the simulated agent are ours, if they are needed."""
    process = Process(settings)
    count = workers + edges
    admins = list(range(settings.admin_port, settings.admin_port + count)) if settings.admin_port else free_ports(count)
    admins.reverse()  # taken from the end: workers have the lower ones
    host, token = _page(settings)
    try:
        process.prepare()
        environment = {"REDIS_URL": process.redis_url}
        if settings.origin("redis_wait_seconds") == "default":
            environment["BRIDGE_REDIS_WAIT_SECONDS"] = "0"  # somebody sits before it, and may have mistyped the URL
        if simulated:
            stage.banner(say)
            environment["DEEPGRAM_URL"] = process.media.submit(process.simulate()).result()
        if token is not None:
            environment["BRIDGE_ADMIN_TOKEN"] = token
        pods = [Child(f"worker {n + 1}", "worker", host, admins.pop(), environment) for n in range(workers)]
        for n in range(edges):
            edge = Child(f"edge {n + 1}", "edge", host, admins.pop(), environment)
            if settings.port:
                edge.environment = environment | {"BRIDGE_PORT": str(settings.port + n)}
            elif n:  # the first one listens where the application says, as `bridgectl edge`
                edge.behind = pods[workers], n
            pods.append(edge)
        stage.onward(say, process, pods[0].host, pods[0].admin, token)
        return Children(app, pods, settings.drain_seconds + GRACE_SECONDS, say).run()
    finally:
        process.close()
