"""What a process costs, by the kernel's own account."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


def cpu_ms(pid: int) -> float:
    """Time on a CPU of all threads of a process so far, from scheduler statistics."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:  # the thread has just ended
            continue
    return total / 1e6


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@dataclass
class Meter:
    """CPU of some processes over a span of time."""

    pids: list[tuple[str, int]]

    def begin(self) -> None:
        self._at = time.monotonic()
        self._before = [cpu_ms(pid) for _, pid in self.pids]

    def end(self) -> tuple[float, dict[str, float]]:
        """Seconds that have passed, and CPU milliseconds by name; processes of one name together."""
        seconds = time.monotonic() - self._at
        used: dict[str, float] = {}
        for (name, pid), before in zip(self.pids, self._before, strict=True):
            used[name] = used.get(name, 0.0) + cpu_ms(pid) - before
        return seconds, used
