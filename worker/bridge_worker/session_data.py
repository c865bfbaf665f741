"""What an application keeps of one call: a small JSON mapping that goes with the call from worker to worker.

Every change is written to Redis at once, by the owner only: what a former owner writes is refused (DESIGN §7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import orjson

MOST_BYTES = 16 * 1024
"""As JSON. It lies in Redis for the whole call, and in the hash that takeovers read."""


class SessionData(MutableMapping[str, Any]):
    """The mapping behind `Session.data`. In the customer's event loop.

    Args:
        stored: JSON as a former owner wrote it; what is no JSON object counts as nothing.
        write: given the whole mapping as JSON after each change; from the customer's loop.
    """

    def __init__(self, stored: str = "", write: Callable[[bytes], None] = lambda encoded: None) -> None:
        self._write = write
        self._items: dict[str, Any] = _parsed(stored)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __setitem__(self, key: str, value: Any) -> None:
        """Keep a value. A list or dict that is changed afterwards has to be set again: only setting writes.

        Raises:
            TypeError: it is no JSON, or the key no text.
            ValueError: the mapping would be larger than 16 KiB of JSON. It is as before then.
        """
        self._change({**self._items, key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self._items:
            raise KeyError(key)
        self._change({name: value for name, value in self._items.items() if name != key})

    def __repr__(self) -> str:
        return f"<SessionData {sorted(self._items)}>"  # the values may be personal

    @property
    def encoded(self) -> bytes:
        """All of it as JSON."""
        return orjson.dumps(self._items)

    def _change(self, items: Mapping[str, Any]) -> None:
        if not all(isinstance(key, str) for key in items):
            raise TypeError("keys of session.data are text")
        try:
            encoded = orjson.dumps(items)
        except orjson.JSONEncodeError as error:
            raise TypeError(f"session.data takes what JSON can hold: {error}") from None
        if len(encoded) > MOST_BYTES:
            raise ValueError(f"session.data would have {len(encoded)} bytes of JSON, {MOST_BYTES} is the most")
        self._items = orjson.loads(encoded)  # a copy, as every later owner will see it
        self._write(encoded)


def _parsed(stored: str) -> dict[str, Any]:
    try:
        value = orjson.loads(stored) if stored else {}
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
