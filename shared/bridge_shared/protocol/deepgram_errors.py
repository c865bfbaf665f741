"""What a failure of a Voice Agent session means for the next attempt.

The reference for all of it is the Voice Agent reference §5.4 (Error codes), §1.3 (refused upgrades) and §5.6 (close
codes). Nothing here waits or counts: the shell keeps the budget, this file says which budget applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from bridge_shared.errors import BridgeError


class LocalProtocolError(BridgeError):
    """We are about to say what the Voice Agent protocol does not allow now. A bug of ours, never the peer's."""


class Retry(Enum):
    """How often a new socket may be tried after a failure."""

    NO = "no"
    """Never: the same settings or the same code will fail the same way."""
    ONCE = "once"
    LIMITED = "limited"
    """At most twice in a row."""
    BACKOFF = "backoff"
    """As long as the budget lasts, with growing, jittered pauses."""
    AT_ONCE = "at_once"
    """Immediately: the peer is fine, only this session is over."""


RETRY: Mapping[str, Retry] = MappingProxyType(
    {
        "INTERNAL_SERVER_ERROR": Retry.BACKOFF,
        "CLIENT_MESSAGE_TIMEOUT": Retry.BACKOFF,
        "FAILED_TO_START_LISTENING": Retry.LIMITED,
        "ASR_CONNECTION_CLOSED": Retry.BACKOFF,
        "ASR_DRIVER_TIMEOUT": Retry.ONCE,
        "SERVER_GOING_AWAY": Retry.AT_ONCE,
        "MAXIMUM_SESSION_LENGTH_REACHED": Retry.AT_ONCE,
        "FAILED_TO_THINK": Retry.LIMITED,
        "FAILED_TO_SPEAK": Retry.LIMITED,
        # "Only after checking the configuration" (§5.4): nobody checks it in the middle of a call.
        "NON_EXISTENT_FUNCTION_CALLED": Retry.NO,
        "UNPARSABLE_CLIENT_MESSAGE": Retry.NO,
        "INVALID_SETTINGS": Retry.NO,
        "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS": Retry.NO,
        "SETTINGS_ALREADY_APPLIED": Retry.NO,
        "USER_AUDIO_FORMAT": Retry.NO,
        "AGENT_ID_NOT_SUPPORTED": Retry.NO,
        "INVALID_AGENT_ID": Retry.NO,
    }
)
"""The published `Error` codes (§5.4)."""


def retry_for(code: str) -> Retry:
    """What an `Error` with this code allows; an unknown code allows one or two tries (§5.4, last row)."""
    return RETRY.get(code, Retry.LIMITED)


def retry_for_status(status: int) -> Retry:
    """What a refused upgrade allows (§1.3): being over the limit and server trouble pass, the rest stays."""
    return Retry.BACKOFF if status == 429 or status >= 500 else Retry.NO


# The peer says that our data is the problem: 1003 wrong kind, 1007 not decodable, 1008 as Deepgram's STT closes for
# audio that does not match its declaration (DATA-0000, §5.6). A new socket would carry the same data.
_OUR_DATA = frozenset({1003, 1007, 1008})


def parse_close(code: int | None, last_error: str | None) -> bool:
    """Whether a socket that the peer closed, or that broke, is worth a new one (§5.6).

    Args:
        code: the WebSocket close code received; None if there was none.
        last_error: the code of the last `Error` message on that socket, if any. It decides before the close code does.
    """
    if last_error is not None:
        return retry_for(last_error) is not Retry.NO
    return code not in _OUR_DATA
