"""What of a conversation is not to be kept: taken out of every utterance before it is stored, logged or handed on."""

from __future__ import annotations

import re
from collections.abc import Callable

from bridge_shared import logs

log = logs.get("worker.redaction")

GONE = "[redacted]"
"""Stands where something was taken out; the whole utterance if the application's own function failed on it."""


class Redaction:
    """Takes out what must not be kept.

    Args:
        patterns: regular expressions, one a line; what they match is taken out.
        own: the application's own function, applied behind them, in the thread that moves audio: it must be quick.
    """

    def __init__(self, patterns: str | None, own: Callable[[str], str] | None = None) -> None:
        # each by itself: a flag or a group number of one line means nothing in another
        self._patterns = [re.compile(line) for line in (patterns or "").splitlines() if line.strip()]
        self._own = own

    def __call__(self, text: str) -> str:
        """The text without what must not be kept."""
        for pattern in self._patterns:
            text = pattern.sub(GONE, text)
        if self._own is None:
            return text
        try:
            return str(self._own(text))
        except Exception:
            log.exception("`redact` of the application failed, an utterance is not kept")
            return GONE
