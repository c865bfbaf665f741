"""Children that do not outlive us, however we end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def dies_with_parent() -> Callable[[], None] | None:
    """The `preexec_fn` of a child that the kernel ends with SIGKILL when its parent is gone.

    The parent is the *thread* that starts it, so that has to be one that lives as long as the process. Linux only;
    elsewhere there is no such thing (None), and a killed parent leaves its children behind.

    Everything is looked up before the fork; after it, in a process with threads, nothing may be allocated that a
    lock could guard.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)

    return ask
