"""What an application has written and cannot work, told when its bridge begins to run.

Constructors and `on` accept everything, as in the original (sdk-public-api §2, §3). A value that no call could be
taken with is refused; a handler that would only fail or never run is warned of, since the original lets it be.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

from bridge_shared import logs
from bridge_shared.errors import ConfigError
from bridge_shared.protocol.media import FORMATS
from bridge_shared.types.audiocodes import BridgeConfig
from bridge_worker.handlers import handler_name

log = logs.get("bridge")

EVENTS = frozenset(
    {
        "session_start",
        "session_end",
        "conversation_text",
        "user_started_speaking",
        "agent_thinking",
        "agent_audio_done",
        "function_call_request",
        "prompt_updated",
        "speak_updated",
        "think_updated",
        "warning",
        "activity",
        "error",
        "agent_started_speaking",
        "injection_refused",
        "history",
        "function_call_cancelled",
        "function_call_response",
        "listen_updated",
        "latency_report",
        "session_resumed",
        "turn_timing",
        "before_transfer",
    }
)
"""All that ever fire: those of the original (sdk-public-api §5), then ours."""

PATH_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~!$&'()*+,;=:@-]+")
"""What stands in a URL as it is (RFC 3986 §3.3): the edge compares the caller's path with the name unchanged."""


def bridge_name(config: BridgeConfig) -> str:
    """A bridge is known by its name, by default its port: every process that runs the file says the same."""
    return config.name or str(config.port)


def setting(config: BridgeConfig, field: str) -> str:
    """By what an error names a field of this bridge's configuration."""
    return f"BridgeConfig.{field} (bridge {bridge_name(config)})"


def check_call(config: BridgeConfig) -> None:
    """Refuse what no call could be taken with, however it comes.

    Raises:
        ConfigError: `name` or `play_media_format` cannot be used.
    """
    name: object = config.name
    if name and not (isinstance(name, str) and PATH_SEGMENT.fullmatch(name)):
        raise ConfigError(
            "BridgeConfig.name",
            f"{name!r} cannot be the path of a URL, by which callers say which bridge they want",
            "Use letters, digits and - . _ only",
        )
    play: object = config.play_media_format
    if play is not None and play not in FORMATS:
        raise ConfigError(
            setting(config, "play_media_format"),
            f"{play!r} is not a media format",
            f"Leave it out, or use one of {', '.join(FORMATS)}",
        )


def check_door(config: BridgeConfig) -> None:
    """Refuse what no caller could be let in with. For a bridge that listens; `Session.serve` uses none of it.

    Raises:
        ConfigError: `port` or `ac_token` cannot be used.
    """
    port_number(config)
    token: object = config.ac_token
    if config.authenticate is None and token is not None and not isinstance(token, str):
        raise ConfigError(
            setting(config, "ac_token"),
            f"is of type {type(token).__name__}",
            "Give a str, or None to ask callers for no token",
        )


def port_number(config: BridgeConfig) -> int:
    """The port of the application's file, also if it is written as text, which the original takes too.

    Raises:
        ConfigError: it is none.
    """
    port: object = config.port
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    if isinstance(port, int) and 0 <= port <= 65535:
        return port
    raise ConfigError(
        "BridgeConfig.port", f"{config.port!r} is not the number of a port", "Set it to a whole number, 0-65535"
    )


def warn_of_handler(event: str, handler: Callable[..., Any]) -> None:
    """Log a handler that cannot be called as handlers are, `handler(session, event)`."""
    try:
        signature = inspect.signature(handler)
    except ValueError:  # a built-in that does not say
        return
    except TypeError:
        log.warning("a handler cannot be called", event_name=event, handler=handler_name(handler))
        return
    try:
        signature.bind(None, None)
    except TypeError:
        log.warning(
            "a handler cannot take the two arguments it is called with, (session, event): it will fail",
            event_name=event,
            handler=handler_name(handler),
            takes=str(signature),
        )


def warn_of_event(event: str) -> None:
    """Log a name that handlers are registered for although no event has it."""
    if event in EVENTS:
        return
    near = difflib.get_close_matches(str(event), EVENTS, n=1)
    mend = {"did_you_mean": near[0]} if near else {}
    log.warning("handlers are registered for an event that never fires", event_name=event, **mend)
