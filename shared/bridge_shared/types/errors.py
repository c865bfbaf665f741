"""The one exception class of the public SDK (sdk-public-api §1.3)."""

from __future__ import annotations

__all__ = ["DeepgramHandshakeError"]


class DeepgramHandshakeError(Exception):
    """The agent answered the opening with something else than `Welcome` and `SettingsApplied`.

    Arrives as `BridgeErrorEvent.cause`.

    Attributes:
        code: the agent's own code, or `handshake_binary_frame` or `handshake_unexpected_type`.
        description: what was said, for a person; also what `str()` gives.
        payload: the message that was received, if it was JSON.
    """

    def __init__(self, code: str, description: str, payload: dict[str, object] | None = None) -> None:
        self.code, self.description, self.payload = code, description, payload
        super().__init__(description)
