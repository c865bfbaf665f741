"""What both sides of the AudioCodes Bot API have in common: events, and reading one JSON text frame.

Section numbers are those of the project's Bot API reference, as everywhere in these modules.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bridge_shared.errors import BridgeError

JSON = dict[str, Any]


class LocalProtocolError(BridgeError):
    """We tried to send something that is illegal now: a mistake of ours, never of the peer."""


@dataclass(frozen=True, slots=True)
class Validate:
    """An administrator pressed "validate" (§1.5). Answer `validated()`. This is not a call."""


@dataclass(frozen=True, slots=True)
class Initiate:
    """A call begins (§2.1). Answer `accepted()` once the agent is ready, or `error()`."""

    conversation_id: str
    caller: str | None
    """A number or a word such as `anonymous`."""
    bot_name: str | None
    expect_audio: bool
    """False: VAIC synthesises speech itself and wants text from the bot."""
    formats: tuple[str, ...] | None
    """What VAIC offers, unknown names included; None if it did not say."""
    raw: JSON
    valid_id: bool
    """False: the id is missing or not `[A-Za-z0-9._-]{1,128}`; refuse the call and use the id for nothing."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A call that lost its socket goes on here (§3). Answer `accepted()` with its format, or `error()`."""

    conversation_id: str
    formats: tuple[str, ...] | None
    valid_id: bool


@dataclass(frozen=True, slots=True)
class UserStreamStarted:
    """The caller's audio is about to come. Answer `stream_started()` at once: VAIC buffers until then (§5.2)."""

    participant: str | None


@dataclass(frozen=True, slots=True)
class UserAudio:
    """Caller audio, decoded but neither unwrapped nor aligned: see `media.Inbound`. Never empty."""

    data: bytes
    participant: str | None


@dataclass(frozen=True, slots=True)
class UserStreamStopped:
    """The caller's audio pauses (floor control, §5.3). Answer `stream_stopped()`."""

    participant: str | None


@dataclass(frozen=True, slots=True)
class ActivityReceived:
    """One activity, as it came. Only this much is certain: `type` is a string, and an event's `name` is one."""

    activity: JSON


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The call is over (§4). No answer; close the socket."""

    reason_code: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message, or a part of one, that was not understood and changes nothing.

    Attributes:
        code: a short stable word, fit for a metric label: `binary`, `bad_json`, `too_deep`, `not_object`, `no_type`,
            `unknown_type`, `bad_field`, `bad_base64`, `other_call`, `out_of_order` or `too_many`.
        detail: for a person; never audio, text that was spoken, or a number of a caller.
    """

    code: str
    detail: str


BotEvent = (
    Validate
    | Initiate
    | Resume
    | UserStreamStarted
    | UserAudio
    | UserStreamStopped
    | ActivityReceived
    | SessionEnd
    | Skipped
)

MAX_BRACKETS: Final = 10_000
"""In one message, also those in strings: making a million small lists holds a pod's loop for a quarter of a second."""

MEND_LENGTH: Final = 65_536
"""Longer text is not mended: going through the escapes of 1 MiB holds a pod's loop as long."""

MAX_DEPTH: Final = 64
"""Deeper JSON is skipped: serialisers further down (orjson 254, msgpack 511) would refuse what we had accepted."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

# One JSON escape: a surrogate pair, half of one (group 1), or any other.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def valid_id(value: object) -> bool:
    """Whether this may serve as a conversation id, and so as a part of a key."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def word(value: str) -> str:
    """A name from the peer, fit for a log line: itself if it is short and plain, otherwise its length."""
    return value if _WORD.fullmatch(value) else f"a name of {len(value)} characters"


def short_text(value: object, limit: int = 256) -> str | None:
    """A short text field: cut at `limit` characters; a number is taken as text; anything else counts as absent."""
    if isinstance(value, str):
        return value[:limit]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def strings(value: object) -> tuple[str, ...] | None:
    """The strings of a list; None if it is no list."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None


def parse(frame: str | bytes) -> JSON | Skipped:
    """One text frame as an object with a string `type`, or why it is none. Never raises."""
    if len(frame) > MAX_BRACKETS and (brackets := _brackets(frame)) > MAX_BRACKETS:
        return Skipped("too_many_values", f"{brackets} brackets in one message, more than {MAX_BRACKETS}")
    try:
        message = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        mended = _mend(frame, error)
        if isinstance(mended, Skipped):
            return mended
        message = mended
    if not isinstance(message, dict):
        return Skipped("not_object", f"a JSON {type(message).__name__} instead of an object")
    kind = message.get("type")
    if not isinstance(kind, str):
        return Skipped("no_type", f"type is {'absent' if kind is None else 'a ' + type(kind).__name__}")
    # Counting brackets is far cheaper than walking, and nearly every message has fewer than the limit.
    if kind != "userStream.chunk" and _brackets(frame) > MAX_DEPTH and _deeper(message, MAX_DEPTH):
        return Skipped("too_deep", f"{word(kind)} is nested more than {MAX_DEPTH} levels deep")
    return message


def _mend(frame: str | bytes, error: orjson.JSONDecodeError) -> Any | Skipped:
    """A second try for text cut in the middle of an emoji: half a surrogate pair becomes U+FFFD."""
    if "depth limit" in error.msg or "recursion" in error.msg.lower():
        return Skipped("too_deep", "nested too deeply to be read")
    if len(frame) > MEND_LENGTH:
        return Skipped("bad_json", f"{len(frame)} characters, not JSON from character {error.pos} on")
    if isinstance(frame, str):
        source = _whole(frame)
    else:
        try:
            source = bytes(frame).decode("utf-8")
        except UnicodeDecodeError:
            return Skipped("binary", f"{len(frame)} bytes that are not UTF-8")
    mended = _ESCAPE.sub(lambda escape: "\\ufffd" if escape[1] else escape[0], source)
    if mended != frame:
        try:
            return orjson.loads(mended)
        except orjson.JSONDecodeError as again:
            error = again
    return Skipped("bad_json", f"{len(frame)} characters, not JSON from character {error.pos} on")


def _brackets(frame: str | bytes) -> int:
    if isinstance(frame, str):
        return frame.count("[") + frame.count("{")
    return frame.count(b"[") + frame.count(b"{")


def _deeper(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return any(isinstance(item, dict | list) for item in level)


def decode_audio(value: object) -> bytes | Skipped:
    """The bytes of a base64 string, with or without its padding (§5.2)."""
    if not isinstance(value, str):
        return Skipped("bad_field", f"audioChunk is a {type(value).__name__} instead of a string")
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        if len(value) % 4 > 1 and "=" not in value:
            try:
                return binascii.a2b_base64(value + "=" * (-len(value) % 4), strict_mode=True)
            except ValueError:
                pass  # refused below, in one place
        return Skipped("bad_base64", f"audioChunk of {len(value)} characters is not base64")


def dump(message: JSON) -> bytes:
    """One text frame. Half surrogate pairs, which no JSON text frame may carry, become U+FFFD.

    Raises:
        LocalProtocolError: a value has no JSON form.
    """
    try:
        return orjson.dumps(message)
    except TypeError:
        try:
            return orjson.dumps(_scrub(message, MAX_DEPTH))
        except TypeError as error:
            raise LocalProtocolError(f"{message.get('type')} cannot be written as JSON: {error}") from error


def _whole(value: str) -> str:
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _scrub(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, dict) and depth:
        return {_scrub(key, 0): _scrub(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [_scrub(item, depth - 1) for item in value]
    return value
