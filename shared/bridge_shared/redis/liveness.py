"""Who is alive: observed with one's own clock, not timed by Redis. Pure.

A lease in Redis was tried: a 5 s pause of the server made every call change hands, and a step of its clock emptied
or froze all leases. So every pod counts up in Redis, and the others measure how long each counter has stood still
*while they themselves were being served promptly*. Whatever disturbs the observer (a pause of
Redis, a failover, its own garbage collection, an overcommitted host) only makes it wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STEP_SECONDS: Final = 0.25
"""Between two polls, and between two beats."""

PROMPT_SECONDS: Final = 3 * STEP_SECONDS
"""A poll that comes later than this after the one before proves nothing about the time in between."""

SILENT_SECONDS: Final = 2.5
"""A counter that stood still this long belongs to a dead pod: over three times the worst stall measured."""

UNPLUGGED_SECONDS: Final = 0.5
"""The same when its liveness subscription is gone as well: the kernel closes a dead process's socket."""

QUIET_SECONDS: Final = 2.0
"""After a bad poll nobody is declared dead for this long."""


class Watch:
    """The observer.

    Args:
        subscriptions: whether a missing liveness subscription counts; not where a proxy stands before Redis.
    """

    def __init__(self, *, subscriptions: bool = True) -> None:
        self._subscriptions = subscriptions
        self._at: float | None = None
        self._quiet_until = 0.0
        self._counters: dict[str, int] = {}
        self._still: dict[str, float] = {}
        # Pods whose subscription was seen on the present connection, and those that have none now.
        self._connection = -1
        self._subscribed: set[str] = set()
        self._unplugged: set[str] = set()

    def poll(self, now: float, counters: Mapping[str, int], subscribers: Mapping[str, int], connection: int) -> None:
        """One look.

        Args:
            now: monotonic seconds.
            counters: every pod's counter.
            subscribers: how many subscribe to `alive:<pod>`, for the pods that were asked about.
            connection: changes when the look was taken over a new connection; a node just connected to may not
                have the subscribers yet.
        """
        elapsed = now - self._at if self._at is not None else 0.0
        good = self._at is not None and elapsed < PROMPT_SECONDS
        self._at = now
        if not good:
            self._quiet_until = now + QUIET_SECONDS
        if connection != self._connection:
            self._connection = connection
            self._subscribed.clear()
        for pod in counters:
            self._still.setdefault(pod, 0.0)
        for pod, still in self._still.items():
            # "Changed", not "greater": a failover may set it back, and an emptied Redis begins at 1.
            changed = pod in counters and counters[pod] != self._counters.get(pod)
            self._still[pod] = still + elapsed if good and not changed else 0.0
        self._counters.update(counters)
        self._subscribed.update(pod for pod, n in subscribers.items() if n)
        self._unplugged = {pod for pod, n in subscribers.items() if not n and pod in self._subscribed}

    def failed(self, now: float) -> None:
        """A look that could not be taken."""
        self._quiet_until = now + QUIET_SECONDS
        self._still = dict.fromkeys(self._still, 0.0)
        self._at = None

    def silent(self, pod: str) -> float:
        """Seconds for which `pod` is proven silent. Asking about a pod never seen begins the measurement."""
        return self._still.setdefault(pod, 0.0)

    def dead(self, pod: str) -> bool:
        """Whether `pod` is dead, as of the last look."""
        still = self.silent(pod)
        if self._at is None or self._at < self._quiet_until:
            return False
        return still >= SILENT_SECONDS or (
            self._subscriptions and still >= UNPLUGGED_SECONDS and pod in self._unplugged
        )

    @property
    def pods(self) -> list[str]:
        """Every pod that was ever seen or asked about and not forgotten."""
        return list(self._still)

    def counter(self, pod: str) -> int | None:
        """The last counter seen of `pod`."""
        return self._counters.get(pod)

    def forget(self, pod: str) -> None:
        """`pod` has been swept; nobody will ask about it any more."""
        self._still.pop(pod, None)
        self._counters.pop(pod, None)
        self._subscribed.discard(pod)
        self._unplugged.discard(pod)
