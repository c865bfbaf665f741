"""What an application keeps of one call: a small JSON mapping that goes with the call from worker to worker.

Every change is written to Redis at once, but for those of a running `activity` handler, which go with the note that it
has returned. Only the owner writes, then the finisher: what a former one writes is refused.
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
        write: given the mapping as JSON after each change; from the customer's loop.
        held: whether a change made now is to be written at `settle` only; those of others are written without it.
    """

    def __init__(
        self,
        stored: str = "",
        write: Callable[[bytes], None] = lambda encoded: None,
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._write, self._held = write, held
        self._items = self._settled = _parsed(stored)
        self._unsettled = False

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
        self._change(lambda items: {**items, key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self._items:
            raise KeyError(key)
        self._change(lambda items: {name: value for name, value in items.items() if name != key})

    def __repr__(self) -> str:
        return f"<SessionData {sorted(self._items)}>"  # the values may be personal

    @property
    def encoded(self) -> bytes:
        """All of it as JSON, what is held too. From any thread."""
        return orjson.dumps(self._items)

    def settle(self) -> bytes | None:
        """Whoever's changes were held is done: all of it as JSON, or None if there were no such changes."""
        if not self._unsettled:
            return None
        self._settled, self._unsettled = self._items, False
        return self.encoded

    def written_by(self, write: Callable[[bytes], None]) -> bytes:
        """Have every change written by somebody else from now on, at once; all of it as JSON. From any thread."""
        self._write = lambda encoded: write(self.encoded)
        self._held = lambda: False
        return self.encoded

    def _change(self, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        items = change(self._items)
        if not all(isinstance(key, str) for key in items):
            raise TypeError("keys of session.data are text")
        try:
            encoded = orjson.dumps(items)
        except orjson.JSONEncodeError as error:
            raise TypeError(f"session.data takes what JSON can hold: {error}") from None
        if len(encoded) > MOST_BYTES:
            raise ValueError(f"session.data would have {len(encoded)} bytes of JSON, {MOST_BYTES} is the most")
        settled = orjson.dumps(change(self._settled))
        self._items = orjson.loads(encoded)  # a copy, as every later owner will see it
        if self._held():
            self._unsettled = True
        else:
            self._settled = orjson.loads(settled)
            self._write(settled)


def _parsed(stored: str) -> dict[str, Any]:
    try:
        value = orjson.loads(stored) if stored else {}
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
