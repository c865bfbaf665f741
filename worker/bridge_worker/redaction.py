"""What of a conversation is not to be kept: taken out of every utterance before it is stored, logged or handed on, and
out of what function calls are given and answer before it is stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

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

    def json(self, text: str) -> str:
        """The same for JSON, which stays JSON: names, texts and numbers each by itself, JSON within a text likewise.
        What is no object or array is a text."""
        try:
            value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
            kept = self._value(value)
        except (ValueError, RecursionError):
            return self(text)
        if value is None:
            return self(text)
        return text if kept == value else json.dumps(kept, ensure_ascii=False, separators=(",", ":"))

    def _value(self, value: Any) -> Any:
        match value:
            case dict():
                return {self(name): self._value(part) for name, part in value.items()}
            case list():
                return [self._value(part) for part in value]
            case str():
                return self.json(value)
            case int() | float() if not isinstance(value, bool):
                kept = self(str(value))
                return value if kept == str(value) else kept
        return value
