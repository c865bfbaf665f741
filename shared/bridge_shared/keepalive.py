"""Sockets whose other side is gone without a word: the kernel is told to give them up early.

A peer that loses its power or its network closes nothing. What we send it is repeated by TCP for a quarter of
an hour; with `TCP_USER_TIMEOUT` the connection is broken once something of ours has been unanswered for a few
seconds. That needs something of ours under way, so whoever calls this pings every second or two as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket


def notice_half_open(transport: asyncio.BaseTransport, seconds: float = 5.0) -> None:
    """Break this connection when what was sent has not been acknowledged by the peer's kernel for so long.

    Does nothing where the system has no such option, and for what is no TCP connection.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    connection = transport.get_extra_info("socket")
    if option is None or connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it is closed already, or no TCP after all
        connection.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1000))
