"""Where applications written for the original find `DeepgramHandshakeError` (sdk-public-api §1.3)."""

from bridge_shared.types.errors import DeepgramHandshakeError

__all__ = ["DeepgramHandshakeError"]
