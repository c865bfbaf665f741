"""Every error the product raises on purpose, by who has to act on it.

BridgeError
├── ConfigError        the operator: one setting is wrong; the process exits with 2
├── RedisUnavailable   nobody: Redis is away or failing over; the same request may be made again
├── RedisRefused       us: Redis understood and said no (a wrong type, an unknown command)
├── CallUnknown        the caller of the operation: there is no such call
├── CallOver           the caller of the operation: the call has ended
├── PodUnknown         the caller of the operation: no such pod answers
├── Fenced             us: somebody with a higher epoch has this call now; stop acting on it
└── AgentFailed        Deepgram, or the settings sent to it
"""

from __future__ import annotations


class BridgeError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(BridgeError):
    """A setting cannot be used.

    Args:
        setting: the name the operator knows it by: an environment variable, an option or a file.
        problem: what is wrong with its value, without secrets.
        mend: what to do, as an imperative sentence.
    """

    def __init__(self, setting: str, problem: str, mend: str) -> None:
        self.setting, self.problem, self.mend = setting, problem, mend
        super().__init__(f"{setting}: {problem}. {mend}")


class RedisUnavailable(BridgeError):
    """Redis did not answer, or is loading or failing over. The outcome of a write is unknown."""


class RedisRefused(BridgeError):
    """Redis answered with an error that repeating the request will not mend."""


class CallUnknown(BridgeError):
    """There is no call with this conversation id."""

    def __init__(self, cid: str) -> None:
        self.cid = cid
        super().__init__(f"no call {cid!r} is known")


class CallOver(BridgeError):
    """The call has ended, so nothing can be done with it any more."""

    def __init__(self, cid: str) -> None:
        self.cid = cid
        super().__init__(f"call {cid!r} has ended")


class CommandRefused(BridgeError):
    """A command to a live call was not carried out; `why` is for a person."""

    def __init__(self, cid: str, why: str) -> None:
        self.cid, self.why = cid, why
        super().__init__(f"call {cid!r}: {why}")


class PodUnknown(BridgeError):
    """There is no pod of this name, or it does not answer."""

    def __init__(self, pod: str) -> None:
        self.pod = pod
        super().__init__(f"no pod {pod!r} answers; `bridgectl pods` lists them")


class Fenced(BridgeError):
    """A pod with a higher epoch has taken this call over."""

    def __init__(self, cid: str) -> None:
        self.cid = cid
        super().__init__(f"call {cid!r} belongs to another pod now")


class AgentFailed(BridgeError):
    """The Deepgram agent could not be reached, refused us, or broke off.

    Attributes:
        code: Deepgram's own code, or one of ours (`connect_failed`, `handshake_binary_frame`,
            `handshake_unexpected_type`, `connection_closed`, `disconnected`).
        description: what was said, for a person.
        retryable: whether a new connection may succeed (Voice Agent reference §5.4).
        cause: the exception behind it, if there was one.
    """

    def __init__(self, code: str, description: str, *, retryable: bool, cause: Exception | None = None) -> None:
        self.code, self.description, self.retryable, self.cause = code, description, retryable, cause
        super().__init__(f"{code}: {description}")
